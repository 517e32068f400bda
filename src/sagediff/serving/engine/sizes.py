"""Sizes of images that a pipeline takes, asked of its own check of its arguments."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sagediff.serving.failures import RefusedByPipeline

_LARGEST = 256  # multiple that is looked for
_FACTORS = (33, 35)  # without a common factor: a multiple of both is a multiple of one


def size_multiple(pipe: Any) -> int:
    """What width and height must be multiples of.

    Some pipelines refuse other sizes, some make the nearest one, and a few do not check: then the autoencoder's factor
    is what there is to know, and `check_size` tells afterwards.
    """
    factors = (getattr(pipe, name, None) for name in ("vae_scale_factor", "vae_scale_factor_spatial"))
    factor = math.lcm(*(each for each in factors if isinstance(each, int) and each > 0))
    with _warnings_of(type(pipe).__module__) as told:
        for multiple in range(1, _LARGEST + 1):
            one, two = (number * multiple for number in _FACTORS)
            if _takes(pipe, one, two, told) and _takes(pipe, two, one, told):
                return math.lcm(multiple, factor)
    return factor


def check_size(wanted: tuple[int | None, int | None], image: Any) -> None:
    """Refuse an image that is not of the size that was asked for.

    Args:
        wanted: width and height, None for the model's own.

    Raises:
        RefusedByPipeline: it is not.
    """
    if wanted[0] is not None and image.size != wanted:
        made = f"{image.size[0]}x{image.size[1]}"
        raise RefusedByPipeline(
            f"the model makes {made} of the size {wanted[0]}x{wanted[1]}: ask for one that it makes"
        )


def refused_by_pipeline(error: BaseException) -> bool:
    """Whether a pipeline raised this error about its arguments: a ValueError from code of diffusers itself."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    return isinstance(error, ValueError) and module.partition(".")[0] == "diffusers"


def _takes(pipe: Any, width: int, height: int, told: list[str]) -> bool:
    check = getattr(pipe, "check_inputs", None)
    if check is None:
        return False
    given = {"prompt": "a cat", "width": width, "height": height}
    of_call = inspect.signature(type(pipe).__call__).parameters
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(check).parameters.items():
        if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            continue
        default = of_call[name].default if name in of_call else parameter.default
        arguments[name] = given.get(name, None if default is inspect.Parameter.empty else default)
    told.clear()
    try:
        check(**arguments)
    except Exception:  # of any kind: whatever it is, this is not how to ask for an image of that size
        return False
    return not told


@contextmanager
def _warnings_of(module: str) -> Iterator[list[str]]:
    """Warnings that a module of diffusers logs, instead of where they would go: such as that a size is changed."""
    told: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger = logging.getLogger(module)
    before = logger.handlers[:], logger.propagate, logger.level
    logger.handlers[:], logger.propagate = [Kept()], False
    logger.setLevel(logging.WARNING)
    try:
        yield told
    finally:
        logger.handlers[:], logger.propagate = before[:2]
        logger.setLevel(before[2])
