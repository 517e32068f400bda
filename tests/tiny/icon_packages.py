"""A small icon set in the form of the npm packages that the emoji world's artwork comes from."""

from __future__ import annotations

import json
from pathlib import Path

from sagediff.builtin.emoji.npm_packages import NAMES_PACKAGE, VENDORS, WORDS_PACKAGE

NAMES = ["robot", "cat", "owl", "apple", "key", "bell", "rose", "tent", "duck", "kite", "drum", "sled"]
TONED = "waving hand"


def _body(vendor: int, number: int) -> str:
    colour = f"rgb({40 * vendor},{number * 17},{200 - number * 11})"
    return f'<rect x="{number % 4}" y="{vendor}" width="{4 + number % 3}" height="8" fill="{colour}"/>'


def write_icon_packages(folder: Path) -> Path:
    """Unpacked, as `fetch` leaves them: twelve names and one with a skin tone, of all five vendors."""

    def package(name: str, version: str, files: dict[str, object]) -> None:
        for file, content in files.items():
            path = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}" / "package" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content), encoding="utf-8")

    points = [f"1f{600 + number}" for number in range(len(NAMES))]
    entries: list[dict[str, object]] = [
        {"label": name, "hexcode": where.upper(), "emoji": chr(int(where, 16)), "tags": ["thing"], "group": 0}
        for name, where in zip(NAMES, points, strict=True)
    ]
    toned = {"label": f"{TONED}: dark skin tone", "hexcode": "1F44B-1F3FF"}
    entries.append(
        {"label": TONED, "hexcode": "1F44B", "emoji": "👋", "tags": [], "group": 1, "skins": [toned]}
    )
    package(*NAMES_PACKAGE, {"en/data.json": entries})
    package(*WORDS_PACKAGE, {"dist/emoji-en-US.json": {chr(int(points[0], 16)): ["robot", "metal_friend"]}})
    for number, vendor in enumerate(VENDORS.values()):
        slugs = [*NAMES, "waving-hand", "waving-hand-dark-skin-tone"]
        icons = {slug: {"body": _body(number, place)} for place, slug in enumerate(slugs)}
        chars = dict(zip([*points, "1f44b", "1f44b-1f3ff"], slugs, strict=True))
        document = {"icons": icons, "width": 12, "height": 12, "aliases": {"android": {"parent": "robot"}}}
        package(vendor.package, vendor.version, {"icons.json": document, "chars.json": chars})
    return folder
