"""The npm packages that the artwork and its words come from: versions, licences, and how they are unpacked.

It does not know what an emoji is called or how an image is drawn.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Vendor:
    """One set of artwork.

    Attributes:
        key: its name in files and in the held-out rule.
        words: its name in captions.
        licence: SPDX identifier of the artwork.
        code_points: key of the vendor whose table of code points names these icons too; None where no table does.
    """

    key: str
    package: str
    version: str
    words: str
    licence: str
    code_points: str | None


_ICONS = "@iconify-json"
VENDORS: dict[str, Vendor] = {
    vendor.key: vendor
    for vendor in (
        Vendor("noto", f"{_ICONS}/noto", "1.2.9", "Noto", "Apache-2.0", "noto"),
        Vendor("twemoji", f"{_ICONS}/twemoji", "1.2.5", "Twemoji", "CC-BY-4.0", "twemoji"),
        Vendor("fluent-emoji-flat", f"{_ICONS}/fluent-emoji-flat", "1.2.6", "Fluent Flat", "MIT", "fluent-emoji-flat"),
        Vendor("fluent-emoji", f"{_ICONS}/fluent-emoji", "1.2.7", "Fluent Color", "MIT", "fluent-emoji-flat"),
        Vendor("emojione", f"{_ICONS}/emojione", "1.2.3", "EmojiOne", "CC-BY-4.0", None),
    )
}  # fmt: skip
FLAT_VENDORS = ("noto", "twemoji", "fluent-emoji-flat")
NAMES_PACKAGE = ("emojibase-data", "17.0.0")
WORDS_PACKAGE = ("emojilib", "4.0.3")


def fetch(package: str, version: str, cache: Path) -> Path:
    """The unpacked package's folder under `cache`; downloaded once, by npm."""
    stem = f"{package.removeprefix('@').replace('/', '-')}-{version}"
    folder = cache / stem
    if folder.is_dir():
        return folder / "package"
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"{stem}.tgz"
    if not archive.is_file():
        command = ["npm", "pack", f"{package}@{version}", "--pack-destination", str(cache), "--silent"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    partial = cache / f"{stem}.partial"
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    partial.rename(folder)
    return folder / "package"


def read_json(path: Path) -> Any:
    with path.open(encoding="utf-8") as file:
        return json.load(file)


@dataclass(frozen=True)
class Icon:
    """An SVG body and the box it is drawn in."""

    body: str
    left: float
    top: float
    width: float
    height: float
    flipped: bool = False


@dataclass(frozen=True)
class IconSet:
    """A vendor's icons by their own names; `aliases` lead from other names to those.

    `code_points` leads from code points ("1f9cf-200d-2642", without variation selectors) to icon names.
    """

    icons: dict[str, Icon]
    aliases: dict[str, str]
    code_points: dict[str, str]


def read_icon_set(folder: Path) -> IconSet:
    """Read an Iconify JSON package. An alias that mirrors its parent is an icon of its own."""
    document = read_json(folder / "icons.json")
    width, height = float(document.get("width", 16)), float(document.get("height", 16))
    icons = {
        name: Icon(
            entry["body"],
            float(entry.get("left", 0)),
            float(entry.get("top", 0)),
            float(entry.get("width", width)),
            float(entry.get("height", height)),
        )
        for name, entry in document["icons"].items()
    }
    aliases: dict[str, str] = {}
    for name, entry in document.get("aliases", {}).items():
        parent = icons.get(entry["parent"])
        if entry.keys() == {"parent"}:
            aliases[name] = entry["parent"]
        elif parent is not None and entry.get("hFlip"):
            icons[name] = Icon(
                parent.body, parent.left, parent.top, parent.width, parent.height, flipped=True
            )
    chars = read_json(folder / "chars.json")
    return IconSet(icons, aliases, {points.replace("-fe0f", ""): name for points, name in chars.items()})
