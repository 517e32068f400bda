"""The built-in world: captions mean what they say, held-out ones stay out, renders obey the rules."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from sagediff.builtin.scenes.render import FONT_FILES, Renderer
from sagediff.builtin.scenes.tokenizer import MAX_LENGTH, build_tokenizer
from sagediff.builtin.scenes.world import (
    COLORS,
    IMAGE_SIZE,
    OBJECTS,
    POSITIONS,
    SIZES,
    Scene,
    all_scenes,
    held_out,
    held_out_scenes,
    parse_caption,
    training_scenes,
)
from sagediff.errors import InputError

needs_font = pytest.mark.skipif(
    not any(f.is_file() for f in FONT_FILES), reason="font Noto Color Emoji not installed"
)


def test_every_caption_reads_back_as_its_scene() -> None:
    scenes = all_scenes()
    assert len(scenes) == len(OBJECTS) * len(SIZES) * len(POSITIONS) * len(COLORS) == 5760
    assert [parse_caption(scene.caption) for scene in scenes] == scenes


@pytest.mark.parametrize("caption", ["", "a cat", "a huge cat at the top on a red background"])
def test_foreign_captions_are_refused(caption: str) -> None:
    with pytest.raises(InputError, match="not a caption"):
        parse_caption(caption)


def test_held_out_captions_are_never_trained_on() -> None:
    trained, kept = training_scenes(), held_out_scenes()
    assert sorted(s.caption for s in trained + kept) == sorted(s.caption for s in all_scenes())
    assert all(zlib.crc32(s.caption.encode()) % 8 == 0 for s in kept)
    assert not any(held_out(s.caption) for s in trained)


def test_every_word_of_the_world_is_one_token_and_any_text_can_be_spelt(tmp_path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    for scene in all_scenes()[::97]:
        ids = tokenizer(scene.caption).input_ids
        assert len(ids) == len(scene.caption.split()) + 2 <= MAX_LENGTH
    ids = tokenizer("Österreich, 東京 & cats!").input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]


@needs_font
def test_renders_are_reproducible_and_keep_their_place() -> None:
    renderer = Renderer()
    for scene in (Scene("star", "small", "top left", "blue"), Scene("cat", "large", "bottom right", "white")):
        one, two = (renderer.draw(scene, np.random.default_rng(3)) for _ in range(2))
        assert one.shape == (3, IMAGE_SIZE, IMAGE_SIZE) and np.array_equal(one, two)
        assert one.min() >= 0 and one.max() <= 1
        drawn = np.abs(one - one[:, 32:33, 2:3]).max(0) > 0.05  # the left edge's middle shows background
        rows, columns = np.nonzero(drawn)
        column, row = POSITIONS[scene.position]
        assert (columns.mean() > 32) == (column == 2) and (rows.mean() > 32) == (row == 2)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 <= SIZES[scene.size]
