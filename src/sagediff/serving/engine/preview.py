"""Previews of unfinished images: latents decoded by the pipeline's own autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sagediff.denoiser.lookup import denoiser_of
from sagediff.denoiser.private_names import unwrapped

# denoisers whose latents are (N, C, H, W), scaled and shifted, not packed
_PLAIN_LATENTS = ("UNet2DConditionModel", "SD3Transformer2DModel")

Previewer = Callable[[Tensor], list[Any]]
"""Latents (N, C, H, W) to N PIL images."""


def previewer_of(pipe: Any) -> Previewer | None:
    """Decodes this pipeline's latents; None where they are packed or normalised in another way, so that there are no
    previews."""
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
