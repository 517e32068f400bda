"""What the guiders of a pipeline tell of its denoiser calls.

diffusers' modular pipelines, and a few others, have no guidance of their own: a component, the guider, says at every
step which conditions are run, and the loop calls the denoiser once for each of them, the conditional one first.  So how
a denoiser is guided there is told by the run, whatever the table says of its class in other pipelines.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from sagediff.denoiser.family import Family
from sagediff.denoiser.guidance import CONDITIONAL, NEGATIVE, Part
from sagediff.denoiser.private_names import condition_of

_PARTS = {"pred_cond": CONDITIONAL, "pred_uncond": NEGATIVE}  # others keep their own names
_GUIDERS = ("guider", "guider_2", "audio_guider")


def is_modular(pipe: Any) -> bool:
    """Whether a pipeline is made of blocks, diffusers' `ModularPipeline`."""
    return hasattr(pipe, "default_blocks_name")


def guiders_of(pipe: Any) -> list[Any]:
    """The guiders of a pipeline: modular ones have some, and a few others (HunyuanImage)."""
    parts = [getattr(pipe, name, None) for name in _GUIDERS]
    return [part for part in parts if hasattr(part, "prepare_inputs_from_block_state")]


def as_called(family: Family, pipe: Any) -> Family:
    """The family as this pipeline calls it: a guider runs each of its conditions in a call of its own."""
    if family.guidance == "two calls" or not guiders_of(pipe):
        return family
    return replace(family, guidance="two calls", first="conditional")


def conditions_at(pipe: Any, num_steps: int, guidance_scale: float | None = None) -> tuple[int, ...] | None:
    """How many conditions the guiders will run at each step, asked of them before; None without guiders.

    Args:
        guidance_scale: that they are to have; None for their own.
    """
    guiders = [copy.copy(guider) for guider in guiders_of(pipe)]
    if not guiders:
        return None
    for guider in guiders:
        _guide(guider, guidance_scale)
    return tuple(max(_conditions(guider, step, num_steps) for guider in guiders) for step in range(num_steps))


def _conditions(guider: Any, step: int, num_steps: int) -> int:
    guider.set_state(step=step, num_inference_steps=num_steps, timestep=None)
    return int(guider.num_conditions)


def guidance_scale_of(pipe: Any) -> float | None:
    """The guidance scale of a modular pipeline's guiders; None where they have no single one, or there are none."""
    scales = [getattr(guider, "guidance_scale", None) for guider in guiders_of(pipe)]
    return float(scales[0]) if scales and isinstance(scales[0], int | float) else None


def guides(pipe: Any) -> bool:
    """Whether the guiders guide, as they are."""
    return any(guider.get_state()["enabled"] for guider in guiders_of(pipe))


@contextmanager
def guiders_told(pipe: Any, tell: Callable[[tuple[Part, ...]], None]) -> Iterator[None]:
    """Inside the context it is told, before the denoiser is called for a step, which parts of guidance its calls are
    for, in their order; then the guiders are as they were found.

    A guider is told of each step (`set_state`), prepares one batch for each of its conditions, and the loop calls the
    denoiser once for each.  Where there are two for one step (LTX-2's, of video and audio) the denoiser is called for
    what either wants.
    """
    told: list[Part] = []

    def around(guider: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        batches = method(*args, **kwargs)
        named = [condition_of(guider, batch) for batch in batches]
        told.extend(part for part in (_PARTS.get(name, name) for name in named) if part not in told)
        tell(tuple(told))
        return batches

    def begun(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        told.clear()
        return method(*args, **kwargs)

    changed: list[tuple[Any, str]] = []
    try:
        for guider in guiders_of(pipe):
            for name in ("prepare_inputs", "prepare_inputs_from_block_state"):
                setattr(guider, name, partial(around, guider, getattr(guider, name)))
                changed.append((guider, name))
            guider.set_state = partial(begun, guider.set_state)
            changed.append((guider, "set_state"))
        yield
    finally:
        for guider, name in changed:
            vars(guider).pop(name, None)


@contextmanager
def guiding(pipe: Any, guidance_scale: float | None) -> Iterator[None]:
    """Inside the context the guiders have that guidance scale, and guide; then they are as they were."""
    guiders = guiders_of(pipe) if guidance_scale is not None else []
    found = [
        (guider, getattr(guider, "guidance_scale", None), guider.get_state()["enabled"]) for guider in guiders
    ]
    try:
        for guider in guiders:
            _guide(guider, guidance_scale)
        yield
    finally:
        for guider, scale, enabled in found:
            guider.enable() if enabled else guider.disable()
            if scale is not None:
                guider.guidance_scale = scale


def _guide(guider: Any, guidance_scale: float | None) -> None:
    if guidance_scale is not None and hasattr(guider, "guidance_scale"):
        guider.guidance_scale = guidance_scale
        guider.enable()
