"""What looks at images: the protocol that the bench asks for, and the networks of users with a hub or folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sagediff.evaluation.alignment import clip_scores
from sagediff.evaluation.feature_networks import Clip, Features, open_features

DEFAULT_FEATURES = "facebook/dinov2-base"
DEFAULT_CLIP = "openai/clip-vit-base-patch16"


class Perception(Protocol):
    """Turns images into what the metrics measure. No result may depend on how images are batched."""

    @property
    def name(self) -> str:
        """Says which networks look; figures of different names are not comparable."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, D), for Frechet and kernel distance, diversity and Vendi score."""
        ...

    def alignment(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(N, 3, H, W) in [0, 1] and N prompts -> (N,) cosines of image and prompt."""
        ...


@runtime_checkable
class Judging(Protocol):
    """A perception that also knows what is right. Its keys become columns of the table."""

    def accuracy(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """(N, 3, H, W) in [0, 1] and N prompts -> bools (N,) by name; empty for prompts that it cannot judge."""
        ...


class NetworkPerception:
    """Features of one network, alignment by a CLIP model.

    Args:
        features: "inception", "efficientnet-lite0", or a folder or hub id of a DINOv2 or CLIP model (or any that
            transformers' AutoModel gives a pooled output of).
        clip: folder or hub id of a CLIP model.
        device: where the networks run.
        batch_size: images looked at together; changes no result beyond rounding.

    Raises:
        InputError: a model that is not there, or a package that is missing; the message names the command.
    """

    def __init__(
        self,
        features: str = DEFAULT_FEATURES,
        clip: str = DEFAULT_CLIP,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        self._clip = Clip(clip, device)
        self._features: Features = self._clip if features == clip else open_features(features, device)
        self.name = f"features {features}, CLIP {clip}"
        self._batch_size = batch_size

    def features(self, images: Tensor) -> Tensor:
        return torch.cat([self._features(part) for part in torch.split(images, self._batch_size)])

    def alignment(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        vectors = torch.cat([self._clip(part) for part in torch.split(images, self._batch_size)])
        starts = range(0, len(prompts), self._batch_size)
        texts = torch.cat([self._clip.texts(prompts[i : i + self._batch_size]) for i in starts])
        return torch.from_numpy(clip_scores(vectors, texts))
