"""How different does fresh noise make the images of equal prompts, and what does it cost? Untrained model.

    python benchmarks/fresh_noise.py --captions 48 --copies 2 --ratios 0.3 0.5 --seeds 0 1 2

Copies of one caption share their early steps; at the branch point every copy except the first gets a part of its
noise anew (`sagediff.SharedSampler(fresh_noise=...)`). Apart: judge-feature cosine distance and mean absolute
pixel difference (0..1) between copies. Cost: the judge's accuracy, over all images and over those that got
fresh noise. Copies sampled from their own seeds are the upper bound.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from world_eval import accuracy, diversity, mean_spread, to_judge

import sagediff
from sagediff.builtin.scenes import judge_dir
from sagediff.builtin.scenes.networks import load_judge
from sagediff.builtin.scenes.scene_perception import held_out_captions

COLUMNS = {
    "feature_distance": "feature distance",
    "of_ceiling": "of the ceiling",
    "pixel_difference": "pixel difference",
    "all": "all right",
    "all_fresh": "all right, fresh copies",
}


def sample(
    pipe: Any, prompts: list[str], groups: list[list[int]], args: argparse.Namespace, ratio: float,
    strength: float, seed: int,
) -> tuple[Tensor, float]:  # fmt: skip
    """Images in the order of the prompts, and the part of the evaluations that was saved."""
    sampler = sagediff.SharedSampler(
        pipe,
        threshold=0.99,
        share_ratio=ratio,
        max_group_size=args.copies,
        fresh_noise=strength,
        repeats="share",
    )
    result = sampler(prompts, num_inference_steps=args.steps, guidance_scale=args.guidance, seed=seed)
    if ratio > 0 and result.plan.groups != groups:
        raise SystemExit("the encoder puts different captions into one group; nothing can be said")
    return to_judge(result.images), result.plan.cost_saving


def figures(judge: Any, images: Tensor, prompts: list[str], groups: list[list[int]]) -> dict[str, float]:
    pairs = [pair for group in groups for pair in combinations(group, 2)]
    first, second = torch.tensor(pairs).T
    fresh = [i for group in groups for i in group[1:]]
    return {
        "feature_distance": diversity(judge, images, groups),
        "pixel_difference": float((images[first] - images[second]).abs().mean()) / 2,
        "all_fresh": accuracy(judge, images[fresh], [prompts[i] for i in fresh])["all"],
        **accuracy(judge, images, prompts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--captions", type=int, default=48)
    parser.add_argument("--copies", type=int, default=2, help="equal prompts per group, 2 or more")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="also write the rows there as JSON, after every row")
    args = parser.parse_args()
    if args.copies < 2:
        parser.error("--copies must be at least 2")
    pipe = sagediff.load_pipeline(args.model)
    pipe.set_progress_bar_config(disable=True)
    judge = load_judge(judge_dir())
    prompts = [caption for caption in held_out_captions(args.captions) for _ in range(args.copies)]
    groups = [list(range(i, i + args.copies)) for i in range(0, len(prompts), args.copies)]

    rows: list[dict[str, Any]] = []
    settings = [(0.0, 0.0)] + [(ratio, strength) for ratio in args.ratios for strength in args.strengths]
    for ratio, strength in settings:
        made = [sample(pipe, prompts, groups, args, ratio, strength, seed) for seed in args.seeds]
        found = [figures(judge, images, prompts, groups) for images, _ in made]
        row: dict[str, Any] = {"ratio": ratio, "strength": strength, "saving": made[0][1]}
        row |= {key: mean_spread([entry[key] for entry in found]) for key in found[0]}
        ceiling = (rows[0] if rows else row)["feature_distance"]["mean"]
        row["of_ceiling"] = {key: value / ceiling for key, value in row["feature_distance"].items()}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
        if args.out:
            args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")

    print(f"{args.captions} captions x {args.copies} copies, {args.steps} steps, seeds {args.seeds}\n")
    print("| ratio | strength | saving | " + " | ".join(COLUMNS.values()) + " |")
    print("|" + " ---: |" * (len(COLUMNS) + 3))
    for row in rows:
        cells = []
        for key in COLUMNS:
            mean, spread = row[key]["mean"], row[key]["spread"]
            plain = key in ("feature_distance", "pixel_difference")
            cells.append(f"{mean:.4f} ± {spread:.4f}" if plain else f"{mean:.1%} ± {spread:.1%}")
        head = ["0", "own seeds"] if row["ratio"] == 0 else [f"{row['ratio']:g}", f"{row['strength']:g}"]
        print("| " + " | ".join([*head, f"{row['saving']:.1%}", *cells]) + " |")


if __name__ == "__main__":
    main()
