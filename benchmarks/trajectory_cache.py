"""What does a trajectory cache save on a stream of prompts, and cost in accuracy, with grouping and without?

    OMP_NUM_THREADS=1 python benchmarks/trajectory_cache.py --out runs/trajectory-cache.json

Requests are for held-out captions of the built-in world: a few often, most seldom (Zipf). They come in
windows, as a server's batcher makes them. Grouping alone shares within a window; the cache alone replays what an
earlier request recorded; with both, what is not found in the cache is grouped and then recorded. Every arm gets the
same stream and seeds, the shipped LoRA, and no guidance; saved is counted from independent sampling of as many steps,
also without guidance. The cache's threshold is a cosine to a centroid, which is nearer to its members than they are
to one another.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from world_eval import accuracy, built_in, mean_spread

from sagediff import SharePlan, embed_prompts, group_prompts, shared_sampling
from sagediff.builtin.scenes import judge_dir, lora_dir
from sagediff.builtin.scenes.networks import load_judge
from sagediff.builtin.scenes.scene_perception import held_out_captions
from sagediff.pipelines.placement import open_pipeline
from sagediff.plan.sharing import Sharing
from sagediff.serving.engine.cache_files import CacheKey
from sagediff.serving.engine.trajectory_cache import TrajectoryCache, config_text

GUIDANCE = 4.0  # what the pipeline is told; no step runs it


@dataclass(frozen=True)
class Arm:
    """What is compared: whether a window is grouped, and from which cosine on a trajectory is replayed."""

    grouping: bool
    cache_threshold: float | None
    variety: int = 1

    @property
    def words(self) -> str:
        parts = ["grouping"] * self.grouping
        if self.cache_threshold is not None:
            parts.append(f"cache from {self.cache_threshold:g}")
        more = f", {self.variety} trajectories a region" if self.variety > 1 else ""
        return (" and ".join(parts) or "independent") + more


def arms(thresholds: list[float]) -> list[Arm]:
    cached = [Arm(grouping, threshold) for grouping in (False, True) for threshold in thresholds]
    return [Arm(False, None), Arm(True, None), *cached, Arm(True, thresholds[-1], 3)]


def zipf_stream(captions: int, requests: int, exponent: float, seed: int) -> np.ndarray:
    """(requests,) caption numbers; the k-th most wanted is asked for in proportion to k^-exponent."""
    random = np.random.default_rng(seed)
    weights = np.arange(1, captions + 1) ** -exponent
    return random.permutation(captions)[random.choice(captions, requests, p=weights / weights.sum())]


def key_of(pipe: Any, args: argparse.Namespace) -> CacheKey:
    scheduler, ratio = pipe.scheduler, args.shared / args.steps
    sharing = Sharing(args.threshold, ratio, unguided=1.0, handover_noise=1.0)
    return CacheKey(
        tenant="benchmark", model="demo", lora="shipped", scheduler=type(scheduler).__name__,
        scheduler_config=config_text(scheduler.config), num_steps=args.steps, branch_step=args.shared,
        guidance_scale=GUIDANCE, sharing=json.dumps(sharing.record()), height=64, width=64,
        dtype=str(pipe.unet.dtype),
    )  # fmt: skip


class Server:
    """One arm and its cache; takes windows of requests."""

    def __init__(self, pipe: Any, arm: Arm, args: argparse.Namespace) -> None:
        self.pipe, self.arm, self.args = pipe, arm, args
        self.key = key_of(pipe, args)
        self.cache = TrajectoryCache(int(args.megabytes * 2**20), variety=arm.variety)
        self.hits = self.evaluations = 0

    def window(self, prompts: list[str], vectors: np.ndarray, seeds: list[int]) -> torch.Tensor:
        """Images (n, 3, 64, 64) in [0, 1] of the prompts with embeddings (n, D) and seeds of their own."""
        args, count = self.args, len(prompts)
        found: dict[int, Any] = {}
        if self.arm.cache_threshold is not None:
            for i in range(count):
                near = self.cache.find(self.key, vectors[i], self.arm.cache_threshold)
                if (entry := self.cache.pick(near, seeds[i])) is not None:
                    found[i] = entry
        missed = [i for i in range(count) if i not in found]
        groups = [[i] for i in missed]
        if self.arm.grouping and missed:
            made = group_prompts(vectors[missed], threshold=args.threshold, max_group_size=8)
            groups = [[missed[i] for i in group] for group in made]
        plan = SharePlan.from_groups(
            [*groups, *([i] for i in found)], args.steps, args.shared / args.steps, 1.0, args.steps
        )
        plan = replace(plan, replayed_steps=tuple(args.shared if i in found else 0 for i in range(count)))
        noise = list(seeds)
        for group in groups:
            for i in group:
                noise[i] = seeds[group[0]]
        for i, entry in found.items():
            noise[i] = entry.noise_seed
        records = self.arm.cache_threshold is not None
        with shared_sampling(
            self.pipe, plan, member_noise=seeds, handover_noise=1.0,
            record={group[0]: args.shared for group in groups} if records else (),
            replay={i: entry.trajectory for i, entry in found.items()},
        ) as run:  # fmt: skip
            images = self.pipe(
                prompts, num_inference_steps=args.steps, guidance_scale=GUIDANCE, output_type="pt",
                generator=[torch.Generator().manual_seed(seed) for seed in noise],
            ).images  # fmt: skip
        if run.evaluations != run.plan.evaluations:
            raise SystemExit("what was run is not what was planned")
        for group in groups if records else []:
            centroid = vectors[group].mean(axis=0)
            self.cache.put(self.key, centroid, noise[group[0]], run.recorded[group[0]], args.shared)
        self.hits += len(found)
        self.evaluations += run.evaluations
        return images


def measure(pipe: Any, judge: Any, vectors: np.ndarray, captions: list[str], arm: Arm, seed: int,
            args: argparse.Namespace) -> dict[str, float]:  # fmt: skip
    stream = zipf_stream(len(captions), args.requests, args.exponent, seed)
    server = Server(pipe, arm, args)
    images = []
    for start in range(0, len(stream), args.window):
        wanted = stream[start : start + args.window]
        seeds = [seed * 1_000_003 + start + i for i in range(len(wanted))]
        images.append(server.window([captions[i] for i in wanted], vectors[wanted], seeds))
    right = accuracy(judge, torch.cat(images) * 2 - 1, [captions[i] for i in stream])
    alone = len(stream) * args.steps
    return {
        "saved": 1 - server.evaluations / alone,
        "evaluations_per_image": server.evaluations / len(stream),
        "hits": server.hits / len(stream),
        "right": right["all"],
        "entries": float(len(server.cache)),
        "megabytes": server.cache.nbytes / 2**20,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | saved | evaluations per image | replayed | all four right |", "| --- |" + " ---: |" * 4]
    for row in rows:
        figures = {
            name: mean_spread([found[name] for found in row["seeds"].values()])
            for name in next(iter(row["seeds"].values()))
        }
        saved, each, hits, right = (
            figures[name] for name in ("saved", "evaluations_per_image", "hits", "right")
        )
        lines.append(
            f"| {row['arm']} | {saved['mean']:.1%} ± {saved['spread']:.1%} | {each['mean']:.2f} "
            f"| {hits['mean']:.1%} | {right['mean']:.1%} ± {right['spread']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=713)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--window", type=int, default=16, help="requests that are served together")
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--shared", type=int, default=4, help="steps that are shared or replayed")
    parser.add_argument("--threshold", type=float, default=0.35, help="of grouping")
    parser.add_argument("--cache-thresholds", type=float, nargs="+", default=[0.35, 0.5, 0.8])
    parser.add_argument("--megabytes", type=float, default=64.0, help="most that the cache holds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="also write the figures there as JSON, after every seed")
    args = parser.parse_args()
    pipe = open_pipeline(built_in(lora_dir(), device="cpu"))
    judge = load_judge(judge_dir())
    captions = held_out_captions(args.captions)
    vectors = embed_prompts(captions, pipe).vectors
    rows: list[dict[str, Any]] = [
        {"arm": arm.words, **asdict(arm), "seeds": {}} for arm in arms(args.cache_thresholds)
    ]
    for seed in args.seeds:  # seed by seed, so that a stop leaves whole comparisons
        for row, arm in zip(rows, arms(args.cache_thresholds), strict=True):
            figures = measure(pipe, judge, vectors, captions, arm, seed, args)
            row["seeds"][seed] = figures
            print(
                f"seed {seed}, {arm.words}: {json.dumps({k: round(v, 4) for k, v in figures.items()})}",
                file=sys.stderr,
            )
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"{args.requests} requests, windows of {args.window}, {args.steps} steps, seeds {args.seeds}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
