"""A model's pipeline that begins from images, where requests have some: its folder names the one for texts alone."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from sagediff.prompts.requests import ImageRequest

Begins: TypeAlias = Literal["image", "mask"]

# Of one model too, though diffusers' own list does not hold them
_VIDEOS = {"LTXPipeline": "LTXImageToVideoPipeline"}


def begins_from(requests: Sequence[ImageRequest]) -> Begins | None:
    """What the requests begin from: images, images with masks, or neither."""
    if not any(request.images for request in requests):
        return None
    return "mask" if any(request.mask is not None for request in requests) else "image"


def from_images(pipe: Any, begins: Begins | None) -> Any:
    """The pipeline, if it takes such images, or if there is none of its model that does; else that one, with its parts.

    Args:
        begins: None: the pipeline as it is.
    """
    if begins is None:
        return pipe
    parameters = inspect.signature(type(pipe).__call__).parameters
    if begins == "image" and not {"image", "control_image"}.isdisjoint(parameters):
        return pipe
    if begins == "mask" and "mask_image" in parameters:
        return pipe
    import diffusers

    other = getattr(diffusers, _VIDEOS.get(type(pipe).__name__, ""), None)
    if other is not None:
        return other(**pipe.components)
    auto: Any = (
        diffusers.AutoPipelineForInpainting if begins == "mask" else diffusers.AutoPipelineForImage2Image
    )
    try:
        return auto.from_pipe(pipe)
    except ValueError:  # it knows none
        return pipe
