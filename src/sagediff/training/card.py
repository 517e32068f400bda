"""The model card that lies beside trained weights: what they are, what they were trained on, how to use them."""

from __future__ import annotations

import json
from typing import Any

from sagediff.training.train_config import TrainConfig


def model_card(base: str, num_images: int, num_captions: int, config: TrainConfig, weights: str) -> str:
    """Markdown with the front matter that model hubs read."""
    sharing = config.sharing()
    trained_for = (
        f"Trained to share: share ratios up to {sharing['max_share_ratio']:g}, groups of up to "
        f"{sharing['max_group_size']} prompts. `sagediff generate --lora` warns when more is asked for."
        if config.objective == "sage"
        else "Standard fine-tuning, the baseline: not trained to share."
    )
    load = (
        f'pipe.load_lora_weights("{weights}")' if config.rank else f'# the denoiser itself: load "{weights}"'
    )
    lines = [
        "---",
        f"base_model: {base}",
        "library_name: diffusers",
        f"tags: [text-to-image, {'lora, ' if config.rank else ''}sagediff]",
        "---",
        "",
        f"# {'LoRA' if config.rank else 'Denoiser'} of {base} ({config.objective})",
        "",
        trained_for,
        "",
        "```python",
        "import sagediff",
        "",
        f'pipe = sagediff.load_pipeline("{base}")',
        load,
        "```",
        "",
        f"Trained by `sagediff train` on {num_images} images with {num_captions} captions, with:",
        "",
        "```json",
        json.dumps(_plain(config.record()), indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Without what the objective did not look at."""
    left_out = () if record["objective"] == "sage" else ("weights", "branch_range")
    return {k: v for k, v in record.items() if k not in left_out}
