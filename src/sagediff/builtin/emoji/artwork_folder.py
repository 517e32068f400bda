"""The imagefolder that `data` writes, read back: rows of its metadata, and pixels. It trains nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sagediff.builtin.emoji.captions import Subject


@dataclass(frozen=True)
class Row:
    """One image of the folder; the fields are those of `data`."""

    file_name: str
    text: str
    name: str
    base: str
    tones: tuple[str, ...]
    vendor: str
    style: str
    keywords: tuple[str, ...]
    background: str
    split: str

    @property
    def subject(self) -> Subject:
        return Subject(self.base, self.tones, self.keywords, self.style, self.background)


def read_rows(
    folder: Path,
    vendors: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    backgrounds: int | None = None,
) -> list[Row]:
    """Rows in the folder's order, of these vendors and splits; None takes all.

    Args:
        backgrounds: images to take of each drawing, the first on white.
    """
    rows = []
    taken: Counter[tuple[str, str]] = Counter()
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        fields = {k: entry[k] for k in Row.__dataclass_fields__}
        fields |= {"tones": tuple(entry["tones"]), "keywords": tuple(entry["keywords"])}
        row = Row(**fields)
        drawing = (row.name, row.vendor)
        if backgrounds is not None and taken[drawing] >= backgrounds:
            continue
        taken[drawing] += 1
        if (vendors is None or row.vendor in vendors) and (splits is None or row.split in splits):
            rows.append(row)
    return rows


def read_pixels(folder: Path, rows: Sequence[Row]) -> Tensor:
    """(N, 3, 64, 64) uint8."""
    first = np.asarray(Image.open(folder / rows[0].file_name))
    pixels = np.empty((len(rows), *first.shape), dtype=np.uint8)
    for place, row in enumerate(rows):
        with Image.open(folder / row.file_name) as image:
            pixels[place] = np.asarray(image)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.float().contiguous() / 127.5 - 1
