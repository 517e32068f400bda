"""The built-in world: its captions, and which of them are never trained on.

This module knows words only; images of them are made by `render`.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from itertools import product

from sagediff.errors import InputError

IMAGE_SIZE = 64

SIZES: dict[str, int] = {"small": 24, "large": 38}  # side of the glyph's box in pixels

OBJECTS: dict[str, int] = {
    "cat": 0x1F431, "dog": 0x1F436, "tiger": 0x1F42F, "lion": 0x1F981, "bear": 0x1F43B, "panda": 0x1F43C,
    "frog": 0x1F438, "monkey": 0x1F435, "rabbit": 0x1F430, "fox": 0x1F98A, "apple": 0x1F34E, "pizza": 0x1F355,
    "burger": 0x1F354, "strawberry": 0x1F353, "cake": 0x1F370, "cactus": 0x1F335, "tree": 0x1F333,
    "sunflower": 0x1F33B, "rose": 0x1F339, "tulip": 0x1F337, "car": 0x1F697, "bicycle": 0x1F6B2,
    "rocket": 0x1F680, "sailboat": 0x26F5, "house": 0x1F3E0, "castle": 0x1F3F0, "balloon": 0x1F388,
    "guitar": 0x1F3B8, "ball": 0x26BD, "crown": 0x1F451, "heart": 0x2764, "star": 0x2B50,
}  # fmt: skip

# name -> (column, row), each 0 at the left or top edge, 1 in the middle, 2 at the right or bottom edge
POSITIONS: dict[str, tuple[int, int]] = {
    "top left": (0, 0), "top": (1, 0), "top right": (2, 0),
    "left": (0, 1), "center": (1, 1), "right": (2, 1),
    "bottom left": (0, 2), "bottom": (1, 2), "bottom right": (2, 2),
}  # fmt: skip

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 58, 58), "green": (70, 160, 84), "blue": (66, 110, 214), "yellow": (240, 208, 80),
    "purple": (140, 84, 190), "orange": (240, 150, 60), "pink": (244, 160, 190), "gray": (150, 150, 150),
    "white": (245, 245, 245), "black": (28, 28, 32),
}  # fmt: skip

VALUES: dict[str, tuple[str, ...]] = {
    "object": tuple(OBJECTS),
    "size": tuple(SIZES),
    "position": tuple(POSITIONS),
    "color": tuple(COLORS),
}
ATTRIBUTES = tuple(VALUES)

_CAPTION = re.compile(r"a (\w+) (\w+) at the ([\w ]+?) on a (\w+) background")


@dataclass(frozen=True)
class Scene:
    """The four attributes of an image."""

    object: str
    size: str
    position: str
    color: str

    @property
    def caption(self) -> str:
        return f"a {self.size} {self.object} at the {self.position} on a {self.color} background"

    @property
    def labels(self) -> tuple[int, ...]:
        """Index of each attribute's value, in the order of `ATTRIBUTES`."""
        return tuple(VALUES[name].index(getattr(self, name)) for name in ATTRIBUTES)


def parse_caption(caption: str) -> Scene:
    """The scene that a caption describes. Raises InputError for a caption of another form."""
    match = _CAPTION.fullmatch(caption.strip())
    if match:
        size, name, position, color = match.groups()
        if size in SIZES and name in OBJECTS and position in POSITIONS and color in COLORS:
            return Scene(name, size, position, color)
    raise InputError(
        f"not a caption of the built-in world: {caption!r}; "
        "expected 'a {size} {object} at the {position} on a {color} background'"
    )


def all_scenes() -> list[Scene]:
    """Every scene, in a fixed order."""
    return [Scene(o, s, p, c) for o, s, p, c in product(OBJECTS, SIZES, POSITIONS, COLORS)]


def held_out(caption: str) -> bool:
    """True for captions that no stage of training may see."""
    return zlib.crc32(caption.encode()) % 8 == 0


def training_scenes() -> list[Scene]:
    return [scene for scene in all_scenes() if not held_out(scene.caption)]


def held_out_scenes() -> list[Scene]:
    return [scene for scene in all_scenes() if held_out(scene.caption)]
