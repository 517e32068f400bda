"""The networks that are not diffusers' own: a convolutional tower, the image encoder and the judge on it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from sagediff.builtin.scenes.world import ATTRIBUTES, VALUES

IMAGE_TOWER_WIDTHS = (32, 64, 96, 128)
SCORE_TOWER_WIDTHS = (16, 32, 64, 96)
JUDGE_WIDTHS = (24, 48, 96, 160)


class ConvTower(nn.Module):
    """Strided residual convolutions. (N, 3, 64, 64) in [-1, 1] -> list of feature maps, finest first."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_Stage(*sizes) for sizes in pairwise((3, *widths)))
        self.width = widths[-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.body = nn.Sequential(
            nn.GroupNorm(8, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        out: Tensor = x + self.body(x)
        return out


class ImageEncoder(nn.Module):
    """The contrastive stage's image tower. (N, 3, 64, 64) in [-1, 1] -> (N, D), not normalised."""

    def __init__(self, dim: int, widths: Sequence[int] = IMAGE_TOWER_WIDTHS) -> None:
        super().__init__()
        self.tower = ConvTower(widths)
        self.head = nn.Linear(
            self.tower.width * 16, dim
        )  # the last map is 4 x 4, kept because positions matter

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.tower(images)[-1].flatten(1))
        return out


class Judge(nn.Module):
    """Reads object, size, position and colour off an image, and gives features for distances.

    `forward`: (N, 3, 64, 64) in [-1, 1] -> dict of logits, one entry per attribute.
    `features`: -> (N, 128), before the heads.
    """

    feature_dim = 128

    def __init__(self, widths: Sequence[int] = JUDGE_WIDTHS) -> None:
        super().__init__()
        self.tower = ConvTower(widths)
        self.trunk = nn.Linear(self.tower.width * 16, self.feature_dim)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.feature_dim, len(VALUES[name])) for name in ATTRIBUTES}
        )

    def features(self, images: Tensor) -> Tensor:
        out: Tensor = self.trunk(self.tower(images)[-1].flatten(1))
        return out

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        hidden = nn.functional.silu(self.features(images))
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Label indices, shape (N, 4), in the order of `world.ATTRIBUTES`; images in [-1, 1]."""
        logits = self(images)
        return torch.stack([logits[name].argmax(1) for name in ATTRIBUTES], dim=1)


def load_judge(folder: Path) -> Judge:
    """The shipped judge, in eval mode, float32."""
    judge = Judge()
    load_model(judge, folder / "judge.safetensors")
    return judge.eval()


def load_score_tower(folder: Path, dim: int) -> ImageEncoder:
    """The shipped image tower that alignment is scored by, in eval mode, float32."""
    tower = ImageEncoder(dim, SCORE_TOWER_WIDTHS)
    load_model(tower, folder / "score_tower.safetensors")
    return tower.eval()


def load_image_encoder(folder: Path, dim: int) -> ImageEncoder:
    """The contrastive image tower, in eval mode, float32."""
    encoder = ImageEncoder(dim)
    load_model(encoder, folder / "image_encoder.safetensors")
    return encoder.eval()
