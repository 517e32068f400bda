"""Names over vendors, what is held out, and captions."""

import zlib

import numpy as np
import pytest

from sagediff.builtin.emoji.artwork import choose_unseen, pair_held_out, split_of
from sagediff.builtin.emoji.artwork_folder import backgrounds_of
from sagediff.builtin.emoji.emoji_captions import (
    Subject,
    plain_caption,
    seeded,
    spell_out,
    vary_caption,
    with_article,
)
from sagediff.builtin.emoji.emoji_names import Emoji, NameIndex, read_emoji, slug, split_name

EMOJIBASE = [
    {
        "label": "deaf man", "hexcode": "1F9CF-200D-2642-FE0F", "emoji": "🧏‍♂️", "tags": ["deaf", "ear"], "group": 1,
        "skins": [
            {"label": "deaf man: medium-dark skin tone", "hexcode": "1F9CF-1F3FE-200D-2642-FE0F"},
            {"label": "deaf man: dark skin tone", "hexcode": "1F9CF-1F3FF-200D-2642-FE0F"},
        ],
    },
    {"label": "flag: Germany", "hexcode": "1F1E9-1F1EA", "emoji": "🇩🇪", "tags": ["DE", "flag"], "group": 9},
    {"label": "robot", "hexcode": "1F916", "emoji": "🤖", "tags": ["face", "monster"], "group": 0},
]  # fmt: skip
EMOJILIB = {"🤖": ["robot", "computer_chip", "face"]}


@pytest.fixture
def emoji() -> list[Emoji]:
    return read_emoji(EMOJIBASE, EMOJILIB)


def test_skin_tones_are_split_from_names() -> None:
    assert split_name("kiss: woman, man, light skin tone, medium-dark skin tone") == (
        "kiss: woman, man", ("light skin tone", "medium-dark skin tone"),
    )  # fmt: skip
    assert split_name("man: bald") == ("man: bald", ())


def test_emoji_know_their_base_and_their_other_words(emoji: list[Emoji]) -> None:
    dark = next(one for one in emoji if one.name == "deaf man: dark skin tone")
    assert (dark.base, dark.tones, dark.code_points) == (
        "deaf man", ("dark skin tone",), "1f9cf-1f3ff-200d-2642",
    )  # fmt: skip
    assert emoji[-1].keywords == ("computer chip", "face", "monster")  # without its own name, each once


@pytest.mark.parametrize(
    "icon, points, name",
    [
        ("man-deaf-dark", "1f9cf-1f3ff-200d-2642", "deaf man: dark skin tone"),  # fluent: by code points
        ("deaf-man-dark-skin-tone", None, "deaf man: dark skin tone"),
        ("deaf-man-medium-dark", None, "deaf man: medium-dark skin tone"),
        ("flag-for-germany", None, "flag: Germany"),
        ("robot-face", None, "robot"),  # through an alias
        ("german-flag", None, "flag: Germany"),  # through an alias that leads from today's spelling
        ("no-such-thing", None, None),
        ("robot", "ffff", None),  # code points decide
    ],
)
def test_every_spelling_leads_to_one_name(
    emoji: list[Emoji], icon: str, points: str | None, name: str | None
) -> None:
    index = NameIndex(emoji, {"robot-face": "robot", "flag-germany": "german-flag"})
    found = index.find(icon, points)
    assert (found.name if found else None) == name


def test_slugs() -> None:
    assert slug("flag: Åland Islands") == "flag-aland-islands"
    assert slug("flag: Côte d’Ivoire") == "flag-cote-divoire"


def test_one_pair_in_eight_is_held_out() -> None:
    names = [f"name {i}" for i in range(4000)]
    assert all(pair_held_out(n, "noto") == (zlib.crc32(f"{n}|noto".encode()) % 8 == 0) for n in names)
    assert 420 < sum(pair_held_out(n, "noto") for n in names) < 580


def test_unseen_names_are_drawn_by_several_and_take_their_skin_tones_along(emoji: list[Emoji]) -> None:
    unseen = choose_unseen(emoji, {"deaf man": 3, "flag: Germany": 5, "robot": 2}, count=2)
    assert unseen == {"deaf man"}  # a flag can't be guessed, and two vendors are too few
    splits = {one.name: split_of(one, "noto", unseen) for one in emoji}
    assert splits["deaf man: dark skin tone"] == "unseen"
    assert splits["robot"] in ("train", "held_out")


@pytest.mark.parametrize(
    "base, said",
    [
        ("flag: Germany", "flag of Germany"),
        ("keycap: 1", "keycap 1"),
        ("man: red hair", "man with red hair"),
        ("woman: bald", "bald woman"),
        ("family: man, woman, boy", "family of man, woman and boy"),
        ("robot", "robot"),
    ],
)
def test_names_are_spelled_out(base: str, said: str) -> None:
    assert spell_out(base, 0.0) == said


def test_articles() -> None:
    said = [with_article(noun) for noun in ("apple", "unicorn", "grapes", "men wrestling", "bus")]
    assert said == ["an apple", "a unicorn", "grapes", "men wrestling", "a bus"]


SUBJECT = Subject("woman firefighter", ("medium skin tone",), ("fire", "firetruck"), "Noto", "black")


def test_the_plain_caption_says_all() -> None:
    assert plain_caption(SUBJECT) == (
        "a woman firefighter with medium skin tone on a black background, in the style of Noto"
    )


def test_captions_vary_and_depend_on_the_seed_alone() -> None:
    made = [vary_caption(SUBJECT, seeded(SUBJECT.base, number)) for number in range(400)]
    assert made == [vary_caption(SUBJECT, seeded(SUBJECT.base, number)) for number in range(400)]
    assert len(set(made)) > 150
    assert all("medium skin tone" in caption for caption in made)
    parts = {
        word: np.mean([word in caption.lower() for caption in made]) for word in ("noto", "black background")
    }
    assert 0.8 < parts["noto"] < 0.95  # at times no style is named
    assert 0.65 < parts["black background"] < 0.85


def test_the_first_background_is_white_and_others_let_the_drawing_be_seen() -> None:
    black = np.concatenate([np.zeros((64, 64, 3)), np.ones((64, 64, 1))], axis=2).astype(np.float32)
    chosen = backgrounds_of("robot", "noto", 3, black)
    assert chosen[0] == "white" and len(set(chosen)) == 3
    assert chosen == backgrounds_of("robot", "noto", 3, black)
    assert "black" not in backgrounds_of("robot", "noto", 9, black)
