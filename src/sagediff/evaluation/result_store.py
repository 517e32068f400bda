"""The bench's folder: one JSON file per setting and seed, each written whole or not at all, so that a kill loses one.

OUT/run.json            what the bench is; a resumed one must be the same
OUT/cells/KEY-seedN.json
OUT/images/KEY/G.png  members of a few groups side by side, for the strip
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sagediff.evaluation.grid import Setting
from sagediff.files.atomic import output_errors, sweep, write_bytes, write_text, writing
from sagediff.files.json_input import read_object
from sagediff.files.output_folder import MANIFEST, OutputFolder


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

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Create the folder."""
        _make(self.path / "cells")
        for folder in (self.path, self.path / "cells", *self.path.glob("images/*")):
            sweep(folder)
        self.write_text(MANIFEST, json.dumps({"settings": dict(manifest)}, indent=2) + "\n")

    def read(self, setting: Setting, seed: int) -> dict[str, Any] | None:
        """The cell, or None where it is still to be made."""
        path = self.path / self._name(setting, seed)
        return read_object(path) if path.is_file() else None

    def write(self, setting: Setting, seed: int, cell: Mapping[str, Any]) -> None:
        self.write_text(self._name(setting, seed), json.dumps(cell, indent=2) + "\n")

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
        with writing(target) as partial:
            row.save(partial, format="PNG")

    @staticmethod
    def _name(setting: Setting, seed: int) -> str:
        return f"cells/{setting.key}-seed{seed}.json"


def _make(folder: Path) -> None:
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
