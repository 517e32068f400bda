"""The parts of the emoji world's training: latents, times and states, the naming tower and what it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sagediff.builtin.emoji.naming_tower import DIM, FILE, CaptionTable, NamingTower, load_naming
from sagediff.builtin.emoji.training.flow_unet import draw_times, mix
from sagediff.builtin.emoji.training.latents import decode, encode, normalise_latents, vary
from sagediff.builtin.emoji.training.naming_stage import augment, write_naming
from sagediff.builtin.training.architectures import new_autoencoder
from sagediff.builtin.training.contrast import choice_terms
from sagediff.errors import InputError


def test_normalised_latents_decode_to_the_same_images() -> None:
    torch.manual_seed(0)
    model = new_autoencoder().eval()
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    before = encode(model, pixels)
    with torch.no_grad():
        images = model.decode(before).sample
        normalise_latents(model, before.mean(dim=(0, 2, 3)), before.std(dim=(0, 2, 3)))
        after = encode(model, pixels)
        assert torch.allclose(after.mean(dim=(0, 2, 3)), torch.zeros(8), atol=1e-4)
        assert torch.allclose(after.std(dim=(0, 2, 3)), torch.ones(8), atol=1e-4)
        assert torch.allclose(model.decode(after).sample, images, atol=1e-4)
    made = decode(model, after, batch_size=3)
    assert made.dtype == torch.uint8
    expected = (images.clamp(-1, 1) + 1) * 127.5
    assert (made - expected).abs().max() < 0.51


def test_the_autoencoder_sees_mirrored_images_and_other_colours_and_nothing_else() -> None:
    images = torch.rand(64, 3, 4, 4)
    varied = vary(images, np.random.default_rng(0))
    forms = torch.stack([images, images.flip(3)]).sum(2)  # permuted channels have the same sum
    matches = torch.isclose(varied.sum(1)[None], forms, atol=1e-6).all(dim=(2, 3))
    assert matches.any(0).all() and matches[1].sum() > 16


def test_times_are_spread_and_states_are_mixtures() -> None:
    times = draw_times(512, np.random.default_rng(0))
    assert times.dtype == torch.float32 and times.min() > 0 and times.max() < 1
    assert 0.45 < times.mean() < 0.55
    image, noise = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    assert mix(image, noise, torch.tensor([0.25, 1.0])).flatten().tolist() == [0.25, 1.0]


def test_augmented_images_keep_their_shape_place_and_colour_roughly() -> None:
    image = torch.ones(1, 3, 64, 64)
    image[:, :, 24:40, 24:40] = -1
    images = image.expand(32, -1, -1, -1)
    seen = augment(images, torch.Generator().manual_seed(0))
    assert seen.shape == images.shape and torch.isfinite(seen).all()
    assert torch.equal(seen, augment(images, torch.Generator().manual_seed(0)))
    dark = (seen.mean(1) < 0).float()
    count = dark.sum(dim=(1, 2))
    assert count.min() > 160 and count.max() < 330  # 256 pixels, scaled by 0.85 to 1.1
    for place in (torch.arange(64.0).view(64, 1), torch.arange(64.0).view(1, 64)):
        moved = (dark * place).sum(dim=(1, 2)) / count - 31.5
        assert 2 < moved.abs().max() < 4


def test_a_choice_among_all_captions_is_right_where_the_own_is_nearest() -> None:
    texts = torch.eye(4)
    certain = choice_terms(texts[:2], texts, torch.tensor(4.0), torch.tensor([0, 1]))["choice"]
    wrong = choice_terms(texts[:2], texts, torch.tensor(4.0), torch.tensor([1, 0]))["choice"]
    assert certain < 1e-6 and wrong > 40
    near = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1e-2], [1.0, 2e-2]]), dim=1)
    exact = choice_terms(near[:1], near, torch.tensor(4.0), torch.tensor([0]))["choice"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            choice_terms(near[:1], near, torch.tensor(4.0), torch.tensor([0]))["choice"], exact
        )


def test_images_are_named_among_the_captions_of_their_vendor() -> None:
    vectors = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]), dim=1)
    table = CaptionTable(["a", "b", "c"], ["cat", "dog", "cat"], ["noto", "noto", "twemoji"], vectors)
    images = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    # the first lies nearest to another vendor's caption, which does not count
    assert table.right(images, [0, 1, 2]).tolist() == [True, False, True]
    assert table.places(["b", " a "]) == [1, 0] and table.places(["b", "d"]) is None


def test_the_tower_learns_to_tell_captions_apart() -> None:
    torch.manual_seed(0)
    sentences = F.normalize(torch.ones(6, 384) + 0.2 * torch.randn(6, 384), dim=1)
    tower = NamingTower(sentences.mean(dim=0), sentences.std(dim=0))
    images, which = torch.randn(6, 3, 64, 64), torch.arange(6)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-3)
    for _ in range(12):
        loss = choice_terms(tower.image(images), tower.texts(sentences), tower.log_scale, which)["choice"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    vectors = F.normalize(tower.texts(sentences), dim=1).detach()
    assert vectors.shape == (6, DIM)
    table = CaptionTable(list("abcdef"), list("abcdef"), ["noto"] * 6, vectors)
    assert table.right(tower.image(images).detach(), list(range(6))).all()


def test_the_judge_reads_back_as_many_captions_as_the_world_has(tmp_path: Path) -> None:
    captions = [
        f"a woman in motorized wheelchair with medium-dark skin tone {i}, in the style of Fluent Flat"
        for i in range(16_000)
    ]
    table = CaptionTable(
        captions, captions, ["noto"] * len(captions), torch.eye(DIM).repeat(63, 1)[: len(captions)]
    )
    path = write_naming(tmp_path / FILE, NamingTower(), table)
    tower, found = load_naming(tmp_path)
    assert (found.captions, found.vendors) == (captions, table.vendors)
    assert torch.allclose(found.vectors, table.vectors)
    assert not tower.training
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="not the judge's file"):
        load_naming(tmp_path)
