"""The artwork as an imagefolder: written by the stage `data`, and read back by the stages after it.

images/*.png and metadata.jsonl, one line per image: `file_name`, `text` (the plain caption), `name`, `base`, `tones`,
`vendor`, `style`, `licence`, `keywords`, `group`, `background`, `split` (train, held_out, unseen). The stages read all
of it and leave out by `split` what they must not see; a trainer that takes every image of a folder needs one with the
training images alone.
"""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sagediff.builtin.emoji.artwork import Artwork
from sagediff.builtin.emoji.emoji_captions import Subject, plain_caption
from sagediff.builtin.emoji.emoji_names import slug
from sagediff.builtin.emoji.svg_render import BACKGROUNDS, draw, on_background, stands_out
from sagediff.errors import InputError
from sagediff.files.atomic import write_json_lines
from sagediff.files.imagefolder import METADATA
from sagediff.files.json_input import parse_object
from sagediff.files.text_input import read_lines
from sagediff.progress import stderr_track


@dataclass(frozen=True)
class ArtworkRow:
    """One image of the folder."""

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


def write_artwork(out: Path, artwork: Sequence[Artwork], backgrounds: int) -> Path:
    """Draw all of it; metadata.jsonl comes last, so that it names whole files. What can't be drawn is named on stderr.

    Args:
        backgrounds: images of each drawing, the first on white.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for one in stderr_track(artwork, "drawings"):
        try:
            records += _draw_all(one, out, backgrounds)
        except InputError:
            raise
        except ValueError as error:
            print(f"left out: {one.emoji.name} of {one.vendor.key}: {error}", file=sys.stderr)
    write_json_lines(out / METADATA, records)
    return out


def _draw_all(one: Artwork, out: Path, backgrounds: int) -> Iterator[dict[str, Any]]:
    emoji, vendor = one.emoji, one.vendor
    drawing = draw(one.icon)
    for background in backgrounds_of(emoji.name, vendor.key, backgrounds, drawing):
        name = f"images/{vendor.key}_{slug(emoji.name) or emoji.code_points}_{slug(background)}.png"
        Image.fromarray(on_background(drawing, background)).save(out / name)
        subject = Subject(emoji.base, emoji.tones, emoji.keywords, vendor.words, background)
        yield {
            "file_name": name, "text": plain_caption(subject), "name": emoji.name, "base": emoji.base,
            "tones": list(emoji.tones), "vendor": vendor.key, "style": vendor.words, "licence": vendor.licence,
            "keywords": list(emoji.keywords), "group": emoji.group, "background": background, "split": one.split,
        }  # fmt: skip


def backgrounds_of(name: str, vendor: str, count: int, drawing: NDArray[np.float32]) -> list[str]:
    """White, then other backgrounds chosen by the name and the vendor, of those that the drawing stands out from."""
    others = [b for b in BACKGROUNDS if b != "white" and stands_out(drawing, b)]
    others.sort(key=lambda b: zlib.crc32(f"{name}|{vendor}|{b}".encode()))
    return ["white", *others][:count]


def read_rows(
    folder: Path,
    vendors: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    backgrounds: int | None = None,
) -> list[ArtworkRow]:
    """Rows in the folder's order, of these vendors and splits; None takes all.

    Args:
        backgrounds: images to take of each drawing, the first on white.

    Raises:
        InputError: no such folder, a line of another form, or nothing that fits.
    """
    path = folder / METADATA
    if not path.is_file():
        raise InputError(f"there is no {path}; run the stage `data` into the same --out")
    rows = []
    taken: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        entry = parse_object(line, where)
        try:
            fields = {key: entry[key] for key in ArtworkRow.__dataclass_fields__}
        except KeyError as error:
            raise InputError(f"{where}: no {error}; the stage `data` writes it") from error
        fields |= {"tones": tuple(entry["tones"]), "keywords": tuple(entry["keywords"])}
        row = ArtworkRow(**fields)
        taken[row.name, row.vendor] += 1
        if backgrounds is not None and taken[row.name, row.vendor] > backgrounds:
            continue
        if (vendors is None or row.vendor in vendors) and (splits is None or row.split in splits):
            rows.append(row)
    if not rows:
        raise InputError(f"{path} holds no images of the chosen vendors and splits")
    return rows


def read_pixels(folder: Path, rows: Sequence[ArtworkRow]) -> Tensor:
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


def image_weights(rows: Sequence[ArtworkRow]) -> NDArray[np.float64]:
    """(N,) probabilities: a drawing by one vendor weighs the square root of the number of its images.

    So 12 skin tones of one drawing do not crowd out twelve drawings.
    """
    forms = Counter((row.base, row.vendor) for row in rows)
    weights = np.array([forms[row.base, row.vendor] ** -0.5 for row in rows])
    return np.asarray(weights / weights.sum())


def draw_rows(bounds: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(count,) row numbers.

    Args:
        bounds: cumulative sums of weights.
    """
    places = np.searchsorted(bounds, rng.random(count) * bounds[-1])
    return np.asarray(np.minimum(places, len(bounds) - 1), dtype=np.int64)
