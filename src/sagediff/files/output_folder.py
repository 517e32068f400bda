"""The output folder: images, metadata, report; written so that a kill at any moment loses nothing finished."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sagediff.errors import InputError
from sagediff.files.atomic import (
    is_leftover,
    output_errors,
    sweep,
    write_bytes,
    write_json_lines,
    write_text,
    writing,
)

MANIFEST = "run.json"


class OutputFolder:
    """One run's folder. `run.json`, with the run's settings, is written first; images follow one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def image_path(self, index: int) -> Path:
        return self.path / "images" / f"{index:06d}.png"

    def check(self, settings: Mapping[str, Any], resume: bool) -> None:
        """Refuse a folder that this run must not write to. Writes nothing.

        Raises:
            InputError: in use without `resume`, or resumed with other settings.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {self.path} is a file, not a folder")
        # a run killed before its manifest was whole has left only a temporary file
        used = self.path.is_dir() and not all(map(is_leftover, self.path.iterdir()))
        if not used:
            return
        if not resume:
            raise InputError(
                f"--out {self.path} is in use; choose another folder, or --resume to go on with that run"
            )
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            before = manifest["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"--out {self.path} is in use, but not by a run that can be resumed (no {MANIFEST})"
            ) from error
        now = json.loads(json.dumps(settings))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            raise InputError(
                f"--resume: {self.path} was made with other settings ({', '.join(changed)}); "
                "use the same ones, or another folder"
            )

    def begin(self, settings: Mapping[str, Any], plan_json: str) -> None:
        """Create the folder and its manifest; a killed run's temporary files are removed."""
        with output_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self.path / "images"):
                sweep(folder)
            manifest = {"settings": dict(settings), "plan": json.loads(plan_json)}
            self.write_text(MANIFEST, json.dumps(manifest, indent=2) + "\n")
            (self.path / "images").mkdir(exist_ok=True)

    def finished(self, count: int) -> list[int]:
        """Numbers of the prompts whose images are there. A file under its final name is whole."""
        return [index for index in range(count) if self.image_path(index).is_file()]

    def save_png(self, index: int, data: bytes) -> None:
        """Write one image, encoded as PNG by `png_bytes`."""
        write_bytes(self.image_path(index), data)

    def write_text(self, name: str, text: str) -> None:
        write_text(self.path / name, text)

    def write_lines(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """One JSON object per line."""
        write_json_lines(self.path / name, records)

    def save_sheet(self, sheet: Image.Image) -> Path:
        target = self.path / "contact-sheet.png"
        with writing(target) as partial:
            sheet.save(partial, format="PNG")
        return target


def png_bytes(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    """An image as PNG, with `texts` in its text chunks."""
    info = PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
