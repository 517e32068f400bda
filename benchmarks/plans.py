"""Fixed, adaptive and tree plans at equal quality: each tuned on some captions, then run on other, held-out ones.

    python benchmarks/plans.py --out runs/plans
    python benchmarks/plans.py --ways trained --copies 4 --out runs/plans-copies

For each kind of plan, `sagediff tune`'s search finds the one that saves most while accuracy stays within the budget
of independent sampling, on some held-out captions (`--tune-on training`: on ones of training, where everything looks
safer). What it found is then measured on others, three seeds. "given" is a fixed split at the threshold and group
size of docs/results.md, its share ratio searched; "fixed" has threshold, share ratio and group size searched;
"together" gives every group a branch point by its least similar pair; "tree" splits groups into closer ones, so that
all share the first steps and close prompts more. With `--copies` every caption is there that many times, as when
several images per prompt are wanted; "apart" is how different those images are in the judge's features, and tuning
keeps a quarter of what independent sampling has. Trials are kept in the folder: the same command continues after a
stop.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from world_eval import built_in, mean_spread

from sagediff.builtin.scenes import lora_dir
from sagediff.builtin.scenes.scene_perception import WorldPerception, held_out_captions, reference_features
from sagediff.builtin.scenes.world import held_out_scenes, training_scenes
from sagediff.evaluation.reference import Reference
from sagediff.evaluation.search import FAMILIES, Measured, Search, Trial, tune
from sagediff.evaluation.trials import EQUAL, TrialFile, TrialRunner
from sagediff.files.atomic import write_text
from sagediff.pipelines.placement import open_pipeline
from sagediff.pipelines.run_settings import ModelOptions
from sagediff.plan.sharing import Sharing
from sagediff.prompts.embeddings import embed_prompts

THRESHOLDS = (-1.0, 0.0, 0.2, 0.35, 0.5)
SIZES = (8, 32)
PLANS = ("given", *FAMILIES)
GIVEN = 0.35  # of docs/results.md, with groups of up to 8
FIGURES = {"right": "accuracy_all", "frechet": "frechet", "clip": "clip_score", "apart": "diversity"}


@dataclass(frozen=True)
class Way:
    """A way to sample: weights and solver, steps, guidance, and what of the sharing is not searched."""

    model: ModelOptions
    steps: int
    guidance: float
    sharing: Sharing


WAYS = {
    "trained": Way(built_in(lora_dir()), 16, 1.0, Sharing(handover_noise=1.0)),
    "untrained": Way(built_in(scheduler="dpm++-beta"), 20, 4.0, Sharing()),
}


def split(captions: int, tuning: int, tune_on: str) -> tuple[list[str], list[str]]:
    """Held-out captions to measure on, and others to tune on: as many as wanted, or what is left."""
    measured = held_out_captions(captions)
    scenes = held_out_scenes() if tune_on == "held-out" else training_scenes()
    others = [scene.caption for scene in scenes if scene.caption not in set(measured)]
    order = np.random.default_rng(0).permutation(len(others))[:tuning]
    return measured, [others[i] for i in sorted(order)]


def by_mean(runner: TrialRunner, sharing: Sharing) -> Measured:
    """Without the quality of each caption: the mean alone decides, since what is found is measured on others anyway."""
    return replace(runner.measure(sharing), each=())


def runner_of(pipe: Any, captions: list[str], way: Way, seeds: list[int]) -> TrialRunner:
    vectors = embed_prompts(captions, pipe, None).vectors
    return TrialRunner(
        pipe, captions, vectors, WorldPerception(), way.steps, way.guidance, tuple(seeds), "accuracy"
    )


def figures(runner: TrialRunner, sharing: Sharing, kept: Path) -> dict[str, Any]:
    """Savings, accuracy, Frechet distance, CLIP score and distance of equal captions' images over the seeds."""
    known: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    name = json.dumps([sharing.record(), len(runner.prompts), len(runner.copies), runner.seeds])
    if name not in known:
        plan = runner.plan(sharing)
        known[name] = {"saving": plan.cost_saving, "sharing_saving": plan.sharing_saving}
        real = Reference(reference_features(runner.prompts), paired=True)
        records = runner.figures(sharing, real)
        for short, figure in FIGURES.items():
            if all(record[figure] is not None for record in records):
                known[name][short] = mean_spread([record[figure] for record in records])
        write_text(kept, json.dumps(known, indent=1) + "\n")
    return known[name]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--thresholds", type=float, nargs="+", default=list(THRESHOLDS))
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--tune-on", default="held-out", choices=("held-out", "training"))
    parser.add_argument("--tuning-captions", type=int, default=208)
    parser.add_argument("--tuning-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument(
        "--copies", type=int, default=1, help="images per caption; of the captions fewer then"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-trials", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/plans"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.ways:
        way = replace(WAYS[name], sharing=replace(WAYS[name].sharing, repeats="share"))
        pipe = open_pipeline(way.model)
        measured, others = split(
            args.captions // args.copies, args.tuning_captions // args.copies, args.tune_on
        )
        tuning = runner_of(pipe, others * args.copies, way, args.tuning_seeds)
        about = {"captions": tuning.prompts, "seeds": tuning.seeds}
        trials = TrialFile(args.out / f"trials-{name}.jsonl", about).remembered(partial(by_mean, tuning))
        test = runner_of(pipe, measured * args.copies, way, args.seeds)
        thresholds = tuple(args.thresholds) + ((EQUAL,) if args.copies > 1 else ())
        steps = way.steps
        ratios = tuple(k / steps for k in range(steps // 10, steps * 9 // 10 + 1, max(1, steps // 16)))
        for family in ("independent", *args.plans):
            if family == "independent":
                sharing = replace(way.sharing, share_ratio=0.0)
            else:
                grid, sizes = ((GIVEN,), ()) if family == "given" else (thresholds, SIZES)
                searched: tuple[Any, ...] = tuple(
                    dict.fromkeys(("fixed", family if family in FAMILIES else "fixed"))
                )
                search = Search(way.sharing, grid, ratios, args.budget, searched, args.max_trials, sizes)

                def told(trial: Trial, name: str = name, family: str = family) -> None:
                    print(
                        f"{name}, {family}: {trial.cost_saving:.1%} saved, {trial.mean:.2%} right, "
                        f"{trial.apart or 0:.4f} apart, {trial.policy}",
                        file=sys.stderr, flush=True,
                    )  # fmt: skip

                sharing = tune(search, tuning.saving, trials, told).best.policy
            row = {"way": name, "plan": family, "policy": sharing.record(), "words": str(sharing)}
            rows.append(row | figures(test, sharing, args.out / f"figures-{name}.json"))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            write_text(args.out / "plans.json", json.dumps(rows, indent=2) + "\n")
    apart_title, apart_rule = ("apart | ", "--- | ") if args.copies > 1 else ("", "")
    print(
        "| weights | plan | found | saved | by sharing alone | all four right | Frechet distance | CLIP score | "
        + apart_title
    )
    print(f"| --- | --- | --- | --- | --- | --- | --- | --- | {apart_rule}")
    for row in rows:
        right, distance, clip = row["right"], row["frechet"], row["clip"]
        apart = f" {row['apart']['mean']:.4f} ± {row['apart']['spread']:.4f} |" if "apart" in row else ""
        print(
            f"| {row['way']} | {row['plan']} | {row['words']} | {row['saving']:.1%} | {row['sharing_saving']:.1%} "
            f"| {right['mean']:.1%} ± {right['spread']:.1%} | {distance['mean']:.3f} ± {distance['spread']:.3f} "
            f"| {clip['mean']:.4f} ± {clip['spread']:.4f} |{apart}"
        )


if __name__ == "__main__":
    main()
