"""Videos as files: MP4 with H.264, each with what made it inside; and whether a file is a whole one of ours.

MP4 has no checksums. A box of ours at the file's end, which players pass over, holds what the video says of itself, and
a digest of that and of all before the box; so a file is known to be whole without being decoded.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from sagediff.errors import InputError
from sagediff.files.digest import bytes_digest
from sagediff.files.json_input import parse_object

_BOX, _MARK = b"free", b"sagediff"
_SIZE, _FRAMES = "size", "frames"
_DIGITS = 32  # of the digest
# x264 looks ahead at small copies of the frames, where it reads memory that nobody wrote: without that, equal frames
# give equal bytes
_REPEATABLE = "bframes=0:rc-lookahead=0:sync-lookahead=0:mbtree=0:weightp=0:scenecut=0"
_BT709 = 1  # number of that colour space in FFmpeg


@dataclass(frozen=True)
class VideoFormat:
    """MP4 with so many frames per second."""

    fps: float
    folder: ClassVar[str] = "videos"
    suffix: ClassVar[str] = ".mp4"

    def encode(self, made: Sequence[Image.Image], texts: Mapping[str, str]) -> bytes:
        """A video's file. Equal frames with equal texts give equal bytes.

        Args:
            made: the frames, of one size.
            texts: what it says of itself, beside its size and number of frames.

        Raises:
            InputError: PyAV is not installed.
        """
        said = {**texts, _SIZE: f"{made[0].width}x{made[0].height}", _FRAMES: str(len(made))}
        with tempfile.TemporaryDirectory() as folder:  # the index goes to the beginning once all is written
            file = Path(folder) / f"video{self.suffix}"
            self._write(file, made, said)
            data = file.read_bytes()
        return data + _box(data, json.dumps(said).encode())

    def is_whole(self, data: bytes, texts: Mapping[str, str]) -> bool:
        """Whether a file's content is a video of ours as it was written: not cut, or another run's.

        Args:
            texts: what it has to say of itself, whatever else it says.
        """
        start = max(0, data.rfind(_BOX + _MARK) - 4)
        content = data[start + 8 + len(_MARK) + _DIGITS :]
        if data[start:] != _box(data[:start], content):
            return False
        said = parse_object(content, "the box of the video")
        return all(said.get(key) == value for key, value in texts.items())

    def is_whole_file(self, path: Path, texts: Mapping[str, str]) -> bool:
        """As `is_whole`, of a file, which must not be a link."""
        if path.is_symlink() or not path.is_file():
            return False
        try:
            return self.is_whole(path.read_bytes(), texts)
        except OSError:
            return False

    def shown(self, path: Path) -> list[Image.Image]:
        """The first, the middle and the last frame of a file."""
        frames: list[Image.Image] = []
        with library().open(str(path)) as container:
            wanted = container.streams.video[0].frames
            places = [0, (wanted - 1) // 2, wanted - 1]
            for number, frame in enumerate(container.decode(video=0)):
                frames += [frame.to_image()] * places.count(number)
        return frames

    def _write(self, file: Path, frames: Sequence[Image.Image], said: Mapping[str, str]) -> None:
        width, height = frames[0].size
        pixels = "yuv444p" if width % 2 or height % 2 else "yuv420p"  # half the colours need whole halves
        options = {"fflags": "+bitexact", "movflags": "+faststart"}
        with library().open(str(file), "w", format="mp4", container_options=options) as container:
            container.metadata.update({"title": said.get("prompt", "")[:200], "comment": json.dumps(said)})
            stream: Any = container.add_stream("libx264", rate=Fraction(self.fps).limit_denominator(1001))
            context = stream.codec_context
            context.width, context.height, context.pix_fmt = width, height, pixels
            context.thread_count = 1  # several divide a frame in ways that depend on their number
            context.options = {"crf": "18", "preset": "medium", "x264-params": _REPEATABLE}
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            for frame in frames:
                image = library().VideoFrame.from_image(frame.convert("RGB"))
                container.mux(stream.encode(image.reformat(format=pixels, dst_colorspace="ITU709")))
            container.mux(stream.encode(None))


def library() -> Any:
    """PyAV.

    Raises:
        InputError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise InputError("videos need PyAV: pip install 'sagediff[video]'") from error
    return av


def _box(data: bytes, said: bytes) -> bytes:
    content = _BOX + _MARK + bytes_digest(data + said).encode() + said
    return (4 + len(content)).to_bytes(4, "big") + content
