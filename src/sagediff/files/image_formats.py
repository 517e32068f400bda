"""Images as files: PNG, JPEG or WebP, each with what made it inside; and whether a file is a whole one of ours."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sagediff.files.digest import bytes_digest
from sagediff.files.json_input import parse_object

Format = Literal["png", "jpg", "webp"]
SUFFIXES = {"png": ".png", "jpg": ".jpg", "webp": ".webp"}
QUALITY = 95  # of JPEG and WebP, where none is asked for

_SIZE = "size"  # the text that holds an image's width and height
_END = b"\0\0\0\0IEND\xaeB\x60\x82"  # of every PNG
_EXIF, _COMMENT, _ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"
_MOST_EXIF = 60_000  # bytes; a segment of JPEG has 65,533
_DIGEST = re.compile(rb'(?<="digest": ")[0-9a-f]{32}(?=")')
_NO_DIGEST = "0" * 32


@dataclass(frozen=True)
class ImageFormat:
    """A format and what it is written with.

    Attributes:
        quality: 1 to 100, of JPEG and WebP; None for `QUALITY`.
    """

    name: Format = "png"
    quality: int | None = None
    folder: ClassVar[str] = "images"

    @property
    def suffix(self) -> str:
        return SUFFIXES[self.name]

    def encode(self, image: Image.Image, texts: Mapping[str, str]) -> bytes:
        """An image's file. Equal images with equal texts give equal bytes.

        Args:
            texts: what it says of itself, beside its size: in a PNG in text chunks, else as JSON in the EXIF comment,
                where a text that is too long for it stands as its digest.
        """
        said = {**texts, _SIZE: _size(image)}
        if self.name == "png":
            return _png(image, said)
        image = image if image.mode in ("RGB", "L") else image.convert("RGB")
        buffer, quality = io.BytesIO(), QUALITY if self.quality is None else self.quality
        kind, more = ("JPEG", {"subsampling": 0}) if self.name == "jpg" else ("WEBP", {})
        image.save(buffer, format=kind, quality=quality, exif=_exif(said), **more)
        data = buffer.getvalue()
        return _DIGEST.sub(
            bytes_digest(data).encode(), data, count=1
        )  # these formats have no checksums of their own

    def is_whole(self, data: bytes, texts: Mapping[str, str]) -> bool:
        """Whether a file's content is an image of ours as it was written: not cut, scaled, or another run's.

        Args:
            texts: what it has to say of itself, whatever else it says.
        """
        try:
            return _is_whole_png(data, texts) if self.name == "png" else _is_whole_exif(data, texts)
        except Exception:  # Pillow raises many kinds for broken files; none of them is an image of ours
            return False

    def is_whole_file(self, path: Path, texts: Mapping[str, str]) -> bool:
        """As `is_whole`, of a file, which must not be a link."""
        if path.is_symlink() or not path.is_file():
            return False
        try:
            data = path.read_bytes()
        except OSError:
            return False
        return self.is_whole(data, texts)

    def shown(self, path: Path) -> list[Image.Image]:
        """A file's image, as the only one to show of it."""
        with Image.open(path) as image:
            return [image.convert("RGB")]


PNG = ImageFormat()


def _png(image: Image.Image, said: Mapping[str, str]) -> bytes:
    info = PngInfo()
    for key, value in said.items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _is_whole_png(data: bytes, texts: Mapping[str, str]) -> bool:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        said, size = {**image.info}, _size(image)
        image.verify()  # the checksum of every chunk but the last
    says = {_SIZE: size, **texts}
    return data.endswith(_END) and all(said.get(key) == value for key, value in says.items())


def _exif(said: Mapping[str, str]) -> bytes:
    shown = dict(said)
    for key in sorted(said, key=lambda key: -len(said[key])):
        if len(_json(shown)) <= _MOST_EXIF:
            break
        shown[key] = _short(said[key])
    exif = Image.Exif()
    exif.get_ifd(_EXIF)[_COMMENT] = _ASCII + _json(shown)
    return exif.tobytes()


def _json(said: Mapping[str, str]) -> bytes:
    return json.dumps({"digest": _NO_DIGEST, **said}).encode()


def _short(text: str) -> str:
    return f"blake2b:{bytes_digest(text.encode())}"


def _is_whole_exif(data: bytes, texts: Mapping[str, str]) -> bool:
    found = _DIGEST.search(data)
    if found is None or bytes_digest(_DIGEST.sub(_NO_DIGEST.encode(), data, count=1)) != found[0].decode():
        return False
    with Image.open(io.BytesIO(data), formats=["JPEG", "WEBP"]) as image:
        comment: Any = image.getexif().get_ifd(_EXIF).get(_COMMENT)
        size = _size(image)
    said = parse_object(bytes(comment).removeprefix(_ASCII), "the EXIF comment")
    says = {_SIZE: size, **texts}
    return all(said.get(key) in (value, _short(value)) for key, value in says.items())


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
