"""`sagediff tune` by predictions against its search by quality: what each saves at equal quality, and what it spends.

    python benchmarks/tuning_ways.py --out runs/tuning-ways
    python benchmarks/tuning_ways.py --model emoji --ways untrained --metric clip --out runs/tuning-ways-emoji

The search makes and judges images of some held-out captions with every policy that it tries. The way by predictions
runs a few groups of the same captions, once for each seed, and fits how far group predictions lie from the members'.
From each seed's fit come the policies of several budgets. All policies are then measured on other held-out captions:
those by predictions with the images' seed that the fit had, so that the spread is over both. "At equal quality" is the
saving at which the line through the budgets' points has the quality of the search's policy; where all of them have a
better one, it is the largest of their savings, and where all have a worse one there is none. What is finished is kept
in the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from plans import WAYS, Way, by_mean

from sagediff.builtin.world_judges import judge_of
from sagediff.evaluation.error_budget import Choice
from sagediff.evaluation.prediction_gaps import GapRunner, Gaps
from sagediff.evaluation.search import FAMILIES, Search, Trial, tune
from sagediff.evaluation.trials import Metric, PolicyPlans, TrialFile, TrialRunner
from sagediff.files.atomic import write_text
from sagediff.pipelines.placement import open_pipeline
from sagediff.pipelines.run_settings import ModelOptions
from sagediff.plan.sharing import Sharing
from sagediff.prompts.embeddings import embed_prompts

BUDGETS = {"trained": (0.03, 0.05, 0.065, 0.08, 0.13), "untrained": (0.02, 0.03, 0.04, 0.055, 0.075)}
THRESHOLDS = {"demo": (-1.0, 0.0, 0.2, 0.35, 0.5), "emoji": (0.3, 0.5, 0.6, 0.7, 0.8)}
OTHER = Way(ModelOptions(), 20, 4.0, Sharing())  # of a model that is not the demo


def runner_of(pipe: Any, model: str, captions: list[str], way: Way, args: argparse.Namespace) -> TrialRunner:
    vectors = embed_prompts(captions, pipe, None).vectors
    perception = judge_of(model).perception("cpu")
    metric = cast("Metric", args.metric)
    return TrialRunner(pipe, captions, vectors, perception, way.steps, way.guidance, (), metric)


def searched(tuning: TrialRunner, search: Search, folder: Path, name: str) -> tuple[Sharing, int, int]:
    """The policy of the search by quality, the evaluations it took and its trials."""
    about = {
        "captions": tuning.prompts,
        "seeds": tuning.seeds,
        "steps": tuning.num_steps,
        "metric": tuning.metric,
    }
    trials = TrialFile(folder / f"trials-{name}.jsonl", about)

    def told(trial: Trial) -> None:
        print(
            f"{name}: {trial.cost_saving:.1%} saved, {trial.mean:.4f}: {trial.policy}",
            file=sys.stderr,
            flush=True,
        )

    found = tune(search, tuning.saving, trials.remembered(lambda sharing: by_mean(tuning, sharing)), told)
    policies = {trial.policy for trial in found.trials}
    spent = sum(tuning.plan(policy).evaluations for policy in policies) * len(tuning.seeds)
    return found.best.policy, spent, len(policies)


def quality(test: TrialRunner, policy: Sharing, seed: int, kept: Path) -> float:
    """Mean quality of a policy's images on the test captions."""
    known: dict[str, float] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    name = json.dumps([policy.record(), len(test.prompts), test.num_steps, test.metric, seed])
    if name not in known:
        known[name] = replace(test, seeds=(seed,)).measure(policy).quality[0]
        write_text(kept, json.dumps(known, indent=1) + "\n")
    return known[name]


def at_quality(points: Sequence[tuple[float, float]], wanted: float) -> float | None:
    """The saving at a quality, from points (saving, quality): the last crossing of the line through them."""
    ordered = sorted(points)
    for (saving, good), (more, worse) in zip(ordered[-2::-1], ordered[:0:-1], strict=True):
        if worse >= wanted:
            return more
        if good >= wanted:
            return saving + (more - saving) * (good - wanted) / (good - worse)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", choices=("demo", "emoji"))
    parser.add_argument("--ways", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--metric", default="accuracy", choices=("accuracy", "clip"))
    parser.add_argument("--tuning-captions", type=int, default=208)
    parser.add_argument("--tuning-seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--captions", type=int, default=256, help="to measure on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=600, help="of the way by predictions, each seed")
    parser.add_argument("--budget", type=float, default=0.01, help="of the search by quality")
    parser.add_argument("--budgets", type=float, nargs="+", help="of the way by predictions")
    parser.add_argument("--max-trials", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/tuning-ways"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    captions = judge_of(args.model).held_out_captions(args.captions + args.tuning_captions)
    order = np.random.default_rng(0).permutation(len(captions)).tolist()
    measured = [captions[i] for i in sorted(order[: args.captions])]
    others = [captions[i] for i in sorted(order[args.captions :])]
    rows = []
    for name in args.ways:
        way = WAYS[name] if args.model == "demo" else replace(OTHER, model=ModelOptions(args.model))
        pipe = open_pipeline(way.model)
        tuning = replace(runner_of(pipe, args.model, others, way, args), seeds=tuple(args.tuning_seeds))
        test = runner_of(pipe, args.model, measured, way, args)
        grid, ratios = THRESHOLDS[args.model], tuple(k / 20 for k in range(2, 18))
        search = Search(way.sharing, grid, ratios, args.budget, FAMILIES, args.max_trials, (8, 32))
        kept = args.out / f"quality-{name}.json"

        def row(
            words: str, policies: Sequence[Sharing], spent: float, name: str = name, kept: Path = kept,
            test: TrialRunner = test,
        ) -> dict[str, Any]:  # fmt: skip
            found = [quality(test, p, seed, kept) for p, seed in zip(policies, args.seeds, strict=True)]
            savings = [test.plan(policy).sharing_saving for policy in policies]
            made = {
                "way": name, "found": words, "policies": [str(p) for p in policies], "evaluations": spent,
                "saving": float(np.mean(savings)), "saving_spread": _spread(savings),
                "quality": float(np.mean(found)), "quality_spread": _spread(found),
            }  # fmt: skip
            rows.append(made)
            print(json.dumps(made), file=sys.stderr, flush=True)
            write_text(args.out / "rows.json", json.dumps(rows, indent=1) + "\n")
            return made

        none = replace(way.sharing, share_ratio=0.0, rungs=())
        row("independent", [none] * len(args.seeds), 0)
        fits: list[Gaps] = []
        for seed in args.seeds:
            runner = GapRunner(pipe, others, tuning.vectors, way.steps, way.guidance, way.sharing, (seed,))
            gaps = runner.measure(grid, round(ratios[-1] * way.steps) - 1, args.evaluations)
            assert gaps is not None, "no two captions are alike enough"
            fits.append(gaps)
        plan = PolicyPlans(pipe, others, tuning.vectors, way.steps, way.guidance).plan
        choice = Choice(way.sharing, grid, ratios, (8, 32), FAMILIES, tuning.vectors, plan)
        points = []
        for budget in args.budgets or BUDGETS[name]:
            policies = [choice.best(gaps.model, budget).policy for gaps in fits]
            spent = float(np.mean([gaps.evaluations for gaps in fits]))
            made = row(f"by predictions, budget {budget:g}", policies, spent)
            points.append((made["saving"], made["quality"]))
        policy, spent, trials = searched(tuning, search, args.out, name)
        made = row(f"by quality, {trials} trials", [policy] * len(args.seeds), spent)
        equal = at_quality(points, made["quality"])
        rows[-1]["by_predictions_at_equal_quality"] = equal
        write_text(args.out / "rows.json", json.dumps(rows, indent=1) + "\n")
    print("| weights | found | evaluations to find it | saved by sharing | quality |")
    print("| --- | --- | --- | --- | --- |")
    for each in rows:
        print(
            f"| {each['way']} | {each['found']} | {each['evaluations']:,.0f} | {each['saving']:.1%} ± "
            f"{each['saving_spread']:.1%} | {each['quality']:.2%} ± {each['quality_spread']:.2%} |"
        )
    for each in rows:
        if each.get("by_predictions_at_equal_quality") is not None:
            print(
                f"{each['way']}: {each['by_predictions_at_equal_quality']:.1%} by predictions at the quality of "
                f"{each['found']}, which saves {each['saving']:.1%}"
            )


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
