"""The bench's folder: one JSON file per setting and seed, each written whole or not at all, so that a kill loses one.

OUT/run.json            what the bench is; one that goes on must be the same
OUT/cells/KEY-seedN.json
OUT/images/KEY/G.png  members of a few groups side by side, for the strip
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sagediff.errors import InputError
from sagediff.evaluation.grid import Setting
from sagediff.files.atomic import output_errors, sweep, write_bytes, write_text
from sagediff.files.digest import object_digest
from sagediff.files.image_formats import PNG
from sagediff.files.json_input import read_object
from sagediff.files.output_folder import MANIFEST, OutputFolder

_DIGEST = "digest"  # of all else in a cell: one that was cut or changed is made again


class CellStore:
    """Cells by setting and seed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, manifest: Mapping[str, Any], resume: bool) -> None:
        """Refuse a folder that this bench must not write to; writes nothing.

        Raises:
            InputError: in use without `resume`, or resumed with other settings.
        """
        OutputFolder(self.path).check(manifest, resume)

    def check_content(self, content: Mapping[str, str]) -> None:
        """As `OutputFolder.check_content`."""
        OutputFolder(self.path).check_content(content)

    def begin(self, manifest: Mapping[str, Any], content: Mapping[str, str]) -> None:
        """Create the folder."""
        _make(self.path / "cells")
        for folder in (self.path, self.path / "cells", *self.path.glob("images/*")):
            sweep(folder)
        about = {"settings": dict(manifest), "content": dict(content)}
        self.write_text(MANIFEST, json.dumps(about, indent=2) + "\n")

    def read(self, setting: Setting, seed: int) -> dict[str, Any] | None:
        """The cell, or None where it is still to be made: not there, not whole, or of something else."""
        path = self.path / self._name(setting, seed)
        if path.is_symlink() or not path.is_file():
            return None
        try:
            cell = read_object(path)
        except InputError:
            return None
        digest = cell.pop(_DIGEST, None)
        of = (json.loads(json.dumps(setting.record())), seed)
        if digest != object_digest(cell) or (cell.get("setting"), cell.get("seed")) != of:
            return None
        return cell

    def write(self, setting: Setting, seed: int, cell: Mapping[str, Any]) -> None:
        """Write a cell; it has `setting`, `seed`, `figures` and `bands`. A figure that is not finite is none."""
        known = {"figures": _known(cell["figures"]), "bands": [_known(band) for band in cell["bands"]]}
        whole = json.loads(json.dumps(dict(cell) | known))
        whole[_DIGEST] = object_digest(whole)
        self.write_text(self._name(setting, seed), json.dumps(whole, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        write_text(self.path / name, text)

    def write_bytes(self, name: str, data: bytes) -> None:
        write_bytes(self.path / name, data)

    def strip_path(self, setting: Setting, group: int) -> Path:
        return self.path / "images" / setting.key / f"{group}.png"

    def save_strip(self, setting: Setting, group: int, images: Sequence[Image.Image]) -> None:
        """Images of equal size, side by side."""
        width, height = images[0].size
        row = Image.new("RGB", (width * len(images), height))
        for place, image in enumerate(images):
            row.paste(image, (place * width, 0))
        target = self.strip_path(setting, group)
        _make(target.parent)
        write_bytes(target, PNG.encode(row, {}))

    def has_strip(self, setting: Setting, group: int) -> bool:
        """Whether a strip's image is there, whole."""
        return PNG.is_whole_file(self.strip_path(setting, group), {})

    @staticmethod
    def _name(setting: Setting, seed: int) -> str:
        return f"cells/{setting.key}-seed{seed}.json"


def _known(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures, None in place of what is not finite: JSON has no such numbers."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}


def _make(folder: Path) -> None:
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
