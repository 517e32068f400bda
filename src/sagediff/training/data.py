"""Pictures and captions: an imagefolder with metadata.jsonl, a saved `datasets` folder, or a hub name.

What is wrong with a user's folder is said before anything is encoded, with the file's name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sagediff.errors import InputError

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class CaptionedPictures:
    """captions: one a picture; files: where each picture is, or None; rows: the data set that holds them."""

    captions: list[str]
    files: list[Path | None]
    rows: Any

    def __len__(self) -> int:
        return len(self.captions)

    def pictures(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """(N, 3, height, width) in [-1, 1], scaled to cover `size` = (height, width) and cut at the centre.

        Raises:
            InputError: a picture that cannot be read; its name is in the message.
        """
        return torch.stack([self._picture(int(i), size) for i in indices])

    def _picture(self, index: int, size: tuple[int, int]) -> Tensor:
        file = self.files[index]
        try:
            if file is not None:
                with Image.open(file) as image:
                    picture = ImageOps.exif_transpose(image).convert("RGB")
            else:
                picture = self.rows[index]["image"].convert("RGB")
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
            raise InputError(f"cannot read the picture {file or index}: {error}") from error
        if picture.size != (size[1], size[0]):
            picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.LANCZOS)
        array = np.asarray(picture, np.float32) / 127.5 - 1
        return torch.from_numpy(array).permute(2, 0, 1)


def load_pictures(name: str) -> CaptionedPictures:
    """The training data under that name.

    Args:
        name: a folder with `metadata.jsonl` (`file_name`, `text`), a folder that `datasets` saved, or the name
            of a data set on the hub (the only case that uses the network) with columns `image` and `text`.

    Raises:
        InputError: no such data, or a line, a caption or a picture that is not there; the message names it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() and (folder / METADATA).is_file():
        return _imagefolder(folder)
    if (
        folder.is_dir()
        and not (folder / "dataset_info.json").is_file()
        and not (folder / "dataset_dict.json").is_file()
    ):
        raise InputError(
            f"{folder} holds no {METADATA}; training data is a folder of pictures with a {METADATA} "
            'of lines {"file_name": ..., "text": ...}, or a folder that `datasets` saved'
        )
    try:
        import datasets
    except ImportError as error:
        raise InputError("a `datasets` folder or hub name needs: pip install 'sagediff[train]'") from error
    if folder.is_dir():
        rows = datasets.load_from_disk(str(folder))
    elif folder.exists() or folder.is_absolute() or name.count("/") > 1:
        raise InputError(f"no such data: {name}")
    else:
        try:
            rows = datasets.load_dataset(name)
        except Exception as error:  # whatever the hub's client raises for a name it does not find
            raise InputError(f"cannot load the data set {name!r}: {str(error).splitlines()[0]}") from error
    if isinstance(rows, datasets.DatasetDict):
        rows = rows["train"] if "train" in rows else next(iter(rows.values()))
    missing = {"image", "text"} - set(rows.column_names)
    if missing:
        raise InputError(
            f"the data set {name} has no column {' or '.join(sorted(missing))}; its columns are "
            f"{', '.join(rows.column_names)}"
        )
    captions = [_caption(text, f"{name}, row {i}") for i, text in enumerate(rows["text"])]
    return _not_empty(CaptionedPictures(captions, [None] * len(captions), rows), name)


def _imagefolder(folder: Path) -> CaptionedPictures:
    captions: list[str] = []
    files: list[Path | None] = []
    path = folder / METADATA
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg})") from error
        name = record.get("file_name") if isinstance(record, dict) else None
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}: no `file_name`")
        file = folder / name
        if not file.is_file():
            raise InputError(f"{where}: no such picture: {file}")
        captions.append(_caption(record.get("text"), where))
        files.append(file)
    return _not_empty(CaptionedPictures(captions, files, None), str(path))


def _caption(text: object, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: no caption under `text`")
    return text.strip()


def _not_empty(data: CaptionedPictures, name: str) -> CaptionedPictures:
    if not len(data):
        raise InputError(f"{name} holds no pictures")
    return data
