"""The images of one way of sharing, as whatever is measured of them takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sagediff.plan.sharing import Sharing
from sagediff.sampling.sampler import SharedResult, SharedSampler


def sampled(
    pipe: Any,
    prompts: Sequence[str],
    vectors: npt.NDArray[np.float32],
    sharing: Sharing,
    num_steps: int,
    guidance_scale: float | None,
    seed: int,
    on_step: Callable[[int], None] | None = None,
) -> SharedResult:
    """One image per prompt.

    Args:
        vectors: (N, D) unit vectors of the prompts: whatever weights the pipeline has, the groups stay the same.
        guidance_scale: None takes the pipeline's own default.
        on_step: called after every sampling step with the number of prompts that took it.
    """
    rows = dict(zip(prompts, vectors, strict=True))
    sampler = SharedSampler(pipe, sharing, encoder=lambda texts: np.stack([rows[text] for text in texts]))
    return sampler(prompts, num_steps, guidance_scale, seed, on_step=on_step)


def as_tensor(images: Sequence[Image.Image]) -> Tensor:
    """PIL images of equal size -> (N, 3, H, W) in [0, 1]."""
    stack = np.stack([np.asarray(image.convert("RGB"), np.float32) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous() / 255
