"""What training reads: rows of the imagefolder, cached latents and caption states."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sagediff.builtin.emoji.batches import CachedBatches
from sagediff.builtin.emoji.cache import caption_of, choose_probe
from sagediff.builtin.emoji.checkpoint import write_tensors
from sagediff.builtin.emoji.images import Row, read_pixels, read_rows, to_signed
from sagediff.builtin.emoji.packages import Icon
from sagediff.builtin.emoji.render import draw, on_background, stands_out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = []
    for number, (name, split) in enumerate([("robot", "train"), ("cat", "held_out"), ("owl", "train")]):
        for background in ("white", "black"):
            file_name = f"{name}-{background}.png"
            Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / file_name)
            lines.append(
                {
                    "file_name": file_name, "text": name, "name": name, "base": name, "tones": [], "vendor": "noto",
                    "style": "Noto", "licence": "Apache-2.0", "keywords": [], "group": 0, "background": background,
                    "split": split,
                }
            )  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return tmp_path


def test_rows_are_chosen_by_split_vendor_and_background(folder: Path) -> None:
    assert len(read_rows(folder)) == 6
    assert [row.name for row in read_rows(folder, ["noto"], ["train"], backgrounds=1)] == ["robot", "owl"]
    assert read_rows(folder, ["twemoji"]) == []


def test_pixels_are_in_the_order_of_the_rows(folder: Path) -> None:
    pixels = read_pixels(folder, read_rows(folder, backgrounds=1))
    assert pixels.shape == (3, 3, 64, 64) and pixels[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert float(to_signed(pixels)[0, 1, 0, 0]) == -1


def test_the_probe_is_fixed_and_on_white(folder: Path) -> None:
    rows = read_rows(folder)
    chosen = choose_probe(rows, "train", 5)
    assert {row.name for row in chosen} == {"robot", "owl"} and chosen == choose_probe(rows, "train", 5)
    assert all(row.background == "white" for row in chosen)


def test_captions_of_an_image_differ_between_variants(folder: Path) -> None:
    row = read_rows(folder)[0]
    assert caption_of(row, 0) == caption_of(row, 0)
    assert len({caption_of(row, variant) for variant in range(20)}) > 5


def cached(folder: Path, rows: list[Row]) -> None:
    """Latents and states that tell the row (and 100 the empty caption)."""
    numbers = torch.arange(len(rows), dtype=torch.float32)
    write_tensors(
        folder / "latents.safetensors", {"latents": numbers.view(-1, 1, 1, 1).expand(-1, 2, 2, 2).half()}
    )
    states = np.append(numbers.numpy(), 100.0).astype(np.float16)
    np.save(folder / "captions-0.npy", np.broadcast_to(states[:, None, None], (len(states), 4, 3)).copy())
    np.save(folder / "captions-0.mask.npy", np.ones((len(states), 4), dtype=np.bool_))


def test_batches_pair_latents_with_their_captions_and_drop_some(folder: Path) -> None:
    rows = read_rows(folder, splits=["train"])
    cached(folder, rows)
    batch = CachedBatches(folder, rows).draw(400, np.random.default_rng(0))
    latents, states = batch.latents[:, 0, 0, 0], batch.text[:, 0, 0]
    dropped = states == 100
    assert torch.equal(latents[~dropped], states[~dropped])
    assert 0.05 < dropped.float().mean() < 0.16
    assert sorted(set(latents.tolist())) == [0, 1, 2, 3]


def test_a_cache_of_other_images_is_refused(folder: Path) -> None:
    rows = read_rows(folder, splits=["train"])
    cached(folder, rows)
    with pytest.raises(ValueError, match="run the cache stage again"):
        CachedBatches(folder, rows[:-1])


def test_icons_are_drawn_inside_a_margin_and_mirrored() -> None:
    body = '<rect width="5" height="10" fill="#f00"/>'
    drawing, mirrored = draw(Icon(body, 0, 0, 10, 10)), draw(Icon(body, 0, 0, 10, 10, flipped=True))
    assert drawing.shape == (64, 64, 4)
    assert drawing[:2].sum() == 0 and drawing[32, 4, 3] == 1 and drawing[32, 60, 3] == 0
    assert np.allclose(mirrored, drawing[:, ::-1], atol=0.02)
    image = on_background(drawing, "white")
    assert image[32, 10].tolist() == [255, 0, 0] and image[32, 60].tolist() == [255, 255, 255]
    assert stands_out(drawing, "black") and stands_out(drawing, "white")
