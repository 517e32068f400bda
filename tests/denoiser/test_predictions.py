"""A denoiser's output as one tensor, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils.outputs import BaseOutput

from sagediff.denoiser.declared import GUIDED_IN_ONE_CALL, declared
from sagediff.denoiser.predictions import form_like, in_form, prediction_of
from sagediff.errors import UnsupportedPipelineError

BOTH = ("sample", "audio_sample")


@dataclass
class Both(BaseOutput):
    sample: Any
    audio_sample: Any = None


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 2, 4), torch.randn(3, 5).half()


@pytest.mark.parametrize("made", [lambda *entries: entries, Both])
def test_several_predictions_come_back_as_they_were(made: Callable[..., Any]) -> None:
    sample, audio = tensors()
    output = made(sample, audio)
    packed = prediction_of(output, "Model", BOTH)
    assert packed.shape == (3, 13)
    back = in_form(packed[[2, 0]], output, BOTH)
    assert type(back) is type(output)
    assert torch.equal(back[0], sample[[2, 0]]) and torch.equal(back[1], audio[[2, 0]])


@pytest.mark.parametrize("as_tuple", [True, False])
def test_the_form_of_what_was_not_run_has_the_shapes_of_arguments(as_tuple: bool) -> None:
    sample, audio = tensors()
    form = form_like({"sample": sample, "audio_sample": audio}, as_tuple)
    back = in_form(torch.ones(1, 13), form, BOTH)
    assert back[0].shape == (1, 2, 4) and back[1].shape == (1, 5) and back[1].dtype == torch.float16
    assert as_tuple or torch.equal(back.audio_sample, back[1])


def test_a_prediction_that_may_be_missing() -> None:
    sample, _ = tensors()
    for output in ((sample,), Both(sample)):
        assert torch.equal(in_form(prediction_of(output, "Model", BOTH), output, BOTH)[0], sample)


def test_one_prediction_of_another_name_and_as_a_list() -> None:
    sample, _ = tensors()
    named = form_like({"predicted": sample}, as_tuple=False)
    assert torch.equal(prediction_of(named, "Model", ("predicted",)), sample)
    rows = Transformer2DModelOutput(sample=list(sample))
    assert torch.equal(prediction_of(rows, "Model"), sample)
    assert len(in_form(sample[:2], rows).sample) == 2


@pytest.mark.parametrize("output", [tensors(), (), Both(None), None, "text", (1,)])
def test_outputs_without_what_is_declared_are_refused(output: Any) -> None:
    with pytest.raises(UnsupportedPipelineError, match=r"Model returned a .* without one `sample`"):
        prediction_of(output, "Model")


def test_predictions_are_declared_by_arguments() -> None:
    with pytest.raises(ValueError, match="y: predictions have the shapes"):
        declared("x", "c", predictions={"sample": "y"}, **GUIDED_IN_ONE_CALL)
    assert declared("x", "c", **GUIDED_IN_ONE_CALL).outputs == {"sample": "x"}
