"""The work of `sagediff tune --by predictions`: ask the model how long prompts may share, write the policy file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sagediff.cli.comparison_options import MeasuringOptions, TuneOptions
from sagediff.evaluation.error_budget import Choice, Chosen
from sagediff.evaluation.prediction_gaps import GapRunner, Gaps
from sagediff.evaluation.search import Search
from sagediff.evaluation.trials import PolicyPlans, repetitions
from sagediff.files.atomic import at_work, sweep, write_text
from sagediff.files.lora_files import loras_digest
from sagediff.pipelines.placement import open_pipeline
from sagediff.pipelines.run_settings import RunSettings
from sagediff.plan.levels import part_of_steps
from sagediff.plan.share_plan import SharePlan
from sagediff.progress import stderr_progress
from sagediff.prompts.embeddings import embed_prompts

_EVALUATIONS = 600


def tune_by_predictions(
    settings: RunSettings, options: TuneOptions, measuring: MeasuringOptions, prompts: list[str] | None
) -> None:
    """Measure, fit, choose, write the policy file; what was found goes to stdout as JSON.

    Args:
        settings: its sharing says how shared steps are guided; its threshold and share ratio, what error is usual.
        prompts: None for held-out captions of a built-in model.

    Raises:
        InputError: a value out of range.
        OutputError: the file cannot be written.
    """
    texts = measuring.world_prompts(settings.model, held_out=256) if prompts is None else prompts
    search = options.search(settings)
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
            "lora": loras_digest(settings.model.loras()),
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
