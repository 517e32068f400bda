"""Sharing and a cache at once: do their savings multiply?

    python benchmarks/composition.py
    python benchmarks/composition.py --cache magnitudes --seeds 0 --shifts 3
    python benchmarks/composition.py --weights runs/small-dit/transformer

A FLUX transformer of moderate size with random weights, or the trained one of `small_dit.py` (`--weights`) on held-out
captions of the built-in world, grouped by their text embeddings; seeds are then other captions and other noise. With
`--guidance` above 1, every step has a second call. What is counted is block executions: rows on which the forward of
each inner block really runs, which does not depend on the machine. If sharing alone saves the fraction a and the cache
alone b, and the savings multiply, then both save 1 - (1 - a)(1 - b). They do so if the cache skips as many of the
shared steps as of the others, and that is decided by the noise schedule, not by sharing. So the cost is also compared
with what comes out if the cache skips exactly the steps that it skips alone. The threshold is set for each model so
that the cache alone skips about the fraction `--skipped` of the steps, and is kept for both. At the end: the fraction
of the steps that is computed in full, of those that groups share and of the others.

MagCache decides by the number of the step alone, and skips none of the first fifth; it has one ratio for all steps
with random weights, and measures the trained ones' ratios first. TaylorSeer ("series", lite mode) computes the first
three steps and then every 2nd, 3rd or 5th. PyramidAttentionBroadcast ("attention", of which attention is counted, not
blocks) computes every 2nd or 3rd of those between timesteps 800 and 100. Both have an interval, not a threshold.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import small_dit
import torch
from diffusers import (
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

import sagediff
from sagediff.builtin.scenes.scene_perception import held_out_captions
from sagediff.plan.grouping import group_prompts
from sagediff.prompts.embeddings import embed_prompts

WIDTH, TOKENS = 64, 16
CAPTIONS = 512  # held out, of which groups are drawn
INTERVALS = {"series": (2, 3, 5), "attention": (2, 3)}


def first_block(case: Case, threshold: float, steps: int) -> Any:
    return FirstBlockCacheConfig(threshold=threshold)


def magnitudes(case: Case, threshold: float, steps: int) -> Any:
    ratios = case.ratios or [0.9] * steps
    return MagCacheConfig(threshold=threshold, num_inference_steps=steps, mag_ratios=ratios)


def series(case: Case, interval: float, steps: int) -> Any:
    return TaylorSeerCacheConfig(
        cache_interval=int(interval), disable_cache_before_step=3, taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )  # fmt: skip


def attention(case: Case, interval: float, steps: int) -> Any:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=int(interval), spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: int(case.pipe.current_timestep),
    )  # fmt: skip


CACHES: dict[str, Callable[[Case, float, int], Any]] = {
    "first-block": first_block, "magnitudes": magnitudes, "series": series, "attention": attention,
}  # fmt: skip


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
        steps: rows of all blocks, or of all their attentions, together, for each call of the run.
    """

    def __init__(self, transformer: Any, attentions: bool) -> None:
        self.steps: list[int] = []
        for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
            part = block.attn if attentions else block
            part.forward = self._counting(part.forward)
        transformer.x_embedder.register_forward_pre_hook(lambda module, args: self.steps.append(0))

    def _counting(self, forward: Any) -> Any:
        def counted(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            self.steps[-1] += len(hidden_states)
            return forward(hidden_states, *args, **kwargs)

        return counted


@dataclass
class Case:
    """A pipeline with prompts in groups.

    Attributes:
        noise: seed of the noise.
        ratios: MagCache's of the model; empty where they were not measured.
    """

    pipe: Any
    counted: Counted
    inputs: dict[str, Any]
    groups: list[list[int]]
    noise: int = 0
    ratios: list[float] = field(default_factory=list)

    def plan(self, steps: int, ratio: float) -> sagediff.SharePlan:
        return sagediff.SharePlan.from_groups(self.groups, steps, ratio)

    def sample(self, plan: sagediff.SharePlan, config: Any = None) -> torch.Tensor:
        """Latents; `counted` holds what they cost."""
        if config is not None:
            self.pipe.transformer.enable_cache(config)
        self.counted.steps.clear()
        try:
            with sagediff.shared_sampling(self.pipe, plan):
                latents: torch.Tensor = self.pipe(
                    **self.inputs, num_inference_steps=plan.num_steps, generator=plan.generators(self.noise)
                ).images
        finally:
            if config is not None:
                self.pipe.transformer.disable_cache()
        return latents

    def executions(self, plan: sagediff.SharePlan, config: Any = None) -> list[int]:
        """Block executions of every call, one or two per step."""
        self.sample(plan, config)
        return list(self.counted.steps)

    def measure_ratios(self, steps: int) -> None:
        """MagCache's calibration, which it prints."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self.sample(self.plan(steps, 0.0), MagCacheConfig(num_inference_steps=steps, calibrate=True))
        self.ratios = json.loads(next(line for line in printed.getvalue().splitlines() if line[:2] == "[1"))


def random_case(args: argparse.Namespace, shift: float, seed: int) -> Case:
    numbers = iter(range(sum(args.group_sizes)))
    groups = [[next(numbers) for _ in range(size)] for size in args.group_sizes]
    pipe = pipeline(args.layers, shift, seed)
    counted = Counted(pipe.transformer, args.cache == "attention")
    inputs = prompts(groups, args.alike, seed) | {"height": 64, "width": 64, "output_type": "latent"}
    return Case(pipe, counted, inputs, groups)


def caption_groups(demo: Any, threshold: float, prompts: int, seed: int) -> tuple[list[str], list[list[int]]]:
    """Groups of held-out captions, whole ones drawn until there are so many prompts."""
    captions = held_out_captions(CAPTIONS)
    found = group_prompts(embed_prompts(captions, demo).vectors, threshold)
    chosen: list[str] = []
    groups: list[list[int]] = []
    for place in np.random.default_rng(seed).permutation(len(found)):
        group = found[place]
        if len(chosen) + len(group) <= prompts:
            groups.append(list(range(len(chosen), len(chosen) + len(group))))
            chosen += [captions[i] for i in group]
    return chosen, groups


def trained_case(args: argparse.Namespace, shift: float, seed: int) -> Case:
    world = small_dit.World.open()
    captions, groups = caption_groups(world.demo, args.threshold, args.prompts, seed)
    pipe = small_dit.pipeline(FluxTransformer2DModel.from_pretrained(args.weights), shift)
    counted = Counted(pipe.transformer, args.cache == "attention")
    case = Case(pipe, counted, world.inputs(captions, args.guidance), groups, seed)
    if args.cache == "magnitudes":
        case.measure_ratios(args.steps)
    return case


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


def measured(case: Case, args: argparse.Namespace, about: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each part left out by the cache and each share ratio."""
    alone = case.plan(args.steps, 0.0)
    base = case.executions(alone)

    def config(setting: float) -> Any:
        return CACHES[args.cache](case, setting, args.steps)

    @functools.cache
    def run(setting: float) -> list[int]:
        return case.executions(alone, config(setting))

    intervals = INTERVALS.get(args.cache)
    settings = (
        [(setting, run(setting)) for setting in intervals]
        if intervals
        else [threshold_for(skipped, run, base) for skipped in args.skipped]
    )
    plans = {ratio: case.plan(args.steps, ratio) for ratio in args.ratios}
    sharing = {ratio: case.executions(plan) for ratio, plan in plans.items()}
    rows = []
    for (threshold, cached), ratio in itertools.product(settings, args.ratios):
        plan, shared = plans[ratio], sharing[ratio]
        steps = case.executions(plan, config(threshold))
        both = sum(steps)
        same = sum(one * made / full for one, made, full in zip(shared, cached, base, strict=True))
        multiplied = sum(shared) * sum(cached) / sum(base)
        rows.append(about | {
            "ratio": ratio, "threshold": threshold,
            "sharing saves": 1 - sum(shared) / sum(base), "cache saves": 1 - sum(cached) / sum(base),
            "both save": 1 - both / sum(base), "multiplied": 1 - multiplied / sum(base),
            "cost / multiplied": both / multiplied, "cost / same steps left out": both / same,
            "branch call": max(plan.branch_steps) * len(base) // args.steps,
            "computed alone": [made == full for made, full in zip(cached, base, strict=True)],
            "computed in both": [made == full for made, full in zip(steps, shared, strict=True)],
        })  # fmt: skip
    return rows


def computed(rows: list[dict[str, Any]], key: str) -> tuple[float, float]:
    """Part of the steps that are computed in full, before the branch point and from it on; mean over the rows."""
    parts = [
        (np.mean(row[key][: row["branch call"]]), np.mean(row[key][row["branch call"] :])) for row in rows
    ]
    early, late = np.mean(parts, axis=0)
    return float(early), float(late)


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
    parser.add_argument("--weights", type=Path, help="a transformer that `small_dit.py` trained")
    parser.add_argument("--prompts", type=int, default=16, help="with --weights: most captions in a run")
    parser.add_argument("--guidance", type=float, default=1.0, help="with --weights: above 1 by second calls")
    parser.add_argument("--threshold", type=float, default=0.35, help="with --weights: of the groups")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for shift, seed in itertools.product(args.shifts, args.seeds):
        case = (trained_case if args.weights else random_case)(args, shift, seed)
        rows += measured(case, args, {"shift": shift, "seed": seed})
    shown = [key for key, value in rows[0].items() if isinstance(value, float | int) and key != "branch call"]
    print("| " + " | ".join(shown) + " |\n" + "| --- " * len(shown) + "|")
    for row in rows:
        cells = [
            f"{row[key]:.1%}" if "save" in key or key == "multiplied" else f"{row[key]:.3g}" if "cost" not in key
            else f"{row[key]:.3f}"
            for key in shown
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    for shift in args.shifts:
        of_shift = [row for row in rows if row["shift"] == shift]
        for key in ("cost / multiplied", "cost / same steps left out"):
            values = [row[key] for row in of_shift]
            mean, spread = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
            print(
                f"shift {shift:g}, {key}: mean {mean:.3f} +- {spread:.3f}, from {min(values):.3f} "
                f"to {max(values):.3f}"
            )
        for key in ("computed alone", "computed in both"):
            early, late = computed(of_shift, key)
            print(
                f"shift {shift:g}, {key}: {early:.1%} of the steps before the branch point, {late:.1%} after"
            )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
