"""Sharing and a cache together: do their savings multiply?

    python benchmarks/composition.py
    python benchmarks/composition.py --cache magnitudes --seeds 0 --shifts 3

A FLUX transformer with random weights, moderately sized. What is counted is block executions: rows that the forward of
each inner block really runs on, which does not depend on the machine. Sharing alone saves the part a, the cache alone
b; if they multiply, both together save 1 - (1 - a)(1 - b). They do so as far as the cache leaves out as many of the
shared steps as of the others, and that the noise schedule decides, not sharing; so the cost is also held against what
comes out if the cache leaves out just the steps that it leaves out alone. The threshold is set for each model so that
the cache alone leaves out about the part `--skipped` of the steps. MagCache (with one ratio for all steps) decides by
the number of the step alone, and leaves out none of the first fifth.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    MagCacheConfig,
)

import sagediff

WIDTH, TOKENS = 64, 16
# name -> (threshold, steps) to configuration
CACHES: dict[str, Callable[[float, int], Any]] = {
    "first-block": lambda threshold, steps: FirstBlockCacheConfig(threshold=threshold),
    "magnitudes": lambda threshold, steps: MagCacheConfig(
        threshold=threshold, num_inference_steps=steps, mag_ratios=[0.9] * steps
    ),
}


def pipeline(layers: int, shift: float, seed: int) -> FluxPipeline:
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=layers, num_single_layers=2 * layers, attention_head_dim=32,
        num_attention_heads=4, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    ).eval()  # fmt: skip
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift), vae=None, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(groups: list[list[int]], alike: float, seed: int) -> dict[str, Any]:
    """Embeddings whose cosine within a group is about `alike`."""
    noise = torch.Generator().manual_seed(seed)
    own, common = alike**0.5, (1 - alike) ** 0.5
    count = sum(map(len, groups))
    tokens, pooled = torch.zeros(count, TOKENS, WIDTH), torch.zeros(count, WIDTH)
    for group in groups:
        of_group = torch.randn(TOKENS + 1, WIDTH, generator=noise)
        for member in group:
            mixed = own * of_group + common * torch.randn(TOKENS + 1, WIDTH, generator=noise)
            tokens[member], pooled[member] = mixed[1:], mixed[0]
    return {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}


class Counted:
    """Counts the rows that the inner blocks run on, inside the cache: only forwards that are computed.

    Attributes:
        blocks: how many there are.
        steps: rows of all blocks together, for each step of the run.
    """

    def __init__(self, transformer: Any) -> None:
        self.steps: list[int] = []
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        self.blocks = len(blocks)
        for block in blocks:
            block.forward = self._counting(block.forward)
        transformer.x_embedder.register_forward_pre_hook(lambda module, args: self.steps.append(0))

    def _counting(self, forward: Any) -> Any:
        def counted(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            self.steps[-1] += len(hidden_states)
            return forward(hidden_states, *args, **kwargs)

        return counted


def executions(
    pipe: Any,
    counted: Counted,
    plan: sagediff.SharePlan,
    inputs: dict[str, Any],
    cache: str,
    threshold: float | None,
) -> list[int]:
    """Block executions of every step."""
    if threshold is not None:
        pipe.transformer.enable_cache(CACHES[cache](threshold, plan.num_steps))
    counted.steps.clear()
    try:
        with sagediff.shared_sampling(pipe, plan):
            pipe(
                **inputs, height=64, width=64, num_inference_steps=plan.num_steps, output_type="latent",
                generator=plan.generators(0),
            )  # fmt: skip
    finally:
        if threshold is not None:
            pipe.transformer.disable_cache()
    return list(counted.steps)


def threshold_for(
    skipped: float, run: Callable[[float], list[int]], base: Sequence[int]
) -> tuple[float, list[int]]:
    """The threshold at which the cache leaves out nearest to that part of the steps, and its block executions."""
    low, high = 0.0, 2.0
    tried = []
    for _ in range(8):
        middle = (low + high) / 2
        steps = run(middle)
        part = sum(made < full for made, full in zip(steps, base, strict=True)) / len(base)
        tried.append((abs(part - skipped), middle, steps))
        low, high = (middle, high) if part < skipped else (low, middle)
    _, threshold, steps = min(tried)
    return threshold, steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", choices=CACHES, default="first-block")
    parser.add_argument("--layers", type=int, default=4, help="double blocks; twice as many single ones")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[3, 3, 2, 3, 1])
    parser.add_argument("--alike", type=float, default=0.8)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.4, 0.5])
    parser.add_argument(
        "--skipped", type=float, nargs="+", default=[0.33, 0.5], help="of the steps, by the cache"
    )
    parser.add_argument("--shifts", type=float, nargs="+", default=[1.0, 3.0], help="of the noise schedule")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="also write the rows there as JSON")
    args = parser.parse_args()
    numbers = iter(range(sum(args.group_sizes)))
    groups = [[next(numbers) for _ in range(size)] for size in args.group_sizes]
    rows: list[dict[str, Any]] = []
    for shift, seed in itertools.product(args.shifts, args.seeds):
        pipe = pipeline(args.layers, shift, seed)
        counted = Counted(pipe.transformer)
        inputs = prompts(groups, args.alike, seed)
        alone = sagediff.SharePlan.from_groups(groups, args.steps, 0.0)
        base = executions(pipe, counted, alone, inputs, args.cache, None)
        for skipped in args.skipped:
            threshold, cached = threshold_for(
                skipped, functools.partial(executions, pipe, counted, alone, inputs, args.cache), base
            )
            for ratio in args.ratios:
                plan = sagediff.SharePlan.from_groups(groups, args.steps, ratio)
                shared = executions(pipe, counted, plan, inputs, args.cache, None)
                both = sum(executions(pipe, counted, plan, inputs, args.cache, threshold))
                same = sum(
                    one * made / full for one, made, full in zip(shared, cached, base, strict=True)
                )  # fmt: skip
                multiplied = sum(shared) * sum(cached) / sum(base)
                rows.append({
                    "shift": shift, "seed": seed, "ratio": ratio, "threshold": threshold,
                    "sharing saves": 1 - sum(shared) / sum(base), "cache saves": 1 - sum(cached) / sum(base),
                    "both save": 1 - both / sum(base), "multiplied": 1 - multiplied / sum(base),
                    "cost / multiplied": both / multiplied, "cost / same steps left out": both / same,
                })  # fmt: skip
    print("| " + " | ".join(rows[0]) + " |\n" + "| --- " * len(rows[0]) + "|")
    for row in rows:
        cells = [
            f"{value:.1%}" if "save" in key or key == "multiplied" else f"{value:.3g}" if "cost" not in key
            else f"{value:.3f}"
            for key, value in row.items()
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    for shift in args.shifts:
        for key in ("cost / multiplied", "cost / same steps left out"):
            values = [row[key] for row in rows if row["shift"] == shift]
            mean = sum(values) / len(values)
            print(f"shift {shift:g}, {key}: mean {mean:.3f}, from {min(values):.3f} to {max(values):.3f}")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
