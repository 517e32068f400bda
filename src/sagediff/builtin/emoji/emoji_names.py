"""What an emoji is called: one CLDR short name for every vendor's spelling of it.

It knows neither files nor images. The source is emojibase's list (CLDR), with emojilib's synonyms.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FLAGS_GROUP = 9
_TONE = re.compile(r"(?:medium-light|medium-dark|light|medium|dark) skin tone")
_SHORT_TONE = re.compile(r"-(medium-light|medium-dark|light|medium|dark)$")


@dataclass(frozen=True)
class Emoji:
    """One emoji of the standard.

    Attributes:
        name: CLDR short name, "deaf man: dark skin tone".
        base: the name without skin tones, "deaf man".
        tones: its skin tones in order, ("dark skin tone",); empty where it has none.
        keywords: other words for it, most specific first, without its own name.
        group: number of its group in the standard (9: flags); None outside of the groups.
        code_points: "1f9cf-1f3ff-200d-2642", without variation selectors.
    """

    name: str
    base: str
    tones: tuple[str, ...]
    keywords: tuple[str, ...]
    group: int | None
    code_points: str


def split_name(name: str) -> tuple[str, tuple[str, ...]]:
    """ "kiss: woman, man, light skin tone, dark skin tone" -> "kiss: woman, man" and both tones."""
    head, _, qualifiers = name.partition(": ")
    parts = [part.strip() for part in qualifiers.split(",") if part.strip()]
    tones = tuple(part for part in parts if _TONE.fullmatch(part))
    others = [part for part in parts if not _TONE.fullmatch(part)]
    return (f"{head}: {', '.join(others)}" if others else head), tones


def read_emoji(emojibase: Iterable[Mapping[str, Any]], emojilib: Mapping[str, list[str]]) -> list[Emoji]:
    """All emoji with their skin tones, in the standard's order.

    Args:
        emojibase: entries of its `en/data.json`.
        emojilib: character -> words, of its `emoji-en-US.json`.
    """
    found = []
    words = {character.replace("\ufe0f", ""): list(entries) for character, entries in emojilib.items()}
    for entry in emojibase:
        synonyms = [w.replace("_", " ") for w in words.get(entry["emoji"].replace("\ufe0f", ""), [])]
        for form in (entry, *entry.get("skins", ())):
            base, tones = split_name(form["label"])
            keywords = [w for w in (*synonyms, *entry.get("tags", ())) if w.lower() != base.lower()]
            found.append(
                Emoji(
                    name=form["label"],
                    base=base,
                    tones=tones,
                    keywords=tuple(dict.fromkeys(keywords)),
                    group=entry.get("group"),
                    code_points=form["hexcode"].lower().replace("-fe0f", ""),
                )
            )
    return found


def slug(name: str) -> str:
    """ "flag: Åland Islands" -> "flag-aland-islands", as icon names are written."""
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "")).strip("-")


class NameIndex:
    """Finds the emoji that a vendor's icon shows.

    Args:
        emoji: those of the standard.
        aliases: icon name -> icon name, of all vendors: older spellings lead to those of today.
    """

    def __init__(self, emoji: Iterable[Emoji], aliases: Mapping[str, str]) -> None:
        known = list(emoji)
        self._by_points = {one.code_points: one for one in known}
        self._by_slug = {slug(one.name): one for one in known}
        self._aliases = dict(aliases)
        for spelling, name in aliases.items():  # a spelling of today may lead to an old one
            if spelling in self._by_slug:
                self._by_slug.setdefault(name, self._by_slug[spelling])

    def find(self, icon: str, code_points: str | None = None) -> Emoji | None:
        """By code points if the vendor tells them, else by the icon's name; None for what is no emoji."""
        if code_points is not None:
            return self._by_points.get(code_points)
        long_tone = _SHORT_TONE.sub(r"-\1-skin-tone", icon)
        for spelling in (
            icon,
            icon.removeprefix("flag-for-"),
            icon.replace("flag-for-", "flag-", 1),
            long_tone,
        ):
            for name in (spelling, self._aliases.get(spelling, "")):
                if name in self._by_slug:
                    return self._by_slug[name]
        return None
