"""How long can groups share, by their size and similarity?

    python benchmarks/group_size.py --out runs/group-size

Every group gets its own share ratio, drawn from a grid, so that one run tells about all of them: of the images
whose group shared that long, the fraction on which the judge reads all four attributes as captioned. "any" groups are
of any prompts, the closest first; the others are cliques above the threshold. Ways of sampling are as in `plans.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from plans import WAYS
from world_eval import mean_spread

import sagediff
from sagediff.builtin.scenes.scene_perception import WorldPerception, held_out_captions
from sagediff.evaluation.sampled_images import as_tensor
from sagediff.pipelines.placement import open_pipeline
from sagediff.plan.grouping import group_prompts
from sagediff.plan.levels import part_of_steps
from sagediff.prompts.embeddings import embed_prompts

KINDS: dict[str, tuple[float, int]] = {  # minimum cosine similarity, largest group
    "2, any": (-1.0, 2),
    "8, any": (-1.0, 8),
    "32, any": (-1.0, 32),
    "8, at least 0.35 alike": (0.35, 8),
}
RATIOS = {
    "trained": tuple(k / 16 for k in (8, 9, 10, 11, 12, 13)),
    "untrained": (0.4, 0.45, 0.5, 0.55, 0.6, 0.65),
}


def right_by_ratio(
    pipe: Any, captions: list[str], vectors: Any, way: str, kind: str, seed: int
) -> dict[float, float]:
    """Part of the images that are right, of those that shared so much; single prompts are left out."""
    options, (threshold, size) = WAYS[way], KINDS[kind]
    groups = group_prompts(vectors, threshold, size)
    order = np.random.default_rng(seed).permutation(len(groups))
    ratios = [RATIOS[way][place % len(RATIOS[way])] for place in order]
    rows = 1 if options.guidance == 1 else 2
    plan = sagediff.SharePlan.from_groups(groups, options.steps, ratios, 1.0, rows_per_prompt=rows)
    sampler = sagediff.SharedSampler(pipe, options.sharing)
    images: list[Any] = [None] * len(captions)
    for wave in sampler.waves(captions, plan, options.guidance, seed):
        for index, image in zip(wave.prompts, wave.images, strict=True):
            images[index] = image
    right = WorldPerception().accuracy(as_tensor(images), captions)["all"].float().numpy()
    steps = np.asarray(plan.branch_steps)
    found = {ratio: right[steps == part_of_steps(ratio, options.steps)] for ratio in RATIOS[way]}
    return {ratio: float(values.mean()) for ratio, values in found.items() if len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/group-size"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for way in args.ways:
        pipe = open_pipeline(WAYS[way].model)
        captions = held_out_captions(args.captions)
        vectors = embed_prompts(captions, pipe, None).vectors
        for kind in KINDS:
            runs = []
            for seed in args.seeds:
                runs.append(right_by_ratio(pipe, captions, vectors, way, kind, seed))
                print(way, kind, seed, runs[-1], file=sys.stderr, flush=True)
            seen = {ratio: [run[ratio] for run in runs if ratio in run] for ratio in RATIOS[way]}
            right = {ratio: mean_spread(values) for ratio, values in seen.items() if values}
            rows.append({"way": way, "groups": kind, "right": right})
            (args.out / "group-size.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    for way in args.ways:
        print(f"\n| {way}, groups of | " + " | ".join(f"{ratio:.0%}" for ratio in RATIOS[way]) + " |")
        print("| --- " * (1 + len(RATIOS[way])) + "|")
        for row in rows:
            if row["way"] == way:
                cells = [
                    f"{right['mean']:.1%} ± {right['spread']:.1%}" if right else "not seen"
                    for right in (row["right"].get(ratio) for ratio in RATIOS[way])
                ]
                print(f"| {row['groups']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
