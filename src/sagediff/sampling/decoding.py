"""Latents of a whole wave to images: without the memory of a whole wave, and with an eye on what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

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
    was found, also after an error.  Large videos are moved off the accelerator one by one too: a wave's frames would
    not fit it either.
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
        if latents.ndim == 5:
            return _one_by_one(decode, latents, *args, **kwargs)
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


def _one_by_one(decode: Callable[..., Any], latents: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What `decode` gives for all rows (N, ...), each decoded alone and kept in the machine's own memory.

    Args:
        args, kwargs: further arguments of `decode`; those with a row for each of the latents (a timestep) are cut too.
    """

    def row_of(value: Any, row: int) -> Any:
        is_per_row = isinstance(value, Tensor) and value.ndim and len(value) == len(latents)
        return value[row : row + 1] if is_per_row else value

    rows: list[Tensor] = []
    output: Any = None
    for row in range(len(latents)):
        output = decode(
            latents[row : row + 1],
            *(row_of(value, row) for value in args),
            **{name: row_of(value, row) for name, value in kwargs.items()},
        )
        rows.append((output[0] if isinstance(output, tuple) else output.sample).cpu())
    sample = torch.cat(rows)
    return (sample,) if isinstance(output, tuple) else type(output)(sample=sample)


class DecodedRows:
    """Which rows an autoencoder decoded to numbers that are not finite, in the order in which it was given them."""

    def __init__(self) -> None:
        self._finite: list[bool] = []

    def saw(self, output: Any) -> None:
        sample = output[0] if isinstance(output, tuple) else getattr(output, "sample", None)
        if isinstance(sample, Tensor) and sample.ndim:
            self._finite += sample.detach().isfinite().flatten(1).all(dim=1).tolist()

    def not_finite(self, count: int) -> frozenset[int]:
        """The images, of so many, that are not finite; all of them where it is not known whose rows those were."""
        if all(self._finite):
            return frozenset()
        if len(self._finite) != count:
            return frozenset(range(count))
        return frozenset(row for row, finite in enumerate(self._finite) if not finite)


@contextmanager
def decoded_rows(pipe: Any) -> Iterator[DecodedRows]:
    """Inside the context it is noted what the pipeline's autoencoder decodes; then that is as it was found."""
    rows = DecodedRows()
    autoencoder: Any = getattr(pipe, "vae", None) or getattr(pipe, "movq", None)
    if not hasattr(autoencoder, "decode"):
        yield rows
        return
    found = vars(autoencoder).get("decode")
    decode = autoencoder.decode

    def noted(*args: Any, **kwargs: Any) -> Any:
        output = decode(*args, **kwargs)
        rows.saw(output)
        return output

    autoencoder.decode = noted
    try:
        yield rows
    finally:
        if found is None:
            vars(autoencoder).pop("decode", None)
        else:
            autoencoder.decode = found
