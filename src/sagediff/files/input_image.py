"""`InputImage`: an image or a mask that a request begins from, known by what it shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image

from sagediff.errors import InputError
from sagediff.files.digest import bytes_digest
from sagediff.files.image_input import check_pixels, open_rgb, to_rgb
from sagediff.files.text_input import shortened

Kind: TypeAlias = Literal["image", "mask"]


@dataclass(frozen=True)
class InputImage:
    """An image in RGB, or a mask in shades of gray: what is white is painted anew.

    Two are equal if they show the same, wherever they come from. One of a file is read again whenever it is opened, so
    that a million of them take no memory.

    Attributes:
        kind: "image" or "mask".
        digest: of size and pixels.
        size: (width, height) in pixels.
        said: what whoever asked called it, for records.
    """

    kind: Kind
    digest: str
    size: tuple[int, int]
    said: str = field(default="", compare=False, kw_only=True)
    _source: Path | Image.Image = field(repr=False, compare=False)

    @classmethod
    def of(cls, value: Any, kind: Kind = "image") -> InputImage:
        """From a PIL image, which is copied, or from the path of a file.

        Raises:
            InputError: neither; or a file that is no image, or too large.
        """
        if isinstance(value, InputImage):
            if value.kind != kind:
                raise InputError(f"expected {_A[kind]}, got {_A[value.kind]}")
            return value
        if isinstance(value, Image.Image):
            image = _from_pil(value, kind)
            return cls(kind, _digest(image), image.size, image)
        if isinstance(value, str | Path) and str(value).strip():
            return _of_file(value, kind)
        raise InputError(
            f"{kind} must be a PIL image or the path of one, got {type(value).__name__}"
            f"{' that is empty' if isinstance(value, str) else ''}"
        )

    def open(self) -> Image.Image:
        """The image: RGB, or L for a mask.

        Raises:
            InputError: its file is gone, or shows something else than before.
        """
        if isinstance(self._source, Image.Image):
            return self._source.copy()
        image = _read(self._source, self.kind)
        if _digest(image) != self.digest:
            raise InputError(
                f"{shortened(self._source)} was changed while the run was under way; put the former image back"
            )
        return image


_A: dict[Kind, str] = {"image": "an image", "mask": "a mask"}


def _of_file(value: str | Path, kind: Kind) -> InputImage:
    try:
        path = Path(value).expanduser()
        stat = path.stat()
    except (OSError, RuntimeError, ValueError) as error:  # "~nobody"; a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read the {kind} {shortened(value)}: {reason}") from error
    return _known(path.absolute(), kind, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=4096)
def _known(path: Path, kind: Kind, *state: int) -> InputImage:
    """Of a file in that state: forty prompts of one image read it once."""
    image = _read(path, kind)
    return InputImage(kind, _digest(image), image.size, path)


def _read(path: Path, kind: Kind) -> Image.Image:
    image = open_rgb(path)
    return image if kind == "image" else image.convert("L")


def _from_pil(image: Image.Image, kind: Kind) -> Image.Image:
    try:
        check_pixels(image)
        found = to_rgb(image)
    except InputError as error:
        raise InputError(f"cannot take the {kind}: {error}") from error
    except Exception as error:  # whatever a broken file makes Pillow raise, which reads it only now
        raise InputError(f"cannot take the {kind}: {error}") from error
    return found if kind == "image" else found.convert("L")


def _digest(image: Image.Image) -> str:
    return bytes_digest(f"{image.mode} {image.width}x{image.height}\0".encode() + image.tobytes())
