"""One image of a whole run: a row for each group, its prompts beneath the images."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sagediff.files.image_formats import PNG
from sagediff.printable import printable

_MARGIN, _GAP, _LABEL = 16, 10, 92  # pixels; _LABEL is the column that names the group
_MAX_IMAGES = 512  # a larger sheet could not be read, nor opened by every viewer


def contact_sheet(
    images: Sequence[Path],
    prompts: Sequence[str],
    groups: Sequence[Sequence[int]],
    title: str,
    cell: int = 144,
    shown: Callable[[Path], Sequence[Image.Image]] = PNG.shown,
    abreast: int = 1,
) -> Image.Image:
    """Draw the sheet; larger groups first, single prompts packed together at the end.

    Args:
        images: files, one per prompt.
        groups: prompt numbers, as in the plan.
        cell: side of an image on the sheet, in pixels.
        shown: what to show of a file, side by side: its image, or frames of its video.
        abreast: how many those are.
    """
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    columns = max(4, min(8, max(map(len, groups)))) if abreast == 1 else max(2, min(3, max(map(len, groups))))
    rows = _rows(groups, columns)
    caption = 4 * 14
    wide = cell * abreast
    width = 2 * _MARGIN + _LABEL + columns * (wide + _GAP)
    height = 2 * _MARGIN + 34 + len(rows) * (cell + caption + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, fill="black", font=font)
    y = _MARGIN + 34
    for label, members in rows:
        draw.text((_MARGIN, y + 4), label, fill=(60, 60, 60), font=font)
        for column, index in enumerate(members):
            x = _MARGIN + _LABEL + column * (wide + _GAP)
            for place, image in enumerate(shown(images[index])):
                whole = _fitted(image, cell)
                left = x + place * cell + (cell - whole.width) // 2
                sheet.paste(whole, (left, y + (cell - whole.height) // 2))
            lines = textwrap.wrap(printable(" ".join(prompts[index][:1000].split())), width=wide // 6)
            lines = [*lines[:3], lines[3][:-1] + "…"] if len(lines) > 4 else lines
            for n, line in enumerate(lines):
                draw.text((x, y + cell + 3 + 13 * n), line, fill=(60, 60, 60), font=small)
        y += cell + caption + _GAP
    return sheet


def _fitted(image: Image.Image, cell: int) -> Image.Image:
    """An image as large as fits a square."""
    whole = image.convert("RGB")
    if max(whole.size) > cell:
        whole.thumbnail((cell, cell))
    if max(whole.size) < cell:  # small images are enlarged without smoothing by whole factors
        factor = cell // max(whole.size)
        whole = whole.resize((whole.width * factor, whole.height * factor), Image.Resampling.NEAREST)
    return whole


def _rows(groups: Sequence[Sequence[int]], columns: int) -> list[tuple[str, list[int]]]:
    rows: list[tuple[str, list[int]]] = []
    alone: list[int] = []
    left = _MAX_IMAGES
    for number, group in enumerate(groups):
        if left <= 0:
            break
        if len(group) == 1:
            alone += group
            continue
        members = list(group)[:left]
        left -= len(members)
        for start in range(0, len(members), columns):
            rows.append((f"group {number}" if start == 0 else "", members[start : start + columns]))
    alone = alone[: max(left, 0)]
    for start in range(0, len(alone), columns):
        rows.append(("alone" if start == 0 else "", alone[start : start + columns]))
    return rows
