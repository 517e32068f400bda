"""All artwork of all vendors under one name for each emoji, and what training never sees of it.

Held out: an eighth of all (name, vendor) pairs, and apart from these whole names. The rule reads names alone, so that
it holds for every choice of vendors.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sagediff.builtin.emoji.emoji_names import FLAGS_GROUP, Emoji, NameIndex, read_emoji
from sagediff.builtin.emoji.npm_packages import (
    NAMES_PACKAGE,
    VENDORS,
    WORDS_PACKAGE,
    Icon,
    IconSet,
    Vendor,
    fetch,
    read_icon_set,
    read_json,
)

Split = Literal["train", "held_out", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "held_out", "unseen")
UNSEEN_NAMES = 100
LEAST_VENDORS = 3  # that must draw a name for it to be withheld whole


@dataclass(frozen=True)
class Artwork:
    """One emoji as one vendor draws it."""

    emoji: Emoji
    vendor: Vendor
    icon: Icon
    split: Split


def read_artwork(packages: Path) -> list[Artwork]:
    """The artwork of every vendor, each (emoji, vendor) once. Downloads what the folder `packages` lacks.

    Raises:
        InputError: a package that cannot be downloaded or read.
    """
    emoji = read_emoji(
        read_json(fetch(*NAMES_PACKAGE, packages) / "en" / "data.json"),
        read_json(fetch(*WORDS_PACKAGE, packages) / "dist" / "emoji-en-US.json"),
    )
    sets = {key: read_icon_set(fetch(one.package, one.version, packages)) for key, one in VENDORS.items()}
    aliases: dict[str, str] = {}
    for icons in sets.values():
        aliases |= {name: parent for name, parent in icons.aliases.items() if name not in aliases}
    index = NameIndex(emoji, aliases)
    drawn = {
        key: _drawn_by(sets[key], sets.get(vendor.code_points or ""), index)
        for key, vendor in VENDORS.items()
    }
    vendors_of = Counter(one.base for own in drawn.values() for one in own if not one.tones)
    unseen = choose_unseen(emoji, vendors_of, UNSEEN_NAMES)
    return [
        Artwork(one, VENDORS[key], icon, split_of(one, key, unseen))
        for key, own in drawn.items()
        for one, icon in sorted(own.items(), key=lambda pair: pair[0].name)
    ]


def _drawn_by(icons: IconSet, table: IconSet | None, index: NameIndex) -> dict[Emoji, Icon]:
    """One icon for each emoji; those whose code points `table` tells come first."""
    points = {icon: where for where, icon in table.code_points.items()} if table is not None else {}
    drawn: dict[Emoji, Icon] = {}
    for name in sorted(icons.icons, key=lambda name: name not in points):
        found = index.find(name, points.get(name))
        if found is not None:
            drawn.setdefault(found, icons.icons[name])
    return drawn


def pair_held_out(name: str, vendor: str) -> bool:
    """True for one (name, vendor) in eight."""
    return zlib.crc32(f"{name}|{vendor}".encode()) % 8 == 0


def choose_unseen(emoji: Iterable[Emoji], vendors_of: Mapping[str, int], count: int) -> frozenset[str]:
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
