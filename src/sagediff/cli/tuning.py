"""The work of `sagediff tune`: search, write the policy file, say what was found."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sagediff
from sagediff.cli.comparison_options import MeasuringOptions, TuneOptions
from sagediff.errors import InputError
from sagediff.evaluation.certainty import prompts_needed
from sagediff.evaluation.perception import Perception
from sagediff.evaluation.search import Search, Trial, Tuned, tune
from sagediff.evaluation.trials import EQUAL, Metric, TrialFile, TrialRunner, equal_prompts, judges
from sagediff.files.atomic import at_work, sweep, write_text
from sagediff.files.digest import texts_digest
from sagediff.files.lora_files import loras_digest
from sagediff.pipelines.content import named_content, run_content
from sagediff.pipelines.loading import check_makes_images
from sagediff.pipelines.placement import open_pipeline, working_device
from sagediff.pipelines.run_settings import RunSettings
from sagediff.progress import stderr_progress
from sagediff.prompts.embeddings import embed_prompts


def run_tune(
    settings: RunSettings, options: TuneOptions, measuring: MeasuringOptions, prompts: list[str] | None
) -> None:
    """Search, write the policy file; what was found goes to stdout as JSON, trials to stderr as they end.

    Args:
        settings: its sharing is that of every trial, but for what is searched.
        prompts: None for held-out captions of the built-in model.

    Raises:
        InputError: a value out of range, or a metric that these prompts or this model do not have.
        OutputError: the file cannot be written.
    """
    model, out = settings.model, options.out
    check_makes_images(model.source, "tune")
    texts = measuring.world_prompts(model, held_out=256) if prompts is None else prompts
    repeats = bool(equal_prompts(texts)) and settings.sharing.repeats_may_share
    search = options.search(settings, (EQUAL,) if repeats else ())
    seeds = measuring.seeds_or((0,))
    device = working_device(model.device)
    perception = measuring.perception(model, device)
    metric = _metric(options, perception, texts)
    pipe = open_pipeline(model)
    steps, scale = settings.sampling.num_inference_steps, settings.sampling.guidance_scale
    vectors = embed_prompts(texts, pipe, settings.sampling.encoder).vectors
    runner = TrialRunner(pipe, texts, vectors, perception, steps, scale, seeds, metric)
    kept = TrialFile(out.with_name(out.name + ".trials.jsonl"), _about(settings, measuring, runner))
    sweep(out.parent, f"{out.name}.")
    with at_work():
        found = _shown(search, runner, kept)
        _write(settings, options, runner, found)


def _metric(options: TuneOptions, perception: Perception, prompts: list[str]) -> Metric:
    judged = judges(perception, prompts)
    if options.metric == "accuracy" and not judged:
        raise InputError("--metric accuracy needs the built-in model and captions of its world; use clip")
    return options.metric or ("accuracy" if judged else "clip")


def _about(settings: RunSettings, measuring: MeasuringOptions, runner: TrialRunner) -> dict[str, Any]:
    """What all trials of a search have in common."""
    model = settings.model
    return asdict(settings.sampling) | {
        "version": sagediff.__version__,
        "model": model.name,
        "lora": loras_digest(model.loras()),
        "scheduler": model.scheduler,
        "dtype": model.dtype,
        "variations": model.variations(),
        "prompts": texts_digest(runner.prompts),
        "seeds": runner.seeds,
        "metric": runner.metric,
        "features": measuring.features,
        "clip": measuring.clip,
        "content": run_content(settings) | named_content(features=measuring.features, clip=measuring.clip),
    }


def _shown(search: Search, runner: TrialRunner, kept: TrialFile) -> Tuned:
    """The search, with a line for each trial on stderr; what is known of it already is not run again."""
    with stderr_progress("sharings tried") as bar:
        task = bar.add_task("", total=None)

        def told(trial: Trial) -> None:
            bar.advance(task)
            apart = "" if trial.apart is None else f", equal prompts {trial.apart:.4f} apart"
            bar.console.print(
                f"{trial.cost_saving:.1%} saved, {runner.metric} {trial.mean:.4f}{apart}: {trial.policy}",
                highlight=False,
            )

        return tune(search, runner.saving, kept.remembered(runner.measure), told)


def _write(settings: RunSettings, options: TuneOptions, runner: TrialRunner, found: Tuned) -> None:
    best, alone = found.best, found.alone
    apart = {} if best.apart is None else {"apart": best.apart, "apart_independent": alone.apart}
    plan = runner.plan(best.policy)
    record = best.policy.record() | {
        "tuned": {
            "model": Path(settings.model.name).name,
            "num_steps": runner.num_steps,
            "scheduler": settings.model.scheduler,
            "metric": runner.metric,
            "budget": found.search.budget,
            "quality": best.mean,
            "quality_independent": alone.mean,
            **apart,
            "loss_at_most": found.loss_at_most(best),
            "confidence": found.search.confidence,
            "lora": loras_digest(settings.model.loras()),
            "cost_saving": plan.cost_saving,
            "sharing_saving": plan.sharing_saving,
            "num_prompts": len(runner.prompts),
            "seeds": list(runner.seeds),
            "trials": len(found.trials),
        }
    }
    write_text(options.out, json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))
    if best is alone:
        print(f"warning: {_why_nothing(found)}; {options.out} shares nothing", file=sys.stderr)
        return
    print(
        f"{plan.savings} with {runner.metric} {best.mean:.4f} (independent {alone.mean:.4f}): {best.policy}; in "
        f"{options.out}, for --policy",
        file=sys.stderr,
    )


def _why_nothing(found: Tuned) -> str:
    """In words, why independent sampling was chosen."""
    search, count = found.search, len(found.alone.measured.each)
    if found.can_show:
        return (
            f"no sharing was shown to lose at most {search.budget:.3g} of the quality of independent sampling"
        )
    if not found.alone.mean > 0:
        return f"independent sampling has a quality of {found.alone.mean:.3g}, of which nothing can be lost"
    needed = prompts_needed(search.budget, search.confidence)
    advice = "a budget of 0 cannot be shown by any" if needed is None else f"at least {needed} are needed"
    return (
        f"{count} different prompts cannot show a loss of at most {search.budget:.3g}, as one image of {count} is "
        f"{1 / count:.2g} already: {advice}, or a larger --budget"
    )
