"""Latents of a whole wave to pictures, without the memory of a whole wave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def decoding_one_by_one(pipe: Any) -> Iterator[None]:
    """Inside the context the pipeline's autoencoder decodes picture by picture, if it is one that can.

    A wave carries many more latents than an autoencoder could take at once: of 64 pictures of 512 pixels a side its
    largest layers alone would need tens of GiB.  Pictures change by rounding at most.  Afterwards the autoencoder is as
    it was found, also after an error.
    """
    vae = getattr(pipe, "vae", None)
    if getattr(vae, "use_slicing", True):  # has no such switch, or it is on already
        yield
        return
    assert vae is not None
    vae.enable_slicing()
    try:
        yield
    finally:
        vae.disable_slicing()
