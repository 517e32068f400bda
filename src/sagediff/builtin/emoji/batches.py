"""Batches for the denoiser out of the cache: latents with one of each image's captions, some captions dropped.

Images are drawn with weights: a drawing that exists in n skin tones gets the n-th root's share, so that 12 forms of
one drawing don't crowd out twelve drawings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from sagediff.builtin.emoji.images import Row

DROPPED = 0.1


@dataclass(frozen=True)
class Batch:
    """latents (N, C, 16, 16) float32; text (N, L, D) float32; mask (N, L) bool."""

    latents: Tensor
    text: Tensor
    mask: Tensor


def image_weights(rows: Sequence[Row]) -> NDArray[np.float64]:
    """(N,) probabilities: each drawing by one vendor weighs the square root of the number of its images."""
    forms = Counter((row.base, row.vendor) for row in rows)
    weights = np.array([forms[row.base, row.vendor] ** -0.5 for row in rows])
    return np.asarray(weights / weights.sum())


class CachedBatches:
    """Draws batches from the folder that `cache` writes.

    Args:
        rows: the training images, in the order of the cache.
    """

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        self._latents = load_file(folder / "latents.safetensors")["latents"]
        names = sorted(p for p in folder.glob("captions-*.npy") if p.stem.removeprefix("captions-").isdigit())
        self._text = [np.load(path, mmap_mode="r") for path in names]
        self._masks = [np.load(path.with_suffix(".mask.npy")) for path in names]
        sizes = {len(self._latents), *(len(text) - 1 for text in self._text)}
        if not names or sizes != {len(rows)}:
            raise ValueError(
                f"{folder} holds {sorted(sizes)} images, the data {len(rows)}: run the cache stage again"
            )
        self._bounds = np.cumsum(image_weights(rows))

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        which = np.searchsorted(self._bounds, rng.random(count) * self._bounds[-1]).clip(
            max=len(self._latents) - 1
        )
        variants = rng.integers(len(self._text), size=count)
        captions = np.where(rng.random(count) < DROPPED, len(self._latents), which)  # the last one is empty
        text = np.stack([self._text[v][c] for v, c in zip(variants, captions, strict=True)])
        mask = np.stack([self._masks[v][c] for v, c in zip(variants, captions, strict=True)])
        return Batch(
            self._latents[torch.from_numpy(which)].float(),
            torch.from_numpy(text).float(),
            torch.from_numpy(mask),
        )
