"""Videos as files: what goes in comes out, and a file that was cut or is another run's is none of ours."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagediff.errors import InputError
from sagediff.files.video_format import VideoFormat, library

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'sagediff[video]'")
TEXTS = {"prompt": 'a cat\non "two" lines 🐈', "seed": "7", "plan": "x" * 100_000}


def frames(count: int, size: tuple[int, int] = (48, 32)) -> list[Image.Image]:
    """A light square that moves over a dark ground."""
    out = []
    for number in range(count):
        values = np.full((size[1], size[0], 3), (20, 40, 90), np.uint8)
        values[8:24, 2 * number : 2 * number + 16] = (230, 60, 40)
        out.append(Image.fromarray(values))
    return out


@pytest.mark.parametrize(
    ("count", "fps", "size"), [(9, 24, (48, 32)), (5, 12.5, (64, 48)), (1, 16, (33, 35))]
)
def test_what_goes_in_comes_out(tmp_path: Path, count: int, fps: float, size: tuple[int, int]) -> None:
    file = tmp_path / "a.mp4"
    given = frames(count, size)
    file.write_bytes(VideoFormat(fps).encode(given, TEXTS))
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == size and stream.frames == count
        assert float(stream.average_rate) == fps
        assert (
            container.metadata["title"] == TEXTS["prompt"] and '"seed": "7"' in container.metadata["comment"]
        )
        found = [frame.to_image() for frame in container.decode(video=0)]
    assert len(found) == count
    for one, two in zip(given, found, strict=True):  # colours too, but for compression
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(two)).mean() < 6
    assert [image.size for image in VideoFormat(fps).shown(file)] == [size] * 3
    first, _, last = VideoFormat(fps).shown(file)
    assert np.array_equal(np.asarray(first), np.asarray(found[0]))
    assert np.array_equal(np.asarray(last), np.asarray(found[-1]))


def test_equal_frames_give_equal_bytes() -> None:
    made = [VideoFormat(8).encode(frames(5), TEXTS) for _ in range(2)]
    assert made[0] == made[1]


def test_a_file_is_whole_or_it_is_not_ours(tmp_path: Path) -> None:
    kind = VideoFormat(8)
    data = kind.encode(frames(3), TEXTS)
    file = tmp_path / "a.mp4"
    file.write_bytes(data)
    assert kind.is_whole_file(file, TEXTS) and kind.is_whole_file(file, {"seed": "7"})
    assert not kind.is_whole_file(file, TEXTS | {"seed": "8"})
    for cut in (0, 10, len(data) // 2, len(data) - 1):
        assert not kind.is_whole(data[:cut], TEXTS)
    for place in (100, len(data) // 2, len(data) - 3):
        assert not kind.is_whole(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], TEXTS)
    assert not kind.is_whole(data + b"more", TEXTS) and not kind.is_whole(b"free" + b"sagediff", {})
    (tmp_path / "link.mp4").symlink_to(file)
    assert not kind.is_whole_file(tmp_path / "link.mp4", TEXTS)
    assert not kind.is_whole_file(tmp_path / "none.mp4", TEXTS)


def test_who_has_no_library_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'sagediff\[video\]'"):
        library()
