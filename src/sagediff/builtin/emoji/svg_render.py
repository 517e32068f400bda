"""Draws an icon: SVG -> 64 x 64 RGB on a plain background. It does not know what the icon shows."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sagediff.builtin.emoji.npm_packages import Icon
from sagediff.errors import InputError

IMAGE_SIZE = 64
MARGIN = 2  # pixels left free on each side

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "light gray": (214, 216, 220),
    "pale blue": (186, 214, 248),
    "pale pink": (250, 202, 218),
    "pale yellow": (252, 238, 178),
    "mint green": (188, 232, 204),
    "lavender": (216, 202, 242),
    "dark blue": (34, 44, 78),
    "black": (20, 20, 24),
}


def draw(icon: Icon) -> NDArray[np.float32]:
    """(64, 64, 4) in [0, 1]: premultiplied colour, then opacity.

    Raises:
        ValueError: the SVG can't be drawn.
        InputError: the renderer is not installed.
    """
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise InputError("drawing needs resvg-py: pip install 'sagediff[emoji-training]'") from error
    flip = f'transform="translate({2 * icon.left + icon.width} 0) scale(-1 1)"' if icon.flipped else ""
    side = max(icon.width, icon.height)
    pad = side * MARGIN / (IMAGE_SIZE - 2 * MARGIN)
    left = icon.left - (side - icon.width) / 2 - pad
    top = icon.top - (side - icon.height) / 2 - pad
    box = f"{left} {top} {side + 2 * pad} {side + 2 * pad}"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{IMAGE_SIZE}" height="{IMAGE_SIZE}" viewBox="{box}"><g {flip}>{icon.body}</g></svg>'
    )
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the renderer is no Exception
        raise ValueError(f"the SVG can't be drawn: {error}") from error
    with Image.open(io.BytesIO(bytes(png))) as image:
        pixels: NDArray[np.float32] = np.asarray(image.convert("RGBA"), dtype=np.float32) / np.float32(255)
    return np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], axis=2)


def stands_out(drawing: NDArray[np.float32], background: str) -> bool:
    """Whether at least half of what is drawn differs clearly from the background."""
    color = np.asarray(BACKGROUNDS[background], dtype=np.float32) / 255
    opacity = drawing[..., 3]
    difference = np.abs(drawing[..., :3] - opacity[..., None] * color).max(axis=2)
    return bool((difference > 0.15).sum() >= 0.5 * (opacity > 0.5).sum())


def on_background(drawing: NDArray[np.float32], background: str) -> NDArray[np.uint8]:
    """(64, 64, 4) of `draw` -> (64, 64, 3) in 0..255."""
    color = np.asarray(BACKGROUNDS[background], dtype=np.float32) / 255
    pixels = drawing[..., :3] + (1 - drawing[..., 3:]) * color
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)
