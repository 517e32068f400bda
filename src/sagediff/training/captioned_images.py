"""Images and captions: an imagefolder with metadata.jsonl, a saved `datasets` folder, or a hub name.

What is wrong with a user's folder is said before anything is encoded, with the file's name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from sagediff.errors import InputError, first_line
from sagediff.files.image_input import to_rgb
from sagediff.files.imagefolder import METADATA, open_images, read_imagefolder
from sagediff.files.text_input import is_file, is_folder, shortened

if TYPE_CHECKING:  # what is wrong with a folder is said before torch is imported
    from torch import Tensor

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class CaptionedImages:
    """captions: one per image; files: where each image is; rows: the data set that holds them instead of files."""

    captions: list[str]
    files: list[Path]
    rows: Any = None

    def __len__(self) -> int:
        return len(self.captions)

    def images(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """(N, 3, height, width) in [-1, 1], scaled to cover `size` = (height, width) and cut at the centre.

        Raises:
            InputError: an image that cannot be read; its name is in the message.
        """
        import torch

        if self.rows is None:
            return torch.from_numpy(open_images([self.files[i] for i in indices], size)) * 2 - 1
        return torch.stack([self._row_image(int(i), size) for i in indices])

    def _row_image(self, index: int, size: tuple[int, int]) -> Tensor:
        """(3, height, width)."""
        import torch

        try:
            upright = to_rgb(ImageOps.exif_transpose(self.rows[index]["image"]))
            image = ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.LANCZOS)
        except Exception as error:  # whatever a broken file makes `datasets` and a decoder raise
            raise InputError(f"cannot read the image of row {index}: {first_line(error)}") from error
        return torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)


def load_images(name: str) -> CaptionedImages:
    """The training data under that name.

    Args:
        name: a folder with `metadata.jsonl` (`file_name`, `text`), a folder that `datasets` saved, or the name
            of a data set on the hub (the only case that uses the network) with columns `image` and `text`.

    Raises:
        InputError: no such data, or a line, a caption or an image that is not there; the message names it.
    """
    folder = Path(name).expanduser()
    if is_folder(folder) and is_file(folder / METADATA):
        found = read_imagefolder(folder)
        return CaptionedImages(found.captions, found.files)
    saved = any((folder / file).is_file() for file in ("dataset_info.json", "dataset_dict.json"))
    if is_folder(folder) and not saved:
        raise InputError(
            f"{folder} holds no {METADATA}; training data is a folder of images with a {METADATA} "
            'of lines {"file_name": ..., "text": ...}, or a folder that `datasets` saved'
        )
    if not is_folder(folder) and (folder.exists() or not _HUB_NAME.fullmatch(name)):
        raise InputError(
            f"no such data: {shortened(name)} is no folder, and not named like a data set on the hub (ORG/NAME)"
        )
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{name} is a folder that `datasets` saved: pip install 'sagediff[train]' to read it"
            if saved
            else f"there is no folder {name}; to take that name from the hub: pip install 'sagediff[train]'"
        ) from error
    if is_folder(folder):
        try:
            rows = datasets.load_from_disk(str(folder))
        except Exception as error:  # whatever a folder that is not whole makes it raise
            raise InputError(f"cannot read the data in {folder}: {first_line(error)}") from error
    else:
        try:
            rows = datasets.load_dataset(name)
        except Exception as error:  # whatever the hub's client raises for a name it does not find
            raise InputError(f"cannot load the data set {name!r}: {first_line(error)}") from error
    if isinstance(rows, datasets.DatasetDict):
        rows = rows["train"] if "train" in rows else next(iter(rows.values()))
    missing = {"image", "text"} - set(rows.column_names)
    if missing:
        raise InputError(
            f"the data set {name} has no column {' or '.join(sorted(missing))}; its columns are "
            f"{', '.join(rows.column_names)}"
        )
    captions = [text.strip() if isinstance(text, str) else "" for text in rows["text"]]
    if "" in captions:
        raise InputError(f"{name}, row {captions.index('')}: no caption under `text`")
    if not captions:
        raise InputError(f"{name} holds no images")
    return CaptionedImages(captions, [], rows)
