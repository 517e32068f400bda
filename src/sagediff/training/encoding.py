"""Latents and conditions of the training examples: encoded once where they fit, else anew each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sagediff.progress import stderr_track
from sagediff.training.captioned_images import CaptionedImages
from sagediff.training.latents import LatentLayout
from sagediff.training.trainable import TrainableDenoiser

Encoded = TypeVar("Encoded")
_BATCH = 32  # examples encoded at once


class EncodedExamples:
    """Clean latents by image number and conditions by caption number.

    Args:
        denoiser: says what conditions it takes; its pipeline's autoencoder and text encoders are used and stay frozen.
        data: images and captions.
        captions: the distinct captions, which `conditions` counts.
        size: (height, width) in pixels.
        cache_limit: bytes that the encoded examples may take in all.
    """

    def __init__(
        self,
        denoiser: TrainableDenoiser,
        data: CaptionedImages,
        captions: Sequence[str],
        size: tuple[int, int],
        cache_limit: float,
    ) -> None:
        self._denoiser, self._data = denoiser, data
        self._layout = LatentLayout.of(denoiser)
        self._captions, self._size = list(captions), size
        self._dtype = torch.float16 if denoiser.module.device.type != "cpu" else torch.float32
        of_images = self._encode_images([0]).nbytes * len(data)
        of_prompts = sum(rows.nbytes for rows in self._encode_prompts([0]).values()) * len(captions)
        self._latents: Tensor | None = None
        self._conditions: dict[str, Tensor] | None = None
        if of_prompts <= cache_limit:
            cache_limit -= of_prompts
            rows = denoiser.padded(_in_parts(len(captions), "encoding prompts", self._encode_prompts))
            self._conditions = {k: torch.cat([row[k] for row in rows]) for k in rows[0]}
        if of_images <= cache_limit:
            self._latents = torch.cat(_in_parts(len(data), "encoding images", self._encode_images))

    @torch.no_grad()
    def _encode_images(self, indices: Sequence[int]) -> Tensor:
        images = self._data.images(indices, self._size)
        return self._layout.encode(self._denoiser.pipe.vae, images).to(self._dtype)

    def _encode_prompts(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return self._denoiser.conditions([self._captions[i] for i in indices])

    def latents(self, indices: Sequence[int]) -> Tensor:
        """(N, ...) float32, on the denoiser's device."""
        rows = self._encode_images(indices) if self._latents is None else self._latents[list(indices)]
        return rows.to(self._denoiser.module.device, torch.float32)

    def conditions(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Each (N, ...), of the captions with those numbers."""
        if self._conditions is None:
            return self._encode_prompts(indices)
        return {k: rows[list(indices)] for k, rows in self._conditions.items()}


def _in_parts(count: int, words: str, encode: Callable[[Sequence[int]], Encoded]) -> list[Encoded]:
    starts = range(0, count, _BATCH)
    return [encode(range(count)[start : start + _BATCH]) for start in stderr_track(starts, words)]
