"""Sharing and a cache at once: how good are the images?

    python benchmarks/composition_quality.py --weights runs/small-dit/transformer

The trained transformer of `small_dit.py` draws held-out captions of the built-in world in four ways: independently,
with sharing, with the cache, with both. Groups and cost are as in `composition.py`; whole groups go into waves of
at most 16 prompts, because a cache decides for all prompts of a call at once. The cache's threshold is the one at which
it skips about the fraction `--skipped` of the steps of the first wave. "Right": the judge reads all four attributes as
captioned.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import small_dit
import torch
from composition import CACHES, INTERVALS, Case, Counted, threshold_for
from diffusers import FluxTransformer2DModel
from world_eval import mean_spread

from sagediff.builtin.scenes.scene_perception import WorldPerception, held_out_captions
from sagediff.plan.grouping import group_prompts
from sagediff.prompts.embeddings import embed_prompts

WAVE = 16


def waves(groups: list[list[int]]) -> list[list[list[int]]]:
    """Whole groups, in order, at most so many prompts together."""
    found: list[list[list[int]]] = [[]]
    for group in groups:
        if sum(map(len, found[-1])) + len(group) > WAVE:
            found.append([])
        found[-1].append(group)
    return found


class Ways:
    """The captions in waves, on one pipeline."""

    def __init__(self, args: argparse.Namespace) -> None:
        world = small_dit.World.open()
        self.args, self.world, self.perception = args, world, WorldPerception()
        captions = held_out_captions(args.captions)
        groups = group_prompts(embed_prompts(captions, world.demo).vectors, args.threshold)
        pipe = small_dit.pipeline(FluxTransformer2DModel.from_pretrained(args.weights), args.shift)
        counted = Counted(pipe.transformer, args.cache == "attention")
        self.waves: list[tuple[Case, list[str]]] = []
        for wave in waves(groups):
            mine = [captions[i] for group in wave for i in group]
            numbers = iter(range(len(mine)))
            renumbered = [[next(numbers) for _ in group] for group in wave]
            self.waves.append((Case(pipe, counted, world.inputs(mine, args.guidance), renumbered), mine))
        if args.cache == "magnitudes":
            first = self.waves[0][0]
            first.measure_ratios(args.steps)
            for case, _ in self.waves:
                case.ratios = first.ratios

    def setting(self) -> float:
        """The cache's threshold, or its interval."""
        if self.args.cache in INTERVALS:
            return float(INTERVALS[self.args.cache][0])
        case = self.waves[0][0]
        alone = case.plan(self.args.steps, 0.0)
        base = case.executions(alone)
        return threshold_for(
            self.args.skipped,
            lambda threshold: case.executions(
                alone, CACHES[self.args.cache](case, threshold, self.args.steps)
            ),
            base,
        )[0]

    def run(self, ratio: float, setting: float | None, seed: int) -> tuple[int, dict[str, float]]:
        """Block executions, and the part of the images that is right by attribute and in all."""
        cost, images, captions = 0, [], []
        for number, (case, mine) in enumerate(self.waves):
            case.noise = seed * 1009 + number
            config = None if setting is None else CACHES[self.args.cache](case, setting, self.args.steps)
            images.append(self.world.images(case.sample(case.plan(self.args.steps, ratio), config)))
            cost += sum(case.counted.steps)
            captions += mine
        right = self.perception.accuracy(torch.cat(images), captions)
        return cost, {name: float(rows.float().mean()) for name, rows in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=Path("runs/small-dit/transformer"))
    parser.add_argument("--cache", choices=CACHES, default="first-block")
    parser.add_argument("--captions", type=int, default=128)
    parser.add_argument("--threshold", type=float, default=0.35, help="of the groups")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--skipped", type=float, default=0.33, help="of the steps, by the cache")
    parser.add_argument("--shift", type=float, default=3.0, help="of the noise schedule")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="also write the rows there as JSON")
    args = parser.parse_args()
    ways = Ways(args)
    setting = ways.setting()
    found: dict[str, Any] = {"setting": setting}
    for name, ratio, cached in (
        ("independent", 0.0, None), ("sharing", args.ratio, None), ("cache", 0.0, setting),
        ("both", args.ratio, setting),
    ):  # fmt: skip
        runs = [ways.run(ratio, cached, seed) for seed in args.seeds]
        right = {key: mean_spread([run[1][key] for run in runs]) for key in runs[0][1]}
        found[name] = {"cost": sum(run[0] for run in runs), "right": right}
        print(name, json.dumps(found[name]), flush=True)
    base = found["independent"]["cost"]
    print(f"\n{args.cache}, setting {setting:.3g}, shift {args.shift:g}, share ratio {args.ratio:g}")
    print("| way | saved | all four right | object | size | position | color |\n" + "| --- " * 7 + "|")
    for name in ("independent", "sharing", "cache", "both"):
        right = found[name]["right"]
        cells = [
            f"{right[key]['mean']:.1%} ± {right[key]['spread']:.1%}"
            for key in ("all", "object", "size", "position", "color")
        ]
        print(f"| {name} | {1 - found[name]['cost'] / base:.1%} | " + " | ".join(cells) + " |")
    multiplied = found["sharing"]["cost"] * found["cache"]["cost"] / base
    print(f"cost / multiplied: {found['both']['cost'] / multiplied:.3f}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
