"""`sagediff bench`: every way of sampling in one run, one table."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from sagediff.cli import options
from sagediff.cli.comparison_options import BenchOptions, MeasuringOptions
from sagediff.errors import InputError
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve

if TYPE_CHECKING:
    GivenSharing = Any
    GivenSampling = Any
else:
    GivenSharing = options.given_sharing(beside=BenchOptions)
    GivenSampling = options.given(SamplingOptions, only=("guidance_scale", "encoder"))


def bench(
    *,
    prompt_file: options.PromptFile = None,
    model: options.Model = ModelOptions(),  # noqa: B008 - frozen, as the others
    sampling: Annotated[GivenSampling | None, options.flattened("Sampling")] = None,
    sharing: Annotated[GivenSharing | None, options.flattened("Sharing")] = None,
    policy: options.Policy = None,
    compared: Annotated[BenchOptions, options.flattened("Comparison")] = BenchOptions(),  # noqa: B008
    measuring: Annotated[MeasuringOptions, options.flattened("Comparison")] = MeasuringOptions(),  # noqa: B008
) -> None:
    """Compare independent and shared sampling, before and after training, in one table.

    Examples:
        sagediff bench --steps 8,12 --share-ratio 0.3,0.5 --out bench
        sagediff bench --model path/or/hub-id --prompts prompts.txt --policy policy.json
    """
    if find_spec("matplotlib") is None:
        raise InputError("sagediff bench needs matplotlib: pip install 'sagediff[eval]'")
    first = SamplingOptions(compared.step_counts()[0], **options.named(sampling))
    # neither a LoRA's own settings nor a solver that goes with its absence: every setting of a bench has the same
    base = replace(model, lora=None, no_lora=True)
    settings = resolve(base, first, options.named(sharing), policy)
    lora = model.chosen_lora()
    used = replace(settings.model, lora=lora, no_lora=lora is None, scheduler=model.scheduler)
    from sagediff.cli.comparing import run_bench_command

    run_bench_command(replace(settings, model=used), compared, measuring, prompt_file)
