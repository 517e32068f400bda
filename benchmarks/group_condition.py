"""Is another group condition better? The mean, the medoid, and tokens side by side, on the built-in model.

    python benchmarks/group_condition.py --captions 128 --seeds 0 1 2 --threshold 0.15

Three settings: the base weights, the same shared for so long that it harms, and the LoRA trained to share (on the mean,
which gives the mean an advantage there). Side by side means that a shared row's cross-attention sees the tokens of all
members at once; equal prompts then give what one of them gives, because softmax over n copies averages the same values.
Rows of one batch need equally many tokens: shorter ones are padded and masked. This script does it with hooks on the
cross-attention layers; the package has the mean alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from world_eval import accuracy, built_in, diversity, mean_spread, to_judge

import sagediff
from sagediff.builtin.scenes import judge_dir, lora_dir
from sagediff.builtin.scenes.networks import load_judge
from sagediff.builtin.scenes.scene_perception import held_out_captions
from sagediff.denoiser.condition import mean_condition
from sagediff.pipelines.placement import open_pipeline

# weights -> (LoRA, steps, share ratio, unguided, noise at the hand-over)
SETTINGS: dict[str, tuple[Path | None, int, float, float, float]] = {
    "base": (None, 20, 0.3, 0.0, 0.0),
    "base, shared for long": (None, 20, 0.6, 0.0, 0.0),
    "trained to share": (lora_dir(), 8, 0.5, 1.0, 1.0),
}


def medoid_condition(
    conditions: Mapping[str, Tensor], masks: Mapping[str, Tensor], words: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The member nearest to all others, the same one for every argument; the first of equals.

    Each argument counts the same whatever its size: its squared distances are divided by their largest.
    Padding counts as zero, whatever it holds.
    """
    best = 0
    total: Tensor | None = None
    for name, rows in conditions.items():
        kept = rows * words[name].view(*words[name].shape, *[1] * (rows.ndim - 2)) if name in words else rows
        flat = kept.flatten(1).float()  # (n, d)
        # row by row: an (n, n, d) array of long token embeddings would not fit
        distances = torch.stack([(flat - row).square().sum(dim=1) for row in flat])  # (n, n)
        largest = distances.max()
        scaled = distances / largest if bool(largest > 0) else distances
        total = scaled if total is None else total + scaled
    if total is not None:
        best = int(total.sum(dim=1).argmin())
    return {name: rows[best : best + 1] for name, rows in {**conditions, **masks}.items()}


class SideBySide:
    """A group condition that hands the members' tokens to the U-Net's cross-attention beside each other.

    As a group condition it gives the mean, and remembers which members that mean stands for; the hooks on the layers
    put the members' tokens in its place.
    """

    def __init__(self, unet: Any) -> None:
        self._members: dict[bytes, Tensor] = {}  # a mean (tokens, d), as bytes -> (n tokens, d)
        layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
        self._handles = [layer.register_forward_pre_hook(self._widen, with_kwargs=True) for layer in layers]

    def __call__(
        self, conditions: Mapping[str, Tensor], masks: Mapping[str, Tensor], words: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        merged = mean_condition(conditions, masks, words)
        name = "encoder_hidden_states"
        self._members[_key(merged[name][0])] = conditions[name].flatten(0, 1)
        return merged

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _widen(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tokens = kwargs["encoder_hidden_states"]  # (rows, tokens, d)
        rows = [self._members.get(_key(row), row) for row in tokens]
        longest = max(len(row) for row in rows)
        if longest == tokens.shape[1]:
            return None
        lengths = torch.tensor([len(row) for row in rows])
        hidden = (torch.arange(longest) >= lengths[:, None]).to(tokens.dtype) * -10_000.0
        wide = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return args, kwargs | {"encoder_hidden_states": wide, "attention_mask": hidden[:, None]}


def _key(row: Tensor) -> bytes:
    return row.detach().contiguous().numpy().tobytes()


PLAIN = {"mean": mean_condition, "medoid": medoid_condition}


def difference_for_equal_prompts(pipe: Any, condition: Any) -> float:
    """Largest difference of the latents between a group of equal prompts and the same prompts unshared.

    Not 0 for the mean either, as rounding depends on the number of rows: that is what to compare with.
    """
    plan = sagediff.SharePlan.from_groups([[0, 1, 2]], 6, 0.5)
    options = {"num_inference_steps": 6, "output_type": "latent"}
    captions = held_out_captions(1) * 3
    alone = pipe(captions, generator=plan.generators(0), **options).images
    with sagediff.shared_sampling(pipe, plan, group_condition=condition):
        together = pipe(captions, generator=plan.generators(0), **options).images
    return float((together - alone).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--threshold", type=float, default=0.15)
    parser.add_argument("--max-group-size", type=int, default=8)
    parser.add_argument("--out", type=Path, help="also write the rows there as JSON")
    args = parser.parse_args()
    judge, captions = load_judge(judge_dir()), held_out_captions(args.captions)
    rows: list[dict[str, Any]] = []
    for weights in args.settings:
        lora, steps, ratio, unguided, noise = SETTINGS[weights]
        pipe = open_pipeline(built_in(lora, scheduler="dpm++-beta"))
        pipe.set_progress_bar_config(disable=True)
        for name in ("mean", "medoid", "tokens"):
            condition: Any = SideBySide(pipe.unet) if name == "tokens" else PLAIN[name]
            rounding = difference_for_equal_prompts(pipe, condition)
            print(f"{weights}, {name}: equal prompts differ by {rounding:.1e} at most", file=sys.stderr)
            sampler = sagediff.SharedSampler(
                pipe, threshold=args.threshold, share_ratio=ratio, max_group_size=args.max_group_size,
                unguided=unguided, handover_noise=noise, group_condition=condition,
            )  # fmt: skip
            figures = []
            for seed in args.seeds:
                made = sampler(captions, steps, guidance_scale=4.0, seed=seed)
                images, groups = to_judge(made.images), [list(group) for group in made.plan.groups]
                figures.append(
                    accuracy(judge, images, captions) | {"diversity": diversity(judge, images, groups)}
                )
            if name == "tokens":
                condition.remove()
            spread = {key: mean_spread([f[key] for f in figures]) for key in figures[0]}
            rows.append({"weights": weights, "condition": name, "groups": len(groups)} | spread)
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(
        "| weights | group condition | all four attributes right | diversity within groups |\n"
        + "| --- " * 4
        + "|"
    )
    for row in rows:
        right, apart = row["all"], row["diversity"]
        print(
            f"| {row['weights']} | {row['condition']} | {right['mean']:.1%} ± {right['spread']:.1%} "
            f"| {apart['mean']:.3f} ± {apart['spread']:.3f} |"
        )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
