"""The contact sheet shows every image once, in its group's row, and stays of a size that can be opened."""

from __future__ import annotations

import colorsys
from pathlib import Path

import pytest
from PIL import Image

from sagediff.files.contact_sheet import contact_sheet

CELL = 144


def images(folder: Path, count: int, size: tuple[int, int] = (64, 64)) -> list[Path]:
    """Plain images, each of its own colour."""
    out = []
    for i in range(count):
        colour = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(i / count, 1.0, 0.9))
        out.append(folder / f"{i}.png")
        Image.new("RGB", size, colour).save(out[-1])
    return out


def places(sheet: Image.Image, file: Path) -> tuple[int, int, int, int] | None:
    """Box of an image's colour on the sheet, None where it does not show."""
    with Image.open(file) as image:
        colour = image.getpixel((0, 0))
    raw = sheet.tobytes()
    hits = [
        (i // 3 % sheet.width, i // 3 // sheet.width)
        for i in range(0, len(raw), 3)
        if raw[i : i + 3] == bytes(colour)  # type: ignore[arg-type]
    ]
    if not hits:
        return None
    xs, ys = zip(*hits, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


@pytest.mark.parametrize("size", [(64, 64), (144, 144), (300, 300), (300, 100), (90, 30)])
def test_every_image_shows_whole_in_the_row_of_its_group(tmp_path: Path, size: tuple[int, int]) -> None:
    files = images(tmp_path, 4, size)
    sheet = contact_sheet(files, [f"prompt {i}" for i in range(4)], [[0, 2], [1], [3]], "a title", CELL)
    boxes = [places(sheet, file) for file in files]
    sides = set()
    for box in boxes:
        assert box is not None
        width, height = box[2] - box[0], box[3] - box[1]
        assert CELL // 2 < max(width, height) <= CELL
        assert width / height == pytest.approx(size[0] / size[1], rel=0.05)
        sides.add((width, height))
    assert len(sides) == 1
    rows = [box[1] for box in boxes if box]
    assert rows[0] == rows[2] < rows[1] == rows[3]  # the group, then those alone
    assert boxes[0][0] < boxes[2][0] and boxes[1][0] < boxes[3][0]  # type: ignore[index]


def test_a_large_group_wraps_and_the_sheet_stays_narrow(tmp_path: Path) -> None:
    files = images(tmp_path, 20)
    sheet = contact_sheet(files, ["long words " * 40] * 20, [list(range(20))], "t", CELL)
    assert all(places(sheet, file) for file in files[::6])
    assert sheet.width < 8 * 160 + 200
    assert 3 * CELL < sheet.height < 3 * 250 + 100


def test_one_image(tmp_path: Path) -> None:
    files = images(tmp_path, 1)
    sheet = contact_sheet(files, ["a cat"], [[0]], "t", CELL)
    assert places(sheet, files[0]) is not None
    assert sheet.width < 1000 and sheet.height < 400


@pytest.mark.parametrize("group", [1, 2, 700])
def test_no_more_images_than_can_be_looked_at(tmp_path: Path, group: int) -> None:
    """The size is bounded whatever the run's; the images are one file, the last ones need not exist."""
    file = images(tmp_path, 1, (4, 4))[0]
    count = 1400
    files = [file] * 600 + [tmp_path / "missing.png"] * (count - 600)
    groups = [list(range(start, start + group)) for start in range(0, count, group)]
    sheet = contact_sheet(files, ["p"] * count, groups, "t", 16)
    assert sheet.height < 512 / min(8, max(group, 4)) * (16 + 70) * 2 + 200
    whole = contact_sheet(files[:8], ["p"] * 8, [[i] for i in range(8)], "t", CELL)
    assert whole.height < 1000
