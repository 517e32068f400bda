"""`sagediff tune`: the sharing that saves most within a quality budget, written as a policy file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from sagediff.cli import options
from sagediff.cli.measuring import MeasuringOptions
from sagediff.options import option
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve
from sagediff.plan.sharing import Sharing


@dataclass(frozen=True)
class TuneOptions:
    """What is searched, and where the policy goes; lists as they were given."""

    out: Path = option(Path("policy.json"), "The policy file to write.")
    budget: float = option(0.01, "Fraction of independent sampling's quality that may be lost.")
    apart: float = option(
        0.25,
        "How far apart the images of equal prompts have to stay, as a fraction of what two of independent sampling "
        "are.",
    )
    metric: Literal["accuracy", "clip"] | None = option(
        None, "'accuracy' (built-in world) or 'clip' [default: accuracy where it can be judged]."
    )
    threshold: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = option(
        (),
        "Grid of minimum similarities, with commas [default: -1,0,0.2,0.35,0.5 of the demo, else 0.6,0.7,0.8,0.9; "
        "and 0.99 where prompts repeat].",
    )
    share_ratio: tuple[str, ...] = option((), "Grid, with commas [default: 0.1 to 0.8].")
    max_group_size: tuple[str, ...] = option(
        (), "Grid of the largest size of a group, with commas [default: 8,32]."
    )
    families: str = option("fixed,together,tree", "What is searched, with commas: fixed, together, tree.")


if TYPE_CHECKING:
    GivenSharing = Any
else:
    _SEARCHED = {each.name for each in fields(TuneOptions)}
    GivenSharing = options.given(
        Sharing, "the model's own, else ", {each.name for each in fields(Sharing)} - _SEARCHED
    )


def tune(
    *,
    prompt_file: options.PromptFile = None,
    model: options.Model = ModelOptions(),  # noqa: B008 - frozen, as the others
    sampling: options.Sampling = SamplingOptions(),  # noqa: B008
    sharing: Annotated[GivenSharing | None, options.flattened("Sharing")] = None,
    searched: Annotated[TuneOptions, options.flattened("Comparison")] = TuneOptions(),
    measuring: Annotated[MeasuringOptions, options.flattened("Comparison")] = MeasuringOptions(),  # noqa: B008
) -> None:
    """Find the sharing that saves most within a quality budget, and write it as a file for --policy.

    Trials are kept beside the file: the same command goes on after a stop.

    Examples:
        sagediff tune --out policy.json --budget 0.01
        sagediff tune --model path/or/hub-id --prompts prompts.txt --metric clip
    """
    settings = resolve(model, sampling, options.named(sharing))
    from sagediff.cli.tuning import run_tune

    run_tune(settings, searched, measuring, prompt_file)
