"""Sharing with the base model, untrained for it: saving against accuracy and diversity, beside independent sampling.

    python benchmarks/sharing.py --captions 512 --steps 20 --ratios 0.3 0.4 0.5 --seeds 0 1 2

Every row of the table is made in one run, on the same captions, groups, seeds, solver and guidance.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from world_eval import accuracy, diversity, held_out_captions, mean_spread, to_judge

import sagediff
from sagediff.builtin import judge_dir
from sagediff.builtin.networks import load_judge


def sample(
    pipe: Any, captions: list[str], args: argparse.Namespace, ratio: float, shared: float | None, seed: int
):
    """One row's pictures, in the order of the captions, and the plan that made them."""
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
    """Independent sampling on the conditional output alone for the first part of the steps (arXiv 2404.07724)."""
    # groups of one caption twice would cost as much; a plan of pairs of equal prompts gives exactly this picture
    doubled = [caption for caption in captions for _ in range(2)]
    images = []
    for start in range(0, len(doubled), 64):
        part = doubled[start : start + 64]
        groups = [[i, i + 1] for i in range(0, len(part), 2)]
        plan = sagediff.SharePlan.from_groups(
            groups, num_steps=args.steps, share_ratio=ratio, shared_guidance=1.0
        )
        with sagediff.shared_sampling(pipe, plan):
            made = pipe(
                part, num_inference_steps=args.steps, guidance_scale=args.guidance,
                generator=plan.generators(seed=seed + start),
            ).images  # fmt: skip
        images += made[::2]
    return to_judge(images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--threshold", type=float, default=0.45)
    parser.add_argument("--max-group-size", type=int, default=8)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.4, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="also write the rows there as JSON")
    args = parser.parse_args()
    pipe = sagediff.load_pipeline(args.model)
    pipe.set_progress_bar_config(disable=True)
    judge = load_judge(judge_dir())
    captions = held_out_captions(args.captions)
    groups = (
        sagediff.SharedSampler(pipe, threshold=args.threshold, max_group_size=args.max_group_size)
        .plan(captions, args.steps)
        .groups
    )
    print(f"{len(captions)} captions in {len(groups)} groups", file=sys.stderr)

    rows: list[dict[str, Any]] = []

    def record(name: str, saving: float, pictures: list[Tensor]) -> None:
        figures = [
            accuracy(judge, images, captions) | {"diversity": diversity(judge, images, groups)}
            for images in pictures
        ]
        rows.append(
            {"method": name, "saving": saving} | {k: mean_spread([f[k] for f in figures]) for k in figures[0]}
        )
        print(json.dumps(rows[-1]), file=sys.stderr)

    record("independent", 0.0, [sample(pipe, captions, args, 0.0, None, s)[0] for s in args.seeds])
    for ratio in args.ratios:
        record(
            f"independent, guidance off for the first {ratio:.0%}",
            round(ratio * args.steps) / args.steps / 2,
            [early_guidance_off(pipe, captions, args, ratio, s) for s in args.seeds],
        )
    for shared in (None, 1.0):
        for ratio in args.ratios:
            made = [sample(pipe, captions, args, ratio, shared, s) for s in args.seeds]
            words = "the pipeline's guidance" if shared is None else f"guidance {shared:g} while shared"
            record(
                f"shared, ratio {ratio:g}, {words}", made[0][1].cost_saving, [images for images, _ in made]
            )

    keys = ["all", "position", "object", "size", "color", "diversity"]
    print("| method | saving | " + " | ".join(keys) + " |\n|" + " --- |" * (len(keys) + 2))
    for row in rows:
        cells = []
        for key in keys:
            mean, spread = row[key]["mean"], row[key]["spread"]
            cells.append(f"{mean:.3f} ± {spread:.3f}" if key == "diversity" else f"{mean:.1%} ± {spread:.1%}")
        print(f"| {row['method']} | {row['saving']:.1%} | " + " | ".join(cells) + " |")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
