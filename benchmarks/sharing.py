"""Sharing with the base model, untrained for it: saving against accuracy and diversity, beside independent sampling.

    python benchmarks/sharing.py --captions 128 --steps 20 --ratios 0.3 0.4 0.5 --seeds 0 1 2

Every row of the table is made in one run, on the same captions, groups, seeds and guidance. The schedule decides
which noise levels the shared steps cover, so there is a part for each: all rows for the first; independent sampling and
sharing without guidance in the shared steps for the others. "Saving" is against guidance in every step, so it
counts guidance left out; compare with the rows "independent, guidance off for the first ..." to see sharing's part.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from world_eval import accuracy, diversity, mean_spread, to_judge

import sagediff
from sagediff.builtin.scenes import judge_dir
from sagediff.builtin.scenes.networks import Judge, load_judge
from sagediff.builtin.scenes.scene_perception import held_out_captions


def sample(
    pipe: Any, captions: list[str], args: argparse.Namespace, ratio: float, shared: float | None, seed: int
):
    """One row's images, in the order of the captions, and the plan that made them."""
    sampler = sagediff.SharedSampler(
        pipe,
        threshold=args.threshold,
        share_ratio=ratio,
        max_group_size=args.max_group_size,
        shared_guidance=shared,
    )
    result = sampler(captions, num_inference_steps=args.steps, guidance_scale=args.guidance, seed=seed)
    return to_judge(result.images), result.plan


def early_guidance_off(
    pipe: Any, captions: list[str], args: argparse.Namespace, ratio: float, seed: int
) -> Tensor:
    """Independent sampling without guidance in the first part of the steps (arXiv 2404.07724)."""
    images = []
    for start in range(0, len(captions), 64):
        part = captions[start : start + 64]
        plan = sagediff.SharePlan.from_groups(
            [[i] for i in range(len(part))], args.steps, 0.0, unguided_steps=round(ratio * args.steps)
        )
        with sagediff.shared_sampling(pipe, plan):
            images += pipe(
                part, num_inference_steps=args.steps, guidance_scale=args.guidance,
                generator=plan.generators(seed=seed * 100_003 + start),
            ).images  # fmt: skip
    return to_judge(images)


def measure(
    pipe: Any,
    judge: Judge,
    captions: list[str],
    groups: list[list[int]],
    args: argparse.Namespace,
    scheduler: str,
    everything: bool,
) -> list[dict[str, Any]]:
    """The rows of one schedule."""
    rows: list[dict[str, Any]] = []

    def record(name: str, saving: float, made: list[Tensor]) -> None:
        figures = [
            accuracy(judge, images, captions) | {"diversity": diversity(judge, images, groups)}
            for images in made
        ]
        spread = {k: mean_spread([f[k] for f in figures]) for k in figures[0]}
        rows.append({"scheduler": scheduler, "method": name, "saving": saving} | spread)
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)

    record("independent", 0.0, [sample(pipe, captions, args, 0.0, None, s)[0] for s in args.seeds])
    for shared in (1.0, None) if everything else (1.0,):
        for ratio in args.ratios:
            made = [sample(pipe, captions, args, ratio, shared, s) for s in args.seeds]
            words = "the pipeline's guidance" if shared is None else f"guidance {shared:g} while shared"
            record(
                f"shared, ratio {ratio:g}, {words}", made[0][1].cost_saving, [images for images, _ in made]
            )
    for ratio in args.ratios if everything else ():
        record(
            f"independent, guidance off for the first {ratio:.0%}",
            round(ratio * args.steps) / args.steps / 2,
            [early_guidance_off(pipe, captions, args, ratio, s) for s in args.seeds],
        )
    return rows


def threshold_for(vectors: Any, members: float, max_group_size: int) -> float:
    """The threshold at which groups have about so many members on average, to 0.01."""
    low, high = 0, 100
    while high - low > 1:
        middle = (low + high) // 2
        groups = sagediff.group_prompts(vectors, middle / 100, max_group_size)
        low, high = (middle, high) if len(vectors) / len(groups) > members else (low, middle)
    return high / 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--captions", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--schedulers", nargs="+", default=["dpm++-beta", "dpm++"])
    parser.add_argument("--members", type=float, default=3.0, help="prompts per group, sets the threshold")
    parser.add_argument("--threshold", type=float, help="in place of --members")
    parser.add_argument("--max-group-size", type=int, default=8)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.4, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="also write the rows there as JSON")
    args = parser.parse_args()
    judge = load_judge(judge_dir())
    captions = held_out_captions(args.captions)
    rows: list[dict[str, Any]] = []
    for number, scheduler in enumerate(args.schedulers):
        pipe = sagediff.load_pipeline(args.model, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        vectors = sagediff.embed_prompts(captions, pipe).vectors
        if args.threshold is None:
            args.threshold = threshold_for(vectors, args.members, args.max_group_size)
        groups = sagediff.group_prompts(vectors, args.threshold, args.max_group_size)
        print(
            f"{scheduler}: {len(captions)} captions in {len(groups)} groups, threshold {args.threshold}",
            file=sys.stderr,
        )
        rows += measure(pipe, judge, captions, groups, args, scheduler, everything=number == 0)

    keys = ["all", "position", "object", "size", "color", "diversity"]
    print("| schedule | method | saving | " + " | ".join(keys) + " |\n|" + " --- |" * (len(keys) + 3))
    for row in rows:
        cells = []
        for key in keys:
            mean, spread = row[key]["mean"], row[key]["spread"]
            cells.append(f"{mean:.3f} ± {spread:.3f}" if key == "diversity" else f"{mean:.1%} ± {spread:.1%}")
        print(f"| {row['scheduler']} | {row['method']} | {row['saving']:.1%} | " + " | ".join(cells) + " |")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
