"""What an image looks like on its way: latents through the pipeline's own autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sagediff.denoiser.lookup import denoiser_of
from sagediff.denoiser.private_names import unwrapped

_PLAIN_LATENTS = (
    "UNet2DConditionModel",
    "SD3Transformer2DModel",
)  # (N, C, H, W), scaled and shifted, not packed

Previewer = Callable[[Tensor], list[Any]]
"""Latents (N, C, H, W) to N PIL images."""


def previewer_of(pipe: Any) -> Previewer | None:
    """How this pipeline's latents are shown; None where they are packed or normalised in a way of their own, and where
    images are therefore shown only when finished."""
    vae, processor = getattr(pipe, "vae", None), getattr(pipe, "image_processor", None)
    if (
        type(unwrapped(denoiser_of(pipe))).__name__ not in _PLAIN_LATENTS
        or type(vae).__name__ != "AutoencoderKL"
        or processor is None
    ):
        return None
    autoencoder: Any = vae

    def preview(latents: Tensor) -> list[Any]:
        config = autoencoder.config
        shift = getattr(config, "shift_factor", None) or 0.0
        with torch.no_grad():
            decoded = autoencoder.decode(latents / config.scaling_factor + shift, return_dict=False)[0]
        return list(processor.postprocess(decoded, output_type="pil"))

    return preview
