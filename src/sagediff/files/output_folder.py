"""The output folder: images, metadata, report; written so that a kill at any moment loses nothing finished."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sagediff.errors import InputError, OutputError

MANIFEST = "run.json"


class OutputFolder:
    """One run's folder. `run.json` is written first and says what the run is; images follow one by one."""

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
        # a run killed before its manifest was whole has left a temporary name at most
        used = self.path.is_dir() and any(entry.suffix != ".partial" for entry in self.path.iterdir())
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
        """Create the folder and its manifest; leftovers of a killed run (temporary names) go away."""
        with written(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for leftover in [*self.path.glob("*.partial"), *self.path.glob("images/*.partial")]:
                leftover.unlink()
            manifest = {"settings": dict(settings), "plan": json.loads(plan_json)}
            self.write_text(MANIFEST, json.dumps(manifest, indent=2) + "\n")
            (self.path / "images").mkdir(exist_ok=True)

    def finished(self, count: int) -> list[int]:
        """Prompts whose images are there. A file under its final name is whole: it was renamed to it."""
        return [index for index in range(count) if self.image_path(index).is_file()]

    def save_image(self, index: int, image: Image.Image, texts: Mapping[str, str]) -> None:
        """Write one image with `texts` in its PNG text chunks."""
        self.save_png(index, png_bytes(image, texts))

    def save_png(self, index: int, data: bytes) -> None:
        """Write one image that is a PNG already."""
        target = self.image_path(index)
        partial = target.with_name(target.name + ".partial")
        with written(target):
            partial.write_bytes(data)
            os.replace(partial, target)

    def write_text(self, name: str, text: str) -> None:
        target = self.path / name
        partial = target.with_name(target.name + ".partial")
        with written(target):
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, target)

    def write_lines(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """One JSON object per line."""
        self.write_text(name, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))

    def save_sheet(self, sheet: Image.Image) -> Path:
        target = self.path / "contact-sheet.png"
        partial = target.with_name(target.name + ".partial")
        with written(target):
            sheet.save(partial, format="PNG")
            os.replace(partial, target)
        return target


def png_bytes(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    """An image as PNG, with `texts` in its text chunks."""
    info = PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def fingerprint(parts: Sequence[str]) -> str:
    """A short name for long input: the same text gives the same name."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


@contextmanager
def written(target: Path) -> Iterator[Path]:
    """Turn what the disk refuses into an OutputError that names `target`, which is also given back."""
    try:
        yield target
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; what was finished before is kept"
        ) from error
