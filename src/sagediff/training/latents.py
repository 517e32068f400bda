"""Images as the latents that a denoiser takes: the pipeline's own way from latents to its autoencoder, backwards.

Pipelines pack latents into tokens, scale and shift them, some by channel, before they decode. None of that is repeated
here: latents are handed to the pipeline's own decoding, and what arrives at the autoencoder tells for every number
where it goes, by which factor and by which offset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sagediff.errors import UnsupportedPipelineError
from sagediff.training.answered import Left, stepping
from sagediff.training.trainable import TrainableDenoiser

_BASE = 16  # places are told in digits, which half precision holds


@dataclass(frozen=True)
class LatentLayout:
    """From an autoencoder's latents to those of the denoiser.

    Attributes:
        raw_shape: of the autoencoder's latents of one image, (C, H, W) or (C, 1, H, W).
        shape: of the denoiser's.
        place: (numbers,) for each number of the autoencoder's latents, its place in the denoiser's.
        factor, offset: (numbers,) raw = factor x latents + offset, in the order of the raw ones.
    """

    raw_shape: tuple[int, ...]
    shape: tuple[int, ...]
    place: Tensor
    factor: Tensor
    offset: Tensor

    @classmethod
    def of(cls, denoiser: TrainableDenoiser) -> LatentLayout:
        """Read off one run of the pipeline, whose denoiser is not run.

        Raises:
            UnsupportedPipelineError: the pipeline has no `vae`, or its way to it is not of that kind.
        """
        pipe, shape = denoiser.pipe, denoiser.sample_shape
        numbers = torch.Size(shape).numel()
        places = torch.arange(numbers)
        digits: list[Tensor] = []
        while numbers > _BASE ** len(digits):
            digits.append(places // _BASE ** len(digits) % _BASE)
        probes = torch.stack(
            [torch.zeros(numbers), torch.ones(numbers), *((digit - 7.5) / 8 for digit in digits)]
        )
        raw = _decoded(denoiser, probes.view(len(probes), *shape))
        flat = raw.flatten(1).double().cpu()
        if flat.shape[1] != numbers:
            raise _unknown(pipe, f"{tuple(raw.shape[1:])} latents are decoded of {shape} that are denoised")
        offset, factor = flat[0], flat[1] - flat[0]
        read = [((row - offset) / factor * 8 + 7.5).round() for row in flat[2:]]
        place = sum(
            (digit * _BASE**power for power, digit in enumerate(read)), torch.zeros(numbers)
        ).nan_to_num(-1)
        if not torch.equal(place.long().sort().values, places):
            raise _unknown(pipe, "they are mixed with each other before they are decoded")
        return cls(tuple(raw.shape[1:]), shape, place.long(), factor.float(), offset.float())

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to what the denoiser takes, (N, ...), without noise.

        Raises:
            UnsupportedPipelineError: the autoencoder's latents have another shape than those it is given to decode.
        """
        pixels = images.unsqueeze(2) if len(self.raw_shape) == 4 else images
        encoded = vae.encode(pixels.to(vae.device, vae.dtype))
        if hasattr(encoded, "latent_dist"):
            raw = encoded.latent_dist.mode()
        else:
            raw = encoded.latent if hasattr(encoded, "latent") else encoded.latents
        if tuple(raw.shape[1:]) != self.raw_shape:
            raise UnsupportedPipelineError(
                f"{type(vae).__name__} encodes images of {tuple(images.shape[2:])} pixels to {tuple(raw.shape[1:])}, "
                f"and the pipeline decodes {self.raw_shape}; take another --resolution"
            )
        values = (raw.flatten(1).float() - self.offset.to(raw.device)) / self.factor.to(raw.device)
        latents = torch.empty_like(values)
        latents[:, self.place.to(raw.device)] = values
        return latents.view(-1, *self.shape)


def _decoded(denoiser: TrainableDenoiser, latents: Tensor) -> Tensor:
    """What arrives at the autoencoder when a run ends at these latents (N, ...), which the denoiser takes."""
    pipe = denoiser.pipe
    vae = getattr(pipe, "vae", None)
    if vae is None:
        raise _unknown(pipe, "it holds no `vae`")
    arrived: list[Tensor] = []
    decode = vae.decode
    family = denoiser.family

    def noted(raw: Tensor, *args: Any, **kwargs: Any) -> Any:
        arrived.append(raw.detach().clone())
        if sum(map(len, arrived)) >= len(latents):
            raise Left
        return decode(raw, *args, **kwargs)

    def answer(named: dict[str, Any], forward: Callable[[], Any]) -> Any:
        sample = family.tensors(named, type(denoiser.module).__name__)[family.sample]
        return denoiser.answer(torch.zeros_like(sample), named)

    def end(state: Tensor) -> Tensor:
        sizes = [[size for size in shape if size > 1] for shape in (state.shape[1:], latents.shape[1:])]
        if sizes[0] != sizes[1] or len(state) != len(latents):
            raise _unknown(
                pipe, f"its solver steps {tuple(state.shape[1:])}, its denoiser takes {denoiser.sample_shape}"
            )
        return latents.to(state).view_as(state)

    vae.decode = noted
    try:
        with stepping(pipe.scheduler, end):
            denoiser.run(["an image"] * len(latents), answer, False, 2, output_type="pt")
    finally:
        del vae.decode
    if sum(map(len, arrived)) != len(latents):
        raise _unknown(pipe, "it does not decode them by its `vae`")
    return torch.cat(arrived)


def _unknown(pipe: Any, why: str) -> UnsupportedPipelineError:
    return UnsupportedPipelineError(
        f"training cannot tell how {type(pipe).__name__} decodes its latents ({why}), and so not how to encode images "
        "for it; it can be sampled, but not trained"
    )
