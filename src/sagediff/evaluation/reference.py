"""Features of real pictures, as the reference of the distances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sagediff.errors import InputError
from sagediff.evaluation.perception import Perception
from sagediff.files.imagefolder import list_pictures, open_pictures


@dataclass(frozen=True)
class Reference:
    """features: (M, D) of real pictures; paired: whether row i shows prompt i, which makes distances sharper."""

    features: Tensor
    paired: bool


def folder_features(folder: Path, perception: Perception, size: tuple[int, int]) -> Tensor:
    """As `file_features`, of every picture below a folder.

    Raises:
        InputError: no folder, no pictures, or a broken one; the file is named.
    """
    return file_features(list_pictures(folder), perception, size)


def file_features(
    files: Sequence[Path],
    perception: Perception,
    size: tuple[int, int],
    batch_size: int = 64,
    on_pictures: Callable[[int], None] | None = None,
) -> Tensor:
    """Features of real pictures, (N, D).

    Args:
        size: (height, width) that pictures are scaled and cut to; take the made pictures', so that a distance
            tells no sizes apart.
        batch_size: pictures held at once.
        on_pictures: called with the number of pictures that were just looked at.

    Raises:
        InputError: fewer than two pictures, or one that cannot be read; the file is named.
    """
    if len(files) < 2:
        raise InputError(f"a reference needs at least two pictures, got {len(files)}")
    parts = []
    for start in range(0, len(files), batch_size):
        pictures = torch.from_numpy(open_pictures(files[start : start + batch_size], size))
        parts.append(perception.features(pictures))
        if on_pictures is not None:
            on_pictures(len(pictures))
    return torch.cat(parts)
