"""The judge of the scenes, and the shipped towers of this world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from sagediff.builtin.image_towers import ConvTower, ImageEncoder
from sagediff.builtin.scenes.world import ATTRIBUTES, VALUES

IMAGE_TOWER_WIDTHS = (32, 64, 96, 128)
SCORE_TOWER_WIDTHS = (16, 32, 64, 96)
JUDGE_WIDTHS = (24, 48, 96, 160)


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
    encoder = ImageEncoder(dim, IMAGE_TOWER_WIDTHS)
    load_model(encoder, folder / "image_encoder.safetensors")
    return encoder.eval()
