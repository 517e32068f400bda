"""Latents of a whole wave to images, without the memory of a whole wave."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Up to here as the pipeline itself does it, so that images equal its own to the last bit.
AT_ONCE = 16
# Of all latents together, height times width: four images of 512 pixels per side, or one of 1024, where a latent stands
# for 8 x 8 pixels. The largest layers of a decoder take far more memory per image than a denoiser's rows do.
LATENTS_AT_ONCE = 4 * 64 * 64


@contextmanager
def decoding_in_parts(pipe: Any) -> Iterator[None]:
    """Inside the context the pipeline's autoencoder decodes many or large images one by one, if it can.

    A wave carries many more latents than an autoencoder could take at once: of 16 images of 1024 pixels per side its
    largest layers alone would need 24 GiB.  Images change by rounding at most.  Afterwards the autoencoder is as it
    was found, also after an error.
    """
    autoencoder: Any = getattr(pipe, "vae", None)
    # no such switch, on already, or someone else's
    if getattr(autoencoder, "use_slicing", True) or "decode" in vars(autoencoder):
        yield
        return
    decode = autoencoder.decode

    def in_parts(latents: Any, *args: Any, **kwargs: Any) -> Any:
        if len(latents) <= AT_ONCE and len(latents) * math.prod(latents.shape[2:]) <= LATENTS_AT_ONCE:
            return decode(latents, *args, **kwargs)
        autoencoder.enable_slicing()
        try:
            return decode(latents, *args, **kwargs)
        finally:
            autoencoder.disable_slicing()

    autoencoder.decode = in_parts
    try:
        yield
    finally:
        vars(autoencoder).pop("decode", None)
