"""Small convolutional towers that turn images of 64 x 64 pixels into feature maps and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


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

    def __init__(self, dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.tower = ConvTower(widths)
        self.head = nn.Linear(
            self.tower.width * 16, dim
        )  # the last map is 4 x 4, kept because positions matter

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.tower(images)[-1].flatten(1))
        return out
