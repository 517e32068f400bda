"""`sagediff bench`: every way of sampling in one run, one table."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from sagediff.cli import options
from sagediff.cli.bench_inputs import BenchInputs
from sagediff.cli.comparison_options import BenchOptions, MeasuringOptions
from sagediff.cli.early_checks import check_settings
from sagediff.collector import importing
from sagediff.errors import InputError
from sagediff.files.claim import claimed_output
from sagediff.files.lora_files import parse_lora
from sagediff.files.output_folder import OutputFolder
from sagediff.pipelines.run_settings import ModelOptions, RunSettings, SamplingOptions, resolve, resolved

if TYPE_CHECKING:
    from sagediff.evaluation.grid import Weights

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
    measuring: Annotated[MeasuringOptions, options.flattened("Measuring")] = MeasuringOptions(),  # noqa: B008
) -> None:
    """Compare independent and shared sampling, before and after training, in one table."""
    if find_spec("matplotlib") is None:
        raise InputError("sagediff bench needs matplotlib: pip install 'sagediff[eval]'")
    named, given = options.named(sampling), options.named(sharing)
    steps = compared.step_counts()

    def arm(lora: tuple[str, ...]) -> dict[int, RunSettings]:
        """By the number of steps, on which the solver may depend."""
        used = replace(model, lora=lora, no_lora=not lora)
        return {count: resolve(used, SamplingOptions(count, **named), given, policy) for count in steps}

    # each set of weights is sampled as `generate` samples it; plain fine-tuning does not change how the model is used
    arms: dict[Weights, dict[int, RunSettings]] = {"base": arm(())}
    if compared.baseline_lora is not None:
        standard = resolved([parse_lora(str(compared.baseline_lora))])
        arms["standard"] = {
            count: replace(each, model=replace(each.model, lora=standard, no_lora=False))
            for count, each in arms["base"].items()
        }
    if loras := model.loras():
        arms["sage"] = arm(tuple(map(str, loras)))
    check_settings(next(iter(arms["base"].values())), "bench")
    inputs = BenchInputs.of(arms, compared, measuring, prompt_file)
    with claimed_output(compared.out):
        OutputFolder(compared.out).check_free(compared.resume)
        with importing():
            from sagediff.cli.comparing import run_bench_command

        run_bench_command(inputs, compared, measuring)
