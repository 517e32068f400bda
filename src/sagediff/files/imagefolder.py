"""A folder of captioned images as diffusers users have it: `metadata.jsonl` with `file_name` and `text`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from sagediff.errors import InputError

METADATA = "metadata.jsonl"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class ImageFolder:
    """One caption and one file per image, in the order of the metadata."""

    captions: list[str]
    files: list[Path]


def read_imagefolder(folder: Path) -> ImageFolder:
    """The captions and image files of a folder; the images are not opened.

    Raises:
        InputError: no folder, no metadata.jsonl, or a line without an image or caption; the line is named.
    """
    path = folder / METADATA
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    if not path.is_file():
        raise InputError(
            f'{folder} holds no {METADATA}; expected lines of {{"file_name": ..., "text": ...}} beside the images'
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    captions, files = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg})") from error
        name, text = (record.get(key) if isinstance(record, dict) else None for key in ("file_name", "text"))
        if not isinstance(name, str) or not (folder / name).is_file():
            raise InputError(f"{where}: no such image: {folder / str(name)}")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: no caption under `text`")
        captions.append(text.strip())
        files.append(folder / name)
    if not files:
        raise InputError(f"{path} names no images")
    return ImageFolder(captions, files)


def list_images(folder: Path) -> list[Path]:
    """Every image below a folder, sorted by path.

    Raises:
        InputError: no folder, or no images in it.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def open_images(files: Sequence[Path], size: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
    """(N, 3, H, W) in [0, 1]; scaled to cover `size` = (height, width) and cut at the centre where it is given.

    Raises:
        InputError: a file that is no image, or images of different size without `size`.
    """
    arrays = []
    for file in files:
        try:
            with Image.open(file) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
            raise InputError(f"cannot read the image {file}: {error}") from error
        if size is not None and upright.size != (size[1], size[0]):
            upright = ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.LANCZOS)
        arrays.append(np.asarray(upright, np.float32).transpose(2, 0, 1) / np.float32(255))
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise InputError(f"images differ in size: {sorted(shapes)}")
    return np.stack(arrays) if arrays else np.zeros((0, 3, *(size or (0, 0))), np.float32)
