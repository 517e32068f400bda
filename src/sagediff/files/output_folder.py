"""The output folder: images, metadata, report; written so that a kill at any moment loses nothing finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from sagediff.errors import InputError
from sagediff.files.atomic import (
    output_errors,
    sweep,
    write_bytes,
    write_json_lines,
    write_text,
    writing,
)
from sagediff.files.claim import is_vacant
from sagediff.files.image_formats import PNG, ImageFormat
from sagediff.files.json_input import read_object
from sagediff.files.video_format import VideoFormat

MANIFEST = "run.json"
_MANIFEST_BYTES = 1 << 30  # the plan of a million prompts takes some fifty megabytes


class OutputFolder:
    """One run's folder. `run.json`, with the run's settings, is written first; images follow one by one.

    Nobody else writes there meanwhile (`claim.claimed_output`).

    Args:
        image_format: of every image, or video.
        name: of an image's file by its number, without its ending; no two are equal.
    """

    def __init__(
        self,
        path: Path,
        image_format: ImageFormat | VideoFormat = PNG,
        name: Callable[[int], str] = "{:06d}".format,
    ) -> None:
        self.path, self.image_format, self._name = path, image_format, name

    @property
    def home(self) -> Path:
        """The folder of the images."""
        return self.path / self.image_format.folder

    def image_path(self, index: int) -> Path:
        return self.home / f"{self._name(index)}{self.image_format.suffix}"

    def check_free(self, resume: bool) -> None:
        """Refuse a folder that is in use, before it is known what this run would write there. Writes nothing.

        Raises:
            InputError: in use without `resume`, or by something else than a run.
        """
        self._manifest(resume)

    def check(self, settings: Mapping[str, Any], resume: bool) -> None:
        """Refuse a folder that this run must not write to. Writes nothing.

        Raises:
            InputError: in use without `resume`, or resumed with other settings.
        """
        before = self._manifest(resume)
        if before is not None:
            self._compare(before.get("settings"), settings, "settings", "use the same ones")

    def check_content(self, content: Mapping[str, str]) -> None:
        """Refuse to go on where files that the run is made of are others than they were, under the same names.

        Args:
            content: digests, by what they are of.

        Raises:
            InputError: some differ; they are named.
        """
        before = self._manifest(resume=True)
        if before is not None:
            self._compare(before.get("content"), content, "content", "put the same files there")

    def begin(self, settings: Mapping[str, Any], content: Mapping[str, str], plan_json: str) -> None:
        """Create the folder and its manifest; a killed run's temporary files are removed."""
        with output_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self.home):
                sweep(folder)
            manifest = {"settings": dict(settings), "content": dict(content), "plan": json.loads(plan_json)}
            self.write_text(MANIFEST, json.dumps(manifest, indent=2) + "\n")
            self.home.mkdir(exist_ok=True)

    def finished(self, texts: Iterable[Mapping[str, str]]) -> list[int]:
        """Numbers of the images that are there, whole.

        Args:
            texts: what each image says of itself (`ImageFormat.encode`), in the order of their numbers.
        """
        return [i for i, wanted in enumerate(texts) if self.is_whole(i, wanted)]

    def is_whole(self, index: int, texts: Mapping[str, str]) -> bool:
        """Whether an image is there, as it was written."""
        return self.image_format.is_whole_file(self.image_path(index), texts)

    def save_image(self, index: int, data: bytes) -> None:
        """Write one image, as `image_format` encodes it."""
        write_bytes(self.image_path(index), data)

    def write_text(self, name: str, text: str) -> None:
        write_text(self.path / name, text)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with output_errors(self.path / name):
            (self.path / name).unlink(missing_ok=True)

    def write_lines(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """One JSON object per line."""
        write_json_lines(self.path / name, records)

    def save_sheet(self, sheet: Image.Image) -> Path:
        target = self.path / "contact-sheet.png"
        with writing(target) as partial:
            sheet.save(partial, format="PNG")
        return target

    def _manifest(self, resume: bool) -> dict[str, Any] | None:
        """What an earlier run left; None in a folder that is free."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {self.path} is a file, not a folder")
        if not self.path.is_dir() or is_vacant(self.path):
            return None
        if not resume:
            raise InputError(
                f"--out {self.path} is in use; choose another folder, or --resume to go on with that run"
            )
        if not (self.path / MANIFEST).is_file():
            raise InputError(
                f"--out {self.path} is in use, but not by a run that can be resumed (no {MANIFEST})"
            )
        return read_object(self.path / MANIFEST, max_bytes=_MANIFEST_BYTES)

    def _compare(self, before: Any, now: Mapping[str, Any], what: str, remedy: str) -> None:
        manifest = self.path / MANIFEST
        if not isinstance(before, dict):
            raise InputError(
                f"--out {self.path} is in use, but not by a run that can be resumed: {manifest} holds no {what}, it is "
                "damaged or of an earlier version of sagediff; use another folder"
            )
        now = json.loads(json.dumps(now))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            raise InputError(
                f"--resume: {self.path} was made with other {what} ({', '.join(changed)}); {remedy}, or use another "
                "folder"
            )
