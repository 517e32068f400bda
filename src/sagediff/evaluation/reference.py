"""Features of real images, as the reference of the distances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sagediff.errors import InputError
from sagediff.evaluation.perception import Perception
from sagediff.files.imagefolder import open_images


@dataclass(frozen=True)
class Reference:
    """features: (M, D) of real images; paired: whether row i shows prompt i, which makes distances sharper."""

    features: Tensor
    paired: bool


def file_features(
    files: Sequence[Path],
    perception: Perception,
    size: tuple[int, int],
    batch_size: int = 64,
    on_images: Callable[[int], None] | None = None,
) -> Tensor:
    """Features of real images, (N, D).

    Args:
        size: (height, width) that images are scaled and cut to; take the made images', so that a distance
            tells no sizes apart.
        batch_size: images held at once.
        on_images: called with the number of images that were just looked at.

    Raises:
        InputError: fewer than two images, or one that cannot be read; the file is named.
    """
    if len(files) < 2:
        raise InputError(f"a reference needs at least two images, got {len(files)}")
    parts = []
    for start in range(0, len(files), batch_size):
        images = torch.from_numpy(open_images(files[start : start + batch_size], size))
        parts.append(perception.features(images))
        if on_images is not None:
            on_images(len(images))
    return torch.cat(parts)


def made_size(pipe: Any, prompt: str) -> tuple[int, int]:
    """(height, width) of the images that a pipeline makes; it makes one in two steps."""
    image = pipe(prompt=[prompt], num_inference_steps=2, output_type="pil").images[0]
    return image.height, image.width
