"""Does wall clock follow evaluations? Shared and independent sampling in turn, in one process.

    python benchmarks/speed.py --prompts 128 --steps 30 --repeats 3

Reports the ratio (seconds saved / seconds) / (evaluations saved / evaluations); machines differ, ratios less. Guidance
is off in the shared steps, and what that leaves out is counted as saved too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import sagediff
from sagediff.builtin.scenes.scene_perception import held_out_captions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threshold", type=float, default=0.45)
    parser.add_argument("--share-ratio", type=float, default=0.4)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    pipe = sagediff.load_pipeline(args.model)
    pipe.set_progress_bar_config(disable=True)
    captions = held_out_captions(args.prompts)
    seconds: dict[float, list[float]] = {0.0: [], args.share_ratio: []}
    plans = {}
    for repeat in range(args.repeats + 1):
        for ratio in seconds:
            sampler = sagediff.SharedSampler(pipe, threshold=args.threshold, share_ratio=ratio)
            start = time.perf_counter()
            plans[ratio] = sampler(captions, num_inference_steps=args.steps, seed=repeat).plan
            if repeat:  # the first round warms up
                seconds[ratio].append(time.perf_counter() - start)
    wall = [1 - shared / alone for alone, shared in zip(seconds[0.0], seconds[args.share_ratio], strict=True)]
    saving = plans[args.share_ratio].cost_saving
    print(
        json.dumps(
            {
                "prompts": args.prompts,
                "groups": len(plans[args.share_ratio].groups),
                "evaluations_saved": saving,
                "wall_clock_saved": {"each": wall, "median": statistics.median(wall)},
                "ratio": statistics.median(wall) / saving,
                "seconds": {str(k): v for k, v in seconds.items()},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
