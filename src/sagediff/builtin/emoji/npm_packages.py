"""The npm packages that the artwork and its words come from: versions, licences, and how they are unpacked.

It does not know what an emoji is called or how an image is drawn.
"""

from __future__ import annotations

import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagediff.errors import InputError
from sagediff.files.atomic import writing
from sagediff.files.json_input import parse


@dataclass(frozen=True)
class Vendor:
    """One set of artwork.

    Attributes:
        key: its name in files and in the held-out rule.
        words: its name in captions.
        licence: SPDX identifier of the artwork.
        credit: who is to be named for it, and where it is from.
        code_points: key of the vendor whose table of code points names these icons too; None where no table does.
    """

    key: str
    package: str
    version: str
    words: str
    licence: str
    credit: str
    code_points: str | None


_ICONS = "@iconify-json"
_FLUENT = "Fluent Emoji by Microsoft Corporation, https://github.com/microsoft/fluentui-emoji"
VENDORS: dict[str, Vendor] = {
    vendor.key: vendor
    for vendor in (
        Vendor(
            "noto", f"{_ICONS}/noto", "1.2.9", "Noto", "Apache-2.0",
            "Noto Emoji by Google, https://github.com/googlefonts/noto-emoji", "noto",
        ),
        Vendor(
            "twemoji", f"{_ICONS}/twemoji", "1.2.5", "Twemoji", "CC-BY-4.0",
            "Twemoji by Twitter, Inc. and other contributors, https://github.com/jdecked/twemoji", "twemoji",
        ),
        Vendor(
            "fluent-emoji-flat", f"{_ICONS}/fluent-emoji-flat", "1.2.6", "Fluent Flat", "MIT", _FLUENT,
            "fluent-emoji-flat",
        ),
        Vendor(
            "fluent-emoji", f"{_ICONS}/fluent-emoji", "1.2.7", "Fluent Color", "MIT", _FLUENT, "fluent-emoji-flat",
        ),
        Vendor(
            "emojione", f"{_ICONS}/emojione", "1.2.3", "EmojiOne", "CC-BY-4.0",
            "EmojiOne 2 by EmojiOne, https://github.com/EmojiTwo/emojitwo", None,
        ),
    )
}  # fmt: skip
FLAT_VENDORS = ("noto", "twemoji", "fluent-emoji-flat")
NAMES_PACKAGE = ("emojibase-data", "17.0.0")
WORDS_PACKAGE = ("emojilib", "4.0.3")
MAX_BYTES = 256 << 20  # of one file of theirs; the largest set of icons takes 104 MB


def fetch(package: str, version: str, folder: Path) -> Path:
    """The unpacked package below `folder`; downloaded once, by npm.

    Raises:
        InputError: npm is missing, or it or the archive's content fails.
    """
    stem = f"{package.removeprefix('@').replace('/', '-')}-{version}"
    unpacked = folder / stem
    if unpacked.is_dir():
        return unpacked / "package"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{stem}.tgz"
    try:
        if not archive.is_file():
            command = ["npm", "pack", f"{package}@{version}", "--pack-destination", str(folder), "--silent"]
            subprocess.run(command, check=True, capture_output=True, text=True)
        with tarfile.open(archive) as tar, writing(unpacked) as partial:
            tar.extractall(partial, filter="data")
    except FileNotFoundError as error:
        raise InputError(f"npm, which downloads the artwork, is missing: {error}") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[0]
        raise InputError(f"npm cannot download {package}@{version}: {reason}") from error
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{archive} is no whole package ({error}); remove it") from error
    return unpacked / "package"


def read_json(path: Path) -> Any:
    """Raises InputError if the file is not what it should be."""
    try:
        return parse(path.read_bytes(), str(path), max_bytes=MAX_BYTES)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


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
