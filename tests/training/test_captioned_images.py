"""Training data and batches: what is wrong is named before anything runs; batches are drawn the same every time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sagediff.errors import InputError
from sagediff.training.batches import GroupSchedule
from sagediff.training.captioned_images import load_images


def imagefolder(folder: Path, records: list[Any], images: int = 3) -> Path:
    folder.mkdir()
    for number in range(images):
        shade = np.full((20, 30, 3), 40 * number, np.uint8)
        Image.fromarray(shade).save(folder / f"{number}.png")
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


GOOD = [{"file_name": f"{n}.png", "text": f"caption {n}"} for n in range(3)]


def test_images_come_with_their_captions(tmp_path: Path) -> None:
    data = load_images(str(imagefolder(tmp_path / "data", [GOOD[2], GOOD[0]])))
    assert data.captions == ["caption 2", "caption 0"]
    rows = data.images([0, 1], (16, 16))
    assert rows.shape == (2, 3, 16, 16)
    torch.testing.assert_close(rows[0], torch.full((3, 16, 16), 80 / 127.5 - 1))


@pytest.mark.parametrize(
    "records, words",
    [
        ([GOOD[0], {"file_name": "missing.png", "text": "x"}], r"line 2.*missing\.png"),
        ([GOOD[0], {"file_name": "1.png", "text": "  "}], "line 2: no caption"),
        ([{"file_name": "1.png"}], "line 1: no caption"),
        ([{"text": "x"}], "line 1: no such image"),
        (["{"], "line 1: not JSON"),
        ([], "names no images"),
    ],
)
def test_bad_metadata_is_named(tmp_path: Path, records: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_images(str(imagefolder(tmp_path / "data", records)))


def test_folders_and_names_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        load_images(str(tmp_path))
    with pytest.raises(InputError, match="no such data"):
        load_images(str(tmp_path / "nothing"))


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    folder = imagefolder(tmp_path / "data", GOOD)
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    with pytest.raises(InputError, match=r"1\.png"):
        load_images(str(folder)).images([0, 1], (16, 16))


def schedule(batch_size: int = 8, **options: Any) -> GroupSchedule:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(10, 6))[rng.integers(10, size=60)] + 0.3 * rng.normal(size=(60, 6))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    images = [[2 * i, 2 * i + 1] for i in range(60)]
    settings = {"threshold": 0.6, "group_size": (1, 5), "pool_size": 40, "seed": 3} | options
    return GroupSchedule(vectors, images, batch_size=batch_size, **settings)


def test_batches_are_cliques_of_distinct_captions_and_full() -> None:
    plan = schedule()
    sizes: set[int] = set()
    for number in range(20):
        groups = plan.batch(number)
        members = [i // 2 for group in groups for i in group]
        assert len(members) == len(set(members)) == 8
        for group in groups:
            rows = plan.vectors[[i // 2 for i in group]]
            assert (rows @ rows.T).min() >= 0.6 - 1e-5
            sizes.add(len(group))
    assert max(sizes) <= 5 and min(sizes) == 1 and len(sizes) > 2


def test_a_batch_does_not_depend_on_those_before_it() -> None:
    one, two = schedule(), schedule()
    ahead = [one.batch(number) for number in range(12)]
    assert [two.batch(number) for number in reversed(range(12))] == ahead[::-1]
    assert schedule(seed=4).batch(0) != ahead[0]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_a_caption_may_hold_any_separator_but_a_line_end(tmp_path: Path, mark: str) -> None:
    record = json.dumps({"file_name": "1.png", "text": f"a cat{mark}second part"}, ensure_ascii=False)
    data = load_images(str(imagefolder(tmp_path / "data", [record])))
    assert data.captions == [f"a cat{mark}second part"]


def test_an_image_may_not_lie_outside_of_the_folder(tmp_path: Path) -> None:
    other = imagefolder(tmp_path / "other", GOOD)
    folder = imagefolder(tmp_path / "data", GOOD)
    (folder / "out.png").symlink_to(other / "1.png")
    (folder / "away").symlink_to(other)
    (folder / "in.png").symlink_to(folder / "1.png")
    os.mkfifo(folder / "pipe.png")
    for name, words in (
        (str(other / "1.png"), "leaves the folder"),
        ("../other/1.png", "leaves the folder"),
        ("../data/1.png", "leaves the folder"),
        ("out.png", "leaves the folder by a link"),
        ("away/1.png", "leaves the folder by a link"),
        ("pipe.png", "no regular file"),
        (".", "no regular file"),
        ("", "no such image"),
        ("x" * 5000 + ".png", "File name too long"),
        ("nul\0.png", "null"),
    ):
        lines = [json.dumps(GOOD[0]), json.dumps({"file_name": name, "text": "x"})]
        (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
        with pytest.raises(InputError, match=f"line 2: .*{words}") as raised:
            load_images(str(folder))
        assert len(str(raised.value)) < 600
    inside = json.dumps({"file_name": "in.png", "text": "x"})
    (folder / "metadata.jsonl").write_text(inside, encoding="utf-8")
    assert load_images(str(folder)).captions == ["x"]


@pytest.mark.parametrize(
    "line, words",
    [
        (r'{"file_name": "1.png", "text": "a \ud83d"}', "line 1: half of a surrogate pair"),
        pytest.param("[" * 100_000, "line 1: nested", id="nested"),
        ('{"file_name": ["1.png"], "text": "x"}', "line 1: no such image"),
        ('{"file_name": "1.png", "text": "a\x00b"}', "line 1: a NUL character"),
        (r'{"file_name": "1.png", "text": "a\u0000b"}', "line 1: the caption holds a NUL"),
        pytest.param('{"file_name": "1.png", "text": "' + "a" * (2 << 20), "line 1: longer than", id="long"),
    ],
)
def test_metadata_out_of_bounds_is_named(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_images(str(imagefolder(tmp_path / "data", [line])))


@pytest.mark.parametrize("name", ["nodata", "no/such/data", "x" * 5000, "nul\0"])
def test_a_folder_that_is_not_there_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(InputError, match=r"no such data|cannot read"):
        load_images(name)
