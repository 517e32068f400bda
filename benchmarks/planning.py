"""How long does planning take, from given embeddings to a share plan with its cost, at several thresholds?

    python benchmarks/planning.py --prompts 1600
    python benchmarks/planning.py --file genai_bench.txt

Embeddings are `grouping.synthetic`'s, or those of the file's prompts by the built-in model's text encoder. Embedding
depends on the text encoder and is not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from grouping import synthetic

import sagediff
from sagediff.prompts.image_list import prompt_texts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=1600)
    parser.add_argument("--file", type=Path, help="real prompts instead of synthetic embeddings")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--share-ratio", type=float, default=0.4)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument("--repeats", type=int, default=3, help="the median is reported")
    parser.add_argument("--markdown", action="store_true", help="print a table instead of JSON")
    args = parser.parse_args()
    if args.file is None:
        vectors = synthetic(args.prompts, args.dim, args.seed)
    else:
        vectors = sagediff.embed_prompts(prompt_texts(args.file), sagediff.load_pipeline("demo")).vectors
        args.prompts = len(vectors)
    rows = []
    for threshold in args.thresholds:
        grouping, planning = [], []
        for _ in range(args.repeats):
            start = time.perf_counter()
            groups = sagediff.group_prompts(vectors, threshold)
            grouped = time.perf_counter()
            plan = sagediff.SharePlan.from_groups(groups, args.steps, args.share_ratio, shared_guidance=1.0)
            saving = plan.cost_saving
            planning.append(time.perf_counter() - grouped)
            grouping.append(grouped - start)
        rows.append(
            {
                "threshold": threshold,
                "groups": len(groups),
                "prompts_a_group": args.prompts / len(groups),
                "cost_saving": saving,
                "seconds_group": statistics.median(grouping),
                "seconds_plan": statistics.median(planning),
            }
        )
    if not args.markdown:
        settings = {"prompts": args.prompts, "steps": args.steps, "share_ratio": args.share_ratio}
        print(json.dumps(settings | {"thresholds": rows}, indent=2))
        return
    print(f"{args.prompts} prompts, {args.steps} steps, share ratio {args.share_ratio:g}\n")
    print("| threshold | groups | prompts per group | saving | group, s | plan, s |\n|" + " ---: |" * 6)
    for row in rows:
        print(
            f"| {row['threshold']:g} | {row['groups']} | {row['prompts_a_group']:.2f} | {row['cost_saving']:.1%} "
            f"| {row['seconds_group']:.3f} | {row['seconds_plan']:.4f} |"
        )


if __name__ == "__main__":
    main()
