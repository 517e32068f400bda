"""What training never sees: an eighth of all (name, vendor) pairs, and apart from these whole names.

The rule reads names alone, so that it holds for every choice of vendors.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Literal

from sagediff.builtin.emoji.names import FLAGS_GROUP, Emoji

Split = Literal["train", "held_out", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "held_out", "unseen")
UNSEEN_NAMES = 100
LEAST_VENDORS = 3  # that must draw a name for it to be withheld whole


def pair_held_out(name: str, vendor: str) -> bool:
    """True for one (name, vendor) in eight."""
    return zlib.crc32(f"{name}|{vendor}".encode()) % 8 == 0


def choose_unseen(
    emoji: Iterable[Emoji], vendors_of: Mapping[str, int], count: int = UNSEEN_NAMES
) -> frozenset[str]:
    """Names without skin tones that are withheld whole, and their skin tones with them.

    Flags are left out: nothing in "flag: Germany" says what it looks like, so an unseen one can't be drawn.

    Args:
        vendors_of: base name -> number of vendors that draw it, of all sets, whichever are trained on.
    """
    bases = {one.base for one in emoji if one.group != FLAGS_GROUP}
    known = [base for base in bases if vendors_of.get(base, 0) >= LEAST_VENDORS]
    return frozenset(sorted(known, key=lambda base: (zlib.crc32(f"{base}|unseen".encode()), base))[:count])


def split_of(emoji: Emoji, vendor: str, unseen: frozenset[str]) -> Split:
    """`unseen` holds base names."""
    if emoji.base in unseen:
        return "unseen"
    return "held_out" if pair_held_out(emoji.name, vendor) else "train"
