"""`python -m sagediff.builtin.emoji.data --out DIR`: the artwork as an imagefolder.

DIR/images/*.png and DIR/metadata.jsonl, one line per image: `file_name`, `text` (the plain caption), `name`, `base`,
`tones`, `vendor`, `style`, `licence`, `keywords`, `group`, `background`, `split` (train, held_out, unseen). The
stages of this package read all of it and leave out by `split` what they must not see; for a trainer that takes every
image of a folder, draw the training images alone: `--splits train`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sagediff.builtin.emoji.captions import Subject, plain_caption
from sagediff.builtin.emoji.holdout import SPLITS, choose_unseen, split_of
from sagediff.builtin.emoji.names import Emoji, NameIndex, read_emoji, slug
from sagediff.builtin.emoji.packages import (
    FLAT_VENDORS,
    NAMES_PACKAGE,
    VENDORS,
    WORDS_PACKAGE,
    Icon,
    Vendor,
    fetch,
    read_icon_set,
    read_json,
)
from sagediff.builtin.emoji.render import BACKGROUNDS, draw, on_background, stands_out


@dataclass(frozen=True)
class Artwork:
    """One emoji as one vendor draws it."""

    emoji: Emoji
    vendor: Vendor
    icon: Icon


def read_artwork(cache: Path) -> tuple[list[Emoji], list[Artwork]]:
    """All emoji, and all artwork of all vendors, each (emoji, vendor) once. Downloads what `cache` lacks."""
    emoji = read_emoji(
        read_json(fetch(*NAMES_PACKAGE, cache) / "en" / "data.json"),
        read_json(fetch(*WORDS_PACKAGE, cache) / "dist" / "emoji-en-US.json"),
    )
    sets = {key: read_icon_set(fetch(one.package, one.version, cache)) for key, one in VENDORS.items()}
    aliases: dict[str, str] = {}
    for icons in sets.values():
        aliases.update({name: parent for name, parent in icons.aliases.items() if name not in aliases})
    index = NameIndex(emoji, aliases)
    artwork = []
    for key, vendor in VENDORS.items():
        points = {}
        if vendor.code_points is not None:
            points = {icon: where for where, icon in sets[vendor.code_points].code_points.items()}
        drawn: dict[str, Artwork] = {}
        for named in (True, False):  # icons whose code points are told come first
            for name, icon in sets[key].icons.items():
                if (name in points) == named:
                    found = index.find(name, points.get(name))
                    if found is not None:
                        drawn.setdefault(found.name, Artwork(found, vendor, icon))
        artwork += [drawn[name] for name in sorted(drawn)]
    return emoji, artwork


def backgrounds_of(name: str, vendor: str, count: int, drawing: NDArray[np.float32]) -> list[str]:
    """White, then other backgrounds chosen by the name and the vendor, of those that the drawing stands out from."""
    others = [b for b in BACKGROUNDS if b != "white" and stands_out(drawing, b)]
    others.sort(key=lambda b: zlib.crc32(f"{name}|{vendor}|{b}".encode()))
    return ["white", *others][:count]


def write_dataset(
    out: Path, cache: Path, vendors: Sequence[str], splits: Sequence[str], backgrounds: int
) -> dict[str, int]:
    """Draw what is chosen; metadata.jsonl last, so that it names whole files. Returns counts by split."""
    emoji, artwork = read_artwork(cache)
    unseen = choose_unseen(emoji, Counter(one.emoji.base for one in artwork if not one.emoji.tones))
    (out / "images").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    counts: Counter[str] = Counter()
    for one in artwork:
        if one.vendor.key not in vendors:
            continue
        split = split_of(one.emoji, one.vendor.key, unseen)
        if split not in splits:
            continue
        counts[f"{split} pairs"] += 1
        for row in _draw_all(one, out, backgrounds):
            lines.append(json.dumps(row | {"split": split}, ensure_ascii=False))
            counts[f"{split} images"] += 1
    partial = out / "metadata.jsonl.partial"
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(partial, out / "metadata.jsonl")
    return dict(counts)


def _draw_all(one: Artwork, out: Path, backgrounds: int) -> Iterator[dict[str, object]]:
    emoji, vendor = one.emoji, one.vendor
    try:
        drawing = draw(one.icon)
    except ValueError as error:
        print(f"left out: {emoji.name} of {vendor.key}: {error}", file=sys.stderr)
        return
    for background in backgrounds_of(emoji.name, vendor.key, backgrounds, drawing):
        name = f"images/{vendor.key}_{slug(emoji.name) or emoji.code_points}_{slug(background)}.png"
        Image.fromarray(on_background(drawing, background)).save(out / name)
        subject = Subject(emoji.base, emoji.tones, emoji.keywords, vendor.words, background)
        yield {
            "file_name": name,
            "text": plain_caption(subject),
            "name": emoji.name,
            "base": emoji.base,
            "tones": list(emoji.tones),
            "vendor": vendor.key,
            "style": vendor.words,
            "licence": vendor.licence,
            "keywords": list(emoji.keywords),
            "group": emoji.group,
            "background": background,
        }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sagediff.builtin.emoji.data", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder of the npm packages (default OUT/packages)")
    parser.add_argument("--vendors", nargs="+", choices=list(VENDORS), default=list(FLAT_VENDORS))
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument(
        "--backgrounds", type=int, default=3, help="images of each drawing, the first on white"
    )
    args = parser.parse_args(argv)
    counts = write_dataset(
        args.out, args.cache or args.out / "packages", args.vendors, args.splits, args.backgrounds
    )
    print("\n".join(f"{count:6d} {what}" for what, count in sorted(counts.items())), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
