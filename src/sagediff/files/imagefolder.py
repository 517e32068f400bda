"""A folder of captioned images as diffusers users have it: `metadata.jsonl` with `file_name` and `text`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from sagediff.errors import InputError
from sagediff.files.image_input import open_rgb
from sagediff.files.json_input import parse
from sagediff.files.prompt_text import text_fault
from sagediff.files.text_input import is_file, is_folder, read_lines, shortened

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
    if not is_folder(folder):
        raise InputError(f"no such folder: {folder}")
    if not is_file(path):
        raise InputError(
            f'{folder} holds no {METADATA}; expected lines of {{"file_name": ..., "text": ...}} beside the images'
        )
    captions, files = [], []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = parse(line, where)
        name, text = (record.get(key) if isinstance(record, dict) else None for key in ("file_name", "text"))
        files.append(_image(folder, name, where))
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: no caption under `text`")
        if fault := text_fault(text):
            raise InputError(f"{where}: the caption {fault}")
        captions.append(text.strip())
    if not files:
        raise InputError(f"{path} names no images")
    return ImageFolder(captions, files)


def _image(folder: Path, name: object, where: str) -> Path:
    """The file that a line names. What lies elsewhere was not put there to be trained on."""
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: no such image: {shortened(repr(name))}; `file_name` should name one")
    file = folder / name
    if Path(name).is_absolute() or os.pardir in Path(name).parts:
        raise InputError(f"{where}: `file_name` leaves the folder: {shortened(name)}")
    try:
        there = is_file(file)
        inside = there and file.resolve().is_relative_to(folder.resolve())
    except (InputError, OSError, RuntimeError) as error:
        raise InputError(f"{where}: {error}") from error
    if not there:
        kind = "it is no regular file" if file.exists() else "no such image"
        raise InputError(f"{where}: {kind}: {shortened(file)}")
    if not inside:
        raise InputError(f"{where}: `file_name` leaves the folder by a link: {shortened(name)}")
    return file


def list_images(folder: Path) -> list[Path]:
    """Every image below a folder, sorted by path.

    Raises:
        InputError: no folder, or no images in it.
    """
    if not is_folder(folder):
        raise InputError(f"no such folder: {folder}")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def open_images(files: Sequence[Path], size: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
    """(N, 3, H, W) in [0, 1]; scaled to cover `size` = (height, width) and cut at the centre where it is given.

    Raises:
        InputError: a file that `open_rgb` refuses, or images of different size without `size`.
    """
    arrays = []
    for file in files:
        upright = open_rgb(file)
        if size is not None and upright.size != (size[1], size[0]):
            upright = ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.LANCZOS)
        arrays.append(np.asarray(upright, np.float32).transpose(2, 0, 1) / np.float32(255))
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise InputError(f"images differ in size: {sorted(shapes)}")
    return np.stack(arrays) if arrays else np.zeros((0, 3, *(size or (0, 0))), np.float32)
