"""The model card that lies beside trained weights: what they are, what they were trained on, how to use them."""

from __future__ import annotations

import json

from sagediff.training.train_config import TrainConfig
from sagediff.training.trained import Trained


def model_card(
    base: str, num_images: int, num_captions: int, config: TrainConfig, weights: str, trained: Trained
) -> str:
    """Markdown with the front matter that model hubs read."""
    sharing = config.sharing(trained.counts.largest)
    if config.objective != "sage":
        trained_for = "Standard fine-tuning, the baseline: not trained to share."
    elif sharing["max_share_ratio"]:
        trained_for = (
            f"Trained to share: share ratios up to {sharing['max_share_ratio']:g}, groups of up to "
            f"{sharing['max_group_size']} prompts. `sagediff generate --lora` warns when more is asked for."
        )
    else:
        trained_for = (
            f"Not trained to share: no batch held a group of two or more captions (threshold {config.grouped_at:g}), "
            "so every image was trained on alone."
        )
    load = (
        f'pipe.load_lora_weights("{weights}")' if config.rank else f'# the denoiser itself: load "{weights}"'
    )
    record = config.record()
    if config.objective != "sage":
        del record["weights"], record["branch_range"]  # not looked at
    return f"""---
base_model: {base}
library_name: diffusers
tags: [text-to-image, {"lora, " if config.rank else ""}sagediff]
---

# {"LoRA" if config.rank else "Denoiser"} of {base} ({config.objective})

{trained_for}

```python
import sagediff

pipe = sagediff.load_pipeline("{base}")
{load}
```

Trained by `sagediff train` on {num_images} images with {num_captions} captions: {trained.words()}

The settings:

```json
{json.dumps(record, indent=2)}
```
"""
