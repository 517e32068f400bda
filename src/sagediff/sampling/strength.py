"""How many steps a call from an image takes: with a strength below 1 a pipeline leaves out the first ones."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from sagediff.denoiser.scheduler import planned_calls
from sagediff.errors import InputError
from sagediff.prompts.requests import ImageRequest

# Hand the strength to their scheduler, which spreads all steps over what it leaves
_TAKES_ALL_STEPS = ("LatentConsistencyModelImg2ImgPipeline",)


def takes_strength(pipe: Any) -> bool:
    """Whether the pipeline's call has a strength."""
    return "strength" in _parameters(pipe)


def calls_taken(pipe: Any, num_inference_steps: int, strength: float | None = None) -> tuple[int, ...]:
    """Denoiser calls of each step that a call of the pipeline really takes.

    The pipeline's own `get_timesteps` is asked, with as many timesteps as its scheduler will have.

    Args:
        num_inference_steps: of the call.
        strength: None for the pipeline's default.

    Raises:
        InputError: no step is left, or it is not known how many are.
    """
    scheduler = pipe.scheduler
    whole = planned_calls(scheduler, num_inference_steps)
    if strength is None:
        default = getattr(_parameters(pipe).get("strength"), "default", None)
        strength = float(default) if isinstance(default, int | float) else 1.0
    if strength >= 1 or type(pipe).__name__ in _TAKES_ALL_STEPS:
        return whole
    stand_in = copy.copy(scheduler)
    stand_in.timesteps = torch.arange(sum(whole))  # only counted
    question, more = _question(pipe)
    timesteps, _ = question(SimpleNamespace(scheduler=stand_in), num_inference_steps, strength, *more)
    left = len(timesteps)
    if not left:
        raise InputError(
            f"strength {strength:g} leaves none of {num_inference_steps} steps: raise the strength or the number of "
            f"steps"
        )
    for steps in range(1, left + 1):
        taken = planned_calls(scheduler, steps, from_start=left == sum(whole))
        if sum(taken) == left:
            return taken
    raise InputError(
        f"strength {strength:g} of {num_inference_steps} steps leaves {left} calls of {type(scheduler).__name__}, "
        f"which are no whole number of steps; take another strength or number of steps"
    )


def check_steps(
    pipe: Any,
    requests: Sequence[ImageRequest],
    planned: int,
    num_inference_steps: int | None,
    strength: float | None,
) -> None:
    """The steps of a plan are those that the requests' calls take.

    Args:
        planned: the plan's steps.
        num_inference_steps: of the calls; None: as many.
        strength: where a request names none.

    Raises:
        InputError: they take others.
    """
    steps = planned if num_inference_steps is None else num_inference_steps
    for own in dict.fromkeys(strength if each.strength is None else each.strength for each in requests):
        taken = len(calls_taken(pipe, steps, own))
        if taken != planned:
            raise InputError(
                f"the plan has {planned} steps, but a call of {steps} takes {taken} of them with "
                f"{'the default strength' if own is None else f'strength {own:g}'}: plan with that strength, and give "
                f"num_inference_steps as it was planned with"
            )


def _question(pipe: Any) -> tuple[Any, list[Any]]:
    """The pipeline's `get_timesteps`, and what it takes behind number of steps and strength."""
    kind = type(pipe)
    question = getattr(kind, "get_timesteps", None)
    call: Any = inspect.unwrap(kind.__call__)
    names = list(inspect.signature(question).parameters)[1:] if question is not None else []
    is_asked = "get_timesteps" in getattr(getattr(call, "__code__", None), "co_names", ())
    if names[:2] != ["num_inference_steps", "strength"] or not is_asked:
        raise InputError(
            f"strength is below 1, and it is not known which steps {kind.__name__} leaves out then: give strength=1.0, "
            f"or plan the steps that are left and run the pipeline inside shared_sampling"
        )
    return question, ["cpu"] if "device" in names else []


def _parameters(pipe: Any) -> Any:
    return inspect.signature(type(pipe).__call__).parameters if callable(pipe) else {}
