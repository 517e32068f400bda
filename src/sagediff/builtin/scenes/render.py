"""Renders of the built-in world from the font Noto Color Emoji (Debian: fonts-noto-color-emoji).

Needed for training and for reference images only; the shipped model runs without the font.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sagediff.builtin.scenes.world import COLORS, IMAGE_SIZE, OBJECTS, POSITIONS, SIZES, Scene
from sagediff.errors import InputError

FONT_FILES = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf"),
)
_STRIKE = 109  # the only bitmap size that the font holds, in points
MARGIN, JITTER = 2, 2  # pixels
COLOR_SPREAD = 0.02  # standard deviation of the background's shift, 0..1 scale

Array = npt.NDArray[np.float32]


def find_font() -> Path:
    """The font's file, or InputError that says how to get it."""
    for candidate in FONT_FILES:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"Noto Color Emoji not found ({', '.join(map(str, FONT_FILES))}); "
        "on Debian or Ubuntu: apt-get install fonts-noto-color-emoji"
    )


class Renderer:
    """Draws scenes; the glyphs are rasterised once."""

    def __init__(self) -> None:
        face = ImageFont.truetype(str(find_font()), _STRIKE)
        self._glyphs: dict[tuple[str, str], Array] = {}
        for name, code in OBJECTS.items():
            glyph = _rasterise(face, chr(code))
            for size, side in SIZES.items():
                self._glyphs[name, size] = _fit(glyph, side)

    def draw(self, scene: Scene, rng: np.random.Generator) -> Array:
        """One image, shape (3, 64, 64), values in [0, 1]; jitter and shade are drawn from `rng`."""
        side = SIZES[scene.size]
        shade = np.asarray(COLORS[scene.color], np.float32) / 255 + rng.normal(0, COLOR_SPREAD, 3)
        image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
        image[:] = np.clip(shade, 0, 1)
        starts = (MARGIN, (IMAGE_SIZE - side) // 2, IMAGE_SIZE - side - MARGIN)
        column, row = POSITIONS[scene.position]
        x, y = (
            int(np.clip(starts[cell] + rng.integers(-JITTER, JITTER + 1), 0, IMAGE_SIZE - side))
            for cell in (column, row)
        )
        glyph = self._glyphs[scene.object, scene.size]  # (side, side, 4)
        alpha = glyph[..., 3:]
        patch = image[y : y + side, x : x + side]
        patch[:] = patch * (1 - alpha) + glyph[..., :3] * alpha
        return image.transpose(2, 0, 1)

    def batch(self, scenes: Sequence[Scene], rng: np.random.Generator) -> Array:
        """Images of the scenes, shape (N, 3, 64, 64), values in [0, 1]."""
        return np.stack([self.draw(scene, rng) for scene in scenes])


def _rasterise(face: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    canvas = Image.new("RGBA", (180, 180), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((20, 20), character, font=face, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise InputError(f"the font has no glyph for U+{ord(character):X}; is it Noto Color Emoji?")
    return canvas.crop(box)


def _fit(glyph: Image.Image, side: int) -> Array:
    """The glyph scaled into a box of `side` pixels, proportions kept, shape (side, side, 4)."""
    scale = side / max(glyph.size)
    width, height = (max(1, round(length * scale)) for length in glyph.size)
    # premultiplied alpha, so that transparent pixels do not darken the edges
    scaled = glyph.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    box = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    box.paste(scaled, ((side - width) // 2, (side - height) // 2))
    return np.asarray(box, np.float32) / np.float32(255)
