"""Latents of a whole wave to pictures, without the memory of a whole wave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# up to here as the pipeline itself does it, so that pictures equal its own to the last bit
AT_ONCE = 16


@contextmanager
def decoding_one_by_one(pipe: Any, pictures: int) -> Iterator[None]:
    """Inside the context the pipeline's autoencoder decodes more than `AT_ONCE` pictures one by one, if it can.

    A wave carries many more latents than an autoencoder could take at once: of 64 pictures of 512 pixels a side its
    largest layers alone would need tens of GiB.  Pictures change by rounding at most.  Afterwards the autoencoder is as
    it was found, also after an error.
    """
    vae = getattr(pipe, "vae", None)
    if pictures <= AT_ONCE or getattr(vae, "use_slicing", True):  # no such switch, or it is on already
        yield
        return
    assert vae is not None
    vae.enable_slicing()
    try:
        yield
    finally:
        vae.disable_slicing()
