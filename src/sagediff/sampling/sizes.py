"""Sizes of images that a pipeline takes, asked of its own check of its arguments."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sagediff.errors import InputError
from sagediff.prompts.requests import ImageRequest

_LARGEST = 256  # multiple that is looked for
_FACTOR_NAMES = ("vae_scale_factor", "vae_scale_factor_spatial")
_FRAME_FACTORS = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
_FRAMES_AS_ASKED = ("AllegroPipeline",)  # it pads what its autoencoder takes, and cuts what comes of that
_ODD = (33, 35)  # without a common factor: a multiple of both is a multiple of one


def size_multiple(pipe: Any, *, knows_factor: bool = True) -> int:
    """What width and height must be multiples of.

    Some pipelines refuse other sizes, some make the nearest one, and a few do not check: then the autoencoder's factor
    is what there is to know, and `other_size` tells afterwards.

    Args:
        knows_factor: False where the pipeline was loaded without its autoencoder, and only guesses its factor: what is
            found then divides the true multiple.
    """
    factors = {name: getattr(pipe, name, None) for name in _FACTOR_NAMES}
    known = {name: factor for name, factor in factors.items() if isinstance(factor, int) and factor > 0}
    if knows_factor:
        return _checked_multiple(pipe, math.lcm(*known.values()))
    try:
        for name in known:  # guesses
            setattr(pipe, name, 1)
        return _checked_multiple(pipe, 1)
    finally:
        for name, factor in known.items():
            setattr(pipe, name, factor)


def _checked_multiple(pipe: Any, factor: int) -> int:
    with _warnings_of(type(pipe).__module__) as told:
        for multiple in range(1, _LARGEST + 1):
            one, two = (number * multiple for number in _ODD)
            if _takes(pipe, one, two, told) and _takes(pipe, two, one, told):
                return math.lcm(multiple, factor)
    return factor


def check_sizes(
    pipe: Any,
    requests: Sequence[ImageRequest],
    where: Callable[[int], str] = "prompt {}".format,
    *,
    knows_factor: bool = True,
) -> None:
    """Refuse sizes that a pipeline cannot make, as far as can be known before it runs.

    Args:
        where: what to call a request in a message, by its number.
        knows_factor: as `size_multiple` takes it.

    Raises:
        InputError: one that it cannot make.
    """
    sizes = {(each.width, each.height): number for number, each in reversed(list(enumerate(requests)))}
    sizes.pop((None, None), None)
    if not sizes:
        return
    if "width" not in inspect.signature(type(pipe).__call__).parameters:
        raise InputError(
            f"{where(min(sizes.values()))}: {type(pipe).__name__} makes images of the size of those that it begins "
            f"from; leave width and height out"
        )
    multiple = size_multiple(pipe, knows_factor=knows_factor)
    for (width, height), number in sorted(sizes.items(), key=lambda each: each[1]):
        if width is not None and height is not None and (width % multiple or height % multiple):
            raise InputError(
                f"{where(number)}: {type(pipe).__name__} makes no image of {width}x{height}; width and height must be "
                f"multiples of {multiple}"
            )


def check_frames(pipe: Any, num_frames: int | None) -> None:
    """Refuse a number of frames that a pipeline would change: autoencoders of videos take the first frame for itself,
    and the others by several.

    Raises:
        InputError: another number than it makes; those around it are named.
    """
    found = [getattr(pipe, name, None) for name in _FRAME_FACTORS]
    factor = next((each for each in found if isinstance(each, int) and each > 0), 1)
    if type(pipe).__name__ in _FRAMES_AS_ASKED:
        return
    if num_frames is not None and (num_frames - 1) % factor:
        below = (num_frames - 1) // factor * factor + 1
        raise InputError(
            f"{type(pipe).__name__} makes no video of {num_frames} frames: take {below} or {below + factor} "
            f"({factor} n + 1)"
        )


def other_size(wanted: tuple[int | None, int | None], image: Any) -> str:
    """What to say of an image, or the frames of a video, not of the size that was asked for; empty for one that is.

    Args:
        wanted: width and height, None for the model's own.
    """
    image = image[0] if isinstance(image, list) else image
    if wanted[0] is None or image.size == wanted:
        return ""
    made = f"{image.size[0]}x{image.size[1]}"
    return f"the model makes {made} of the size {wanted[0]}x{wanted[1]}: ask for one that it makes"


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
