"""Captions as people write them: one image can be asked for in many ways.

One function turns what is known about an image and a random generator into a caption. It knows words only.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

_PLURAL_START = ("men", "women", "people")
_OPENINGS = ("an emoji of", "an icon of", "a drawing of", "an illustration of", "an image of", "a cartoon of")
_HAIR = ("hair", "beard")


@dataclass(frozen=True)
class Subject:
    """What an image shows and how.

    Attributes:
        base: CLDR short name without skin tones, "woman firefighter", "flag: Germany".
        tones: ("medium skin tone",), or two of them, or none.
        keywords: other words for it, most specific first.
        style: the vendor's name in captions, "Noto".
        background: a key of `render.BACKGROUNDS`.
    """

    base: str
    tones: tuple[str, ...]
    keywords: tuple[str, ...]
    style: str
    background: str


def seeded(*parts: object) -> np.random.Generator:
    """A generator that depends on nothing but `parts`."""
    return np.random.default_rng(zlib.crc32("|".join(map(str, parts)).encode()))


def plain_caption(subject: Subject) -> str:
    """The same caption each time, which says all: "a woman firefighter with dark skin tone, in the style of Noto"."""
    noun = with_article(spell_out(subject.base, 0.0))
    if subject.tones:
        noun += f" with {' and '.join(subject.tones)}"
    if subject.background != "white":
        noun += f" on {with_article(subject.background)} background"
    return f"{noun}, in the style of {subject.style}"


def vary_caption(subject: Subject, rng: np.random.Generator) -> str:
    """One of many captions of the image.

    Skin tones are always said. Left out at times: the style (one in eight), a background that is not white
    (one in four), and the name itself where keywords stand for it (one in fourteen).
    """
    style, placed = _style(subject.style, rng), rng.random()
    noun = _noun(subject, rng, opening=not style or placed < 0.65)
    background = _background(subject.background, rng)
    keywords = list(subject.keywords[:8])
    rng.shuffle(keywords)
    extra = ", ".join(keywords[: int(rng.integers(1, 4))]) if keywords and rng.random() < 0.3 else ""
    if extra:
        noun = f"{noun} ({extra})" if rng.random() < 0.3 else f"{noun}, {extra}"
    if background and (extra or rng.random() < 0.2):
        noun, background = f"{noun}, {background.removeprefix('on ')}", ""
    elif background:
        noun = f"{noun} {background}"
    if not style:
        return noun
    if placed < 0.35:
        return f"{noun}, in the style of {style}"
    if placed < 0.45:
        return f"{noun} in {style} style"
    if placed < 0.55:
        return f"{noun}, {style} style"
    if placed < 0.65:
        return f"{noun}, by {style}"
    if placed < 0.9:
        return f"{style} emoji of {noun}"
    return f"{style}: {noun}"


def spell_out(base: str, reverse: float) -> str:
    """A CLDR name as one says it: "flag: Germany" -> "flag of Germany"; the other way round if `reverse` >= 0.5."""
    head, _, rest = base.partition(": ")
    if not rest:
        return base
    if head == "flag":
        return f"{rest} flag" if reverse >= 0.5 else f"flag of {rest}"
    if head == "keycap":
        return f"{rest} keycap" if reverse >= 0.5 else f"keycap {rest}"
    if rest.endswith(_HAIR):
        return f"{head} with {rest}"
    if rest == "bald":
        return f"bald {head}"
    if rest == "facing right":
        return f"{head}, {rest}"
    *first, last = rest.split(", ")
    return f"{head} of {' and '.join(filter(None, (', '.join(first), last)))}"


def with_article(noun: str) -> str:
    """ "apple" -> "an apple"; plurals, and what has an article, stay as they are."""
    words = noun.split(",")[0].split(" with ")[0].split(" of ")[0].split()
    first, last = words[0].lower(), words[-1].lower()
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is"))
    if first in (*_PLURAL_START, "a", "an", "the") or plural:
        return noun
    return f"{'an' if first[0] in 'aeiou' and not first.startswith(('uni', 'eu')) else 'a'} {noun}"


def _noun(subject: Subject, rng: np.random.Generator, opening: bool) -> str:
    named = spell_out(subject.base, float(rng.random()))
    if subject.keywords and rng.random() < 0.07:
        words = list(subject.keywords[:6])
        rng.shuffle(words)
        named = " ".join(words[: int(rng.integers(2, 5))])
    tones = list(subject.tones)
    if not tones:
        noun = named
    elif len(tones) == 1 and rng.random() < 0.3:
        noun = f"{tones[0]} {named}"
    else:
        joined = " and ".join(tones)
        noun = f"{named} with {joined}" if rng.random() < 0.6 else f"{named}, {joined}"
    if rng.random() < 0.6:
        noun = with_article(noun)
        if opening and rng.random() < 0.2:
            noun = f"{_OPENINGS[int(rng.integers(len(_OPENINGS)))]} {noun}"
    return noun


def _style(style: str, rng: np.random.Generator) -> str:
    if rng.random() < 0.125:
        return ""
    return style.lower() if rng.random() < 0.15 else style


def _background(background: str, rng: np.random.Generator) -> str:
    said = 0.2 if background == "white" else 0.75
    return f"on {with_article(background)} background" if rng.random() < said else ""
