"""One wanted image, as everything behind HTTP knows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from sagediff.errors import InputError


class CompatibilityKey(NamedTuple):
    """What must agree for two requests to run in one call of the pipeline. The server has one model, LoRA and
    scheduler, so these need no entry."""

    width: int | None
    height: int | None
    num_inference_steps: int
    guidance_scale: float | None
    has_negative_prompt: bool  # pipelines take negative prompts for all prompts or for none


@dataclass(frozen=True)
class ImageRequest:
    """One image wanted.

    Attributes:
        id: unique among all requests of the server.
        prompt, negative_prompt: texts; None for a negative prompt leaves it to the pipeline.
        width, height: pixels; None for the model's own.
        num_inference_steps: sampling steps, at least 1.
        guidance_scale: None for the server's default, which may leave guidance out where the weights were trained
            for that; a number is applied to every step that the request takes alone.
        seed: of its noise; None lets the server draw one.
        share: True or False as the client said; None where it did not say.
        tenant: who asked. Sharing stays within one tenant unless the operator opens it.
        deadline: time of the server's clock, in seconds, past which it is not begun; None waits for ever.

    Raises:
        InputError: an empty prompt, or a number out of range.
    """

    id: str
    prompt: str
    num_inference_steps: int
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    share: bool | None = None
    tenant: str = ""
    deadline: float | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InputError("prompt must not be empty")
        if self.num_inference_steps < 1:
            raise InputError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}")
        if (self.width is None) != (self.height is None):
            raise InputError(f"width and height must be given together, got {self.width} and {self.height}")
        if self.width is not None and self.height is not None and min(self.width, self.height) < 1:
            raise InputError(f"width and height must be at least 1, got {self.width}x{self.height}")
        if self.guidance_scale is not None and not (
            math.isfinite(self.guidance_scale) and self.guidance_scale >= 0
        ):
            raise InputError(f"guidance_scale must be at least 0, got {self.guidance_scale}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"seed must lie in [0, 2**63), got {self.seed}")

    @property
    def may_share(self) -> bool:
        """Whether it may take steps together with others: as the client said, else unless it brings its own seed,
        since its image would then depend on its neighbours."""
        return self.seed is None if self.share is None else self.share

    @property
    def compatibility(self) -> CompatibilityKey:
        """Requests with equal keys may run in one wave."""
        return CompatibilityKey(
            self.width,
            self.height,
            self.num_inference_steps,
            self.guidance_scale,
            self.negative_prompt is not None,
        )
