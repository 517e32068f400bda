"""`sagediff tune`: the sharing that saves most within a quality budget, written as a policy file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from sagediff.cli import options
from sagediff.cli.comparison_options import MeasuringOptions, TuneOptions
from sagediff.cli.early_checks import check_settings
from sagediff.collector import importing
from sagediff.files.claim import claimed_file
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve

if TYPE_CHECKING:
    GivenSharing = Any
else:
    GivenSharing = options.given_sharing(beside=TuneOptions)


def tune(
    *,
    prompt_file: options.PromptFile = None,
    model: options.Model = ModelOptions(),  # noqa: B008 - frozen, as the others
    sampling: options.Sampling = SamplingOptions(),  # noqa: B008
    sharing: Annotated[GivenSharing | None, options.flattened("Sharing")] = None,
    searched: Annotated[TuneOptions, options.flattened("Comparison")] = TuneOptions(),  # noqa: B008
    measuring: Annotated[MeasuringOptions, options.flattened("Measuring")] = MeasuringOptions(),  # noqa: B008
) -> None:
    """Find the sharing that saves most within a budget, and write it as a file for --policy."""
    settings = resolve(model, sampling, options.named(sharing))
    check_settings(settings, "tune")
    prompts = measuring.named_prompts(prompt_file, settings.model)
    searched.check_way(settings, measuring, prompts)
    searched.search(settings), measuring.seeds_or((0,))  # refused before anything heavy is imported
    with claimed_file(searched.out):
        with importing():
            if searched.by == "predictions":
                from sagediff.cli.tuning_by_predictions import tune_by_predictions as run_tune
            else:
                from sagediff.cli.tuning import run_tune

        run_tune(settings, searched, measuring, prompts)
