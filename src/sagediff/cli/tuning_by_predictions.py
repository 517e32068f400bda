"""The work of `sagediff tune --by predictions`: ask the model how long prompts may share, write the policy file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast

from sagediff.cli.comparison_options import MeasuringOptions, TuneOptions, numbers
from sagediff.errors import InputError
from sagediff.evaluation.error_budget import Choice, Chosen
from sagediff.evaluation.prediction_gaps import GapRunner, Gaps
from sagediff.evaluation.search import Family, Search
from sagediff.evaluation.trials import PolicyPlans, equal_prompts, repetitions
from sagediff.files.atomic import at_work, sweep, write_text
from sagediff.files.digest import file_digest
from sagediff.pipelines.placement import open_pipeline
from sagediff.pipelines.run_settings import RunSettings
from sagediff.plan.levels import part_of_steps
from sagediff.plan.share_plan import SharePlan
from sagediff.progress import stderr_progress
from sagediff.prompts.embeddings import embed_prompts

_EVALUATIONS = 600
_RATIOS = tuple(k / 20 for k in range(1, 17))


def tune_by_predictions(
    settings: RunSettings, options: TuneOptions, measuring: MeasuringOptions, prompts: Path | None
) -> None:
    """Measure, fit, choose, write the policy file; what was found goes to stdout as JSON.

    Args:
        settings: its sharing says how shared steps are guided; its threshold and share ratio, what error is usual.
        prompts: file of prompts; None for held-out captions of a built-in model.

    Raises:
        InputError: a value out of range, an option that belongs to judging, or copies that are to share.
        OutputError: the file cannot be written.
    """
    _check(options, measuring)
    texts = measuring.prompts(prompts, settings.model, held_out=256)
    if equal_prompts(texts) and settings.sharing.repeats_may_share:
        raise InputError(
            "some prompts repeat, and copies that share (--repeats share) have equal predictions, which cannot tell "
            "whether their images stay apart: tune --by quality, or leave copies separate"
        )
    search = _grid(settings, options)
    seeds = measuring.seeds_or((0,))
    pipe = open_pipeline(settings.model)
    steps, scale = settings.sampling.num_inference_steps, settings.sampling.guidance_scale
    vectors = embed_prompts(texts, pipe, settings.sampling.encoder).vectors
    first = [numbers[0] for numbers in repetitions(texts)]
    once = vectors[first]
    runner = GapRunner(pipe, [texts[i] for i in first], once, steps, scale, settings.sharing, seeds)
    plan = PolicyPlans(pipe, texts, vectors, steps, scale).plan
    plan_once = PolicyPlans(pipe, [texts[i] for i in first], once, steps, scale).plan
    choice = Choice(
        settings.sharing, search.thresholds, search.ratios, search.sizes, search.families, once, plan_once
    )
    sweep(options.out.parent, f"{options.out.name}.")
    with at_work():
        gaps = _measured(runner, search, steps, options.evaluations or _EVALUATIONS)
        found, budget = _chosen(settings, options, choice, gaps)
        _write(settings, options, seeds, plan(found.policy), gaps, found, budget)


def _check(options: TuneOptions, measuring: MeasuringOptions) -> None:
    named = {
        "--metric": options.metric,
        "--apart": options.apart,
        "--confidence": options.confidence,
        "--features": measuring.features,
        "--clip": measuring.clip,
    }
    if given := [name for name, value in named.items() if value is not None]:
        raise InputError(
            f"{', '.join(given)} is for judging images, of which --by predictions makes none; leave it out, or tune "
            f"--by quality"
        )
    if options.budget is not None and not options.budget >= 0:
        raise InputError(f"--budget must be at least 0, got {options.budget}")


def _grid(settings: RunSettings, options: TuneOptions) -> Search:
    """The grids, checked as those of a search are; the model's own split is in them unless others were named."""
    own = settings.sharing
    ratios, sizes = {*_RATIOS, own.share_ratio} - {0.0}, {8, 32, own.max_group_size} - {1}
    return Search(
        own,
        options.thresholds(settings.model, own.threshold),
        numbers("--share-ratio", options.share_ratio, float) or tuple(sorted(ratios)),
        families=cast("tuple[Family, ...]", tuple(options.families.split(","))),
        sizes=numbers("--max-group-size", options.max_group_size, int) or tuple(sorted(sizes)),
    )


def _measured(runner: GapRunner, search: Search, num_steps: int, evaluations: int) -> Gaps | None:
    last = max(part_of_steps(search.ratios[-1], num_steps), 1) - 1
    with stderr_progress("groups looked at") as bar:
        task = bar.add_task("", total=None)
        return runner.measure(search.thresholds, last, evaluations, lambda n: bar.advance(task, n))


def _chosen(
    settings: RunSettings, options: TuneOptions, choice: Choice, gaps: Gaps | None
) -> tuple[Chosen, float | None]:
    """The policy, and the budget that it keeps; sharing nothing where no two prompts are alike enough."""
    if gaps is None:
        return Chosen(choice.nothing, choice.alone.cost_saving, 0.0), options.budget
    budget = options.budget
    if budget is None:
        budget = choice.error_of(gaps.model, settings.sharing)
    return choice.best(gaps.model, budget), budget


def _write(
    settings: RunSettings,
    options: TuneOptions,
    seeds: tuple[int, ...],
    plan: SharePlan,
    gaps: Gaps | None,
    found: Chosen,
    budget: float | None,
) -> None:
    lora = settings.model.lora
    fit = {} if gaps is None else {"exponent": gaps.model.exponent, "groups": gaps.groups}
    record = found.policy.record() | {
        "tuned": {
            "by": "predictions",
            "model": Path(settings.model.name).name,
            "num_steps": plan.num_steps,
            "scheduler": settings.model.scheduler,
            "budget": budget,
            "error": found.error,
            "evaluations": 0 if gaps is None else gaps.evaluations,
            **fit,
            "lora": None if lora is None else file_digest(lora),
            "cost_saving": plan.cost_saving,
            "sharing_saving": plan.sharing_saving,
            "num_prompts": plan.num_prompts,
            "seeds": list(seeds),
        }
    }
    write_text(options.out, json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))
    if gaps is None:
        print(
            f"warning: no two of the prompts are alike enough for any of these thresholds; {options.out} shares "
            f"nothing",
            file=sys.stderr,
        )
    elif found.policy.share_ratio == 0:
        print(
            f"warning: no sharing has an error of at most {budget:.3g}; {options.out} shares nothing",
            file=sys.stderr,
        )
    else:
        print(
            f"{plan.savings} with an error of {found.error:.3g} (budget {budget:.3g}), from {gaps.evaluations} "
            f"evaluations: {found.policy}; in {options.out}, for --policy",
            file=sys.stderr,
        )
