"""Images of others: the values that a viewer shows, or a refusal that names the file."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sagediff.errors import InputError
from sagediff.files.image_input import MAX_PIXELS, open_rgb

RAMP = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(4, 0)
GRAY = np.rint(RAMP * 255).astype(np.uint8)


def pixels(file: Path) -> npt.NDArray[np.int64]:
    """(H, W, 3) as opened."""
    opened = open_rgb(file)
    assert opened.mode == "RGB"
    return np.asarray(opened, np.int64)


@pytest.mark.parametrize(
    "name, values",
    [
        ("8.png", GRAY),
        ("16.png", np.rint(RAMP * 65535).astype(np.uint16)),
        ("16.tif", np.rint(RAMP * 65535).astype(np.uint16)),
        ("float.tif", RAMP),
    ],
)
def test_grays_keep_their_range(tmp_path: Path, name: str, values: npt.NDArray[Any]) -> None:
    Image.fromarray(values).save(tmp_path / name)
    assert np.abs(pixels(tmp_path / name) - GRAY[..., None]).max() <= 1


def test_values_whose_range_is_not_known_are_refused(tmp_path: Path) -> None:
    for number, values in enumerate((RAMP * 255, RAMP - 0.5, RAMP * np.nan, GRAY.astype(np.int32) * 1000)):
        file = tmp_path / f"{number}.tif"
        Image.fromarray(values).save(file)
        with pytest.raises(InputError, match=rf"{number}\.tif.*(\[0, 1\]|32 bits).*save it with"):
            open_rgb(file)


@pytest.mark.parametrize("hidden", [(0, 0, 0), (0, 255, 0)])
def test_what_is_transparent_is_white(tmp_path: Path, hidden: tuple[int, int, int]) -> None:
    image = Image.new("RGBA", (4, 2), (*hidden, 0))
    image.putpixel((0, 0), (200, 10, 20, 255))
    image.putpixel((1, 0), (200, 10, 20, 128))
    image.save(tmp_path / "a.png")
    found = pixels(tmp_path / "a.png")
    assert found[1, 3].tolist() == [255, 255, 255] and found[0, 0].tolist() == [200, 10, 20]
    assert np.abs(found[0, 1] - np.array([227, 132, 137])).max() <= 1
    image.convert("LA").save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png")[1, 3].tolist() == [255, 255, 255]
    palette = image.convert("RGB").quantize(4)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((3, 1)))
    assert pixels(tmp_path / "p.png")[1, 3].tolist() == [255, 255, 255]


def test_a_transparent_gray_of_sixteen_bits_is_white(tmp_path: Path) -> None:
    values = np.full((2, 2), 30000, np.uint16)
    values[0, 0] = 7
    Image.fromarray(values).save(tmp_path / "a.png", transparency=7)
    found = pixels(tmp_path / "a.png")[..., 0]
    assert found[0, 0] == 255 and found[1, 1] == 117


def test_palettes_bits_and_print_colours(tmp_path: Path) -> None:
    colours = Image.new("RGB", (8, 8), (10, 200, 30))
    colours.quantize(4).save(tmp_path / "p.gif")
    assert np.abs(pixels(tmp_path / "p.gif")[0, 0] - [10, 200, 30]).max() <= 4
    Image.new("1", (8, 8), 1).save(tmp_path / "bit.png")
    assert pixels(tmp_path / "bit.png").min() == 255
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "c.jpg")
    assert np.abs(pixels(tmp_path / "c.jpg")[0, 0] - [0, 255, 255]).max() <= 4


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    image.save(tmp_path / "a.jpg", exif=exif)
    assert open_rgb(tmp_path / "a.jpg").size == (4, 8)


def png_of(width: int, height: int, bits: int = 1, colour: int = 0) -> bytes:
    """A PNG that says it has these pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [7072, 12_000, 20_000, 1_000_000])
def test_too_many_pixels_are_refused_before_any_memory_is_taken(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_PIXELS
    (tmp_path / "bomb.png").write_bytes(png_of(side, side))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bomb\.png.*(megapixels|too large)"):
        open_rgb(tmp_path / "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_broken_files_and_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)).save(
        whole, "PNG"
    )
    contents = {
        "empty.png": b"",
        "cut.png": whole.getvalue()[:2000],
        "no.png": b"no image at all",
        "none.png": png_of(0, 0),
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/etc/passwd) run\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"cannot read the image .*{name}") as raised:
            open_rgb(tmp_path / name)
        assert "\n" not in str(raised.value)
    os.mkfifo(tmp_path / "pipe.png")
    for path in ("pipe.png", ".", "missing.png", "x" * 5000, "nul\0"):
        with pytest.raises(InputError):
            open_rgb(tmp_path / path)
