"""Planning at scale: groups are valid cliques, nearly as few as the exact way finds, and a killed run goes on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sagediff.cli import main
from sagediff.errors import InputError
from sagediff.plan.compatibility import copy_numbers
from sagediff.plan.grouping import group_prompts
from sagediff.prompts.embeddings import TextEncoder
from sagediff.prompts.image_list import prompt_texts
from sagediff.scale.cover import CoverOptions, group_on_disk
from sagediff.scale.disk_groups import GROUPS, groups_at_scale, load_groups, save_groups
from sagediff.scale.disk_vectors import DATA, STATE, DiskVectors, embed_to_disk
from sagediff.scale.partition import cut_cells

Floats = npt.NDArray[np.float32]


def clustered(seed: int, count: int, dim: int = 48) -> Floats:
    """Unit rows: four in ten alone, the others in clusters of about five."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count // 8, dim))
    rows = rng.normal(size=(count, dim))
    near = rng.random(count) < 0.6
    rows[near] = centres[rng.integers(len(centres), size=count)][near] + 0.45 * rows[near]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def encoder_of(rows: Floats) -> TextEncoder:
    """Texts are row numbers."""
    return TextEncoder(lambda texts: rows[[int(text) for text in texts]], "rows")


def on_disk(rows: Floats, folder: Path) -> DiskVectors:
    return embed_to_disk([str(i) for i in range(len(rows))], encoder_of(rows), folder, batch_size=100)


def check(rows: Floats, groups: list[list[int]], threshold: float, size: int) -> None:
    assert sorted(i for group in groups for i in group) == list(range(len(rows)))
    for group in groups:
        assert len(group) <= size and group == sorted(group)
        assert (rows[group] @ rows[group].T).min() >= threshold - 2e-6
    assert groups == sorted(groups)


@pytest.mark.parametrize("seed, threshold, size", [(0, 0.8, 8), (1, 0.7, 4), (2, 0.9, 8), (3, 0.1, 8)])
def test_groups_are_cliques_of_the_exact_vectors_and_few(
    tmp_path: Path, seed: int, threshold: float, size: int
) -> None:
    rows = clustered(seed, 3000)
    groups = group_on_disk(
        on_disk(rows, tmp_path), np.arange(3000), CoverOptions(threshold, size, cell_size=300)
    )
    check(rows, groups, threshold, size)
    # measured at ten cells, over five seeds: at most 2.1 % more
    assert len(groups) <= 1.05 * len(group_prompts(rows, threshold, size))


def test_a_look_across_borders_never_adds_groups(tmp_path: Path) -> None:
    vectors = on_disk(clustered(4, 2000), tmp_path)
    counts = [
        len(group_on_disk(vectors, np.arange(2000), CoverOptions(0.75, 8, cell_size=150, passes=passes)))
        for passes in (0, 1, 2)
    ]
    assert counts[0] > counts[1] >= counts[2]


def test_processes_change_no_group(tmp_path: Path) -> None:
    vectors = on_disk(clustered(5, 1200), tmp_path)
    one, two = (
        group_on_disk(vectors, np.arange(1200), CoverOptions(0.8, 8, cell_size=200, jobs=jobs))
        for jobs in (1, 2)
    )
    assert one == two


def test_equal_prompts_fill_groups_whatever_the_cells(tmp_path: Path) -> None:
    rows = clustered(6, 400)
    prompts = [str(i) for i in range(400)] + ["7"] * 50
    groups = groups_at_scale(prompts, encoder_of(rows), tmp_path, CoverOptions(0.9, 8, cell_size=50))
    check(rows[[int(text) for text in prompts]], groups, 0.9, 8)
    sevens = {7, *range(400, 450)}
    assert sum(set(group) <= sevens for group in groups) >= 51 // 8


def test_copies_are_in_different_groups_if_they_must(tmp_path: Path) -> None:
    rows = clustered(6, 120)
    prompts = [str(i) for i in range(120)] + ["7"] * 9 + [str(i) for i in range(60)]
    encoder, options = encoder_of(rows), CoverOptions(0.9, 8, cell_size=50)
    copies = copy_numbers(prompts)
    groups = groups_at_scale(prompts, encoder, tmp_path, options, copies=copies)
    check(rows[[int(text) for text in prompts]], groups, 0.9, 8)
    assert all(len({copies[i] for i in group}) == 1 for group in groups)
    assert all(len({prompts[i] for i in group}) == len(group) for group in groups)
    # the first copies are grouped as if there were no others, and the second ones as the first
    first = groups_at_scale(prompts[:120], encoder, tmp_path / "first", options)
    assert [group for group in groups if copies[group[0]] == 0] == first
    second = [{prompts[i] for i in group} for group in groups if copies[group[0]] == 1]
    assert all(any(names <= {str(i) for i in group} for group in first) for names in second)
    assert groups_at_scale(prompts, encoder, tmp_path, options, copies=copies) == groups
    assert (
        groups_at_scale(prompts, encoder, tmp_path, options) != groups
    )  # the folder knows which were asked for


def test_cells_hold_every_row_once_even_if_all_are_alike(tmp_path: Path) -> None:
    for name, rows in (("apart", clustered(7, 1000)), ("alike", np.ones((1000, 4), np.float32))):
        cells = cut_cells(on_disk(rows, tmp_path / name), np.arange(1000), 64)
        assert max(map(len, cells)) <= 64
        assert sorted(np.concatenate(cells).tolist()) == list(range(1000))


# -- the folder


class Killed(Exception):
    pass


def test_a_killed_embedding_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagediff.scale.disk_vectors.WINDOW", 20)
    rows = clustered(8, 100)
    texts = [str(i) for i in range(100)]
    seen: list[str] = []

    def failing(batch: list[str]) -> Any:
        if len(seen) >= 50:
            raise Killed
        seen.extend(batch)
        return rows[[int(text) for text in batch]]

    with pytest.raises(Killed):
        embed_to_disk(texts, TextEncoder(failing, "rows"), tmp_path / "a", batch_size=10)
    asked: list[str] = []

    def counting(batch: list[str]) -> Any:
        asked.extend(batch)
        return rows[[int(text) for text in batch]]

    resumed = embed_to_disk(texts, TextEncoder(counting, "rows"), tmp_path / "a", batch_size=10)
    assert asked == texts[40:]  # the fifth batch was written, but not yet noted
    whole = embed_to_disk(texts, encoder_of(rows), tmp_path / "b", batch_size=10)
    assert (tmp_path / "a" / DATA).read_bytes() == (tmp_path / "b" / DATA).read_bytes()
    assert np.abs(resumed.take(np.arange(100)) - rows).max() < 1e-3
    assert np.linalg.norm(whole.take(np.arange(100)) - rows, axis=1).max() <= whole.rounding + 1e-6


def test_texts_that_the_encoder_reads_alike_are_encoded_once(tmp_path: Path) -> None:
    """An encoder that cuts texts after two letters."""
    texts = [f"{a}{b}{c}" for a in "ab" for b in "cd" for c in "efgh"]
    asked: list[str] = []

    def encode(batch: list[str]) -> Floats:
        asked.extend(batch)
        return np.array([[ord(text[0]), ord(text[1]) ** 2] for text in batch], np.float32)

    def reads(batch: list[str]) -> npt.NDArray[np.int64]:
        return np.array([[ord(text[0]), ord(text[1])] for text in batch])

    once = embed_to_disk(texts, TextEncoder(encode, "two letters", reads), tmp_path / "once", batch_size=3)
    assert len(asked) == 4
    each = embed_to_disk(texts, TextEncoder(encode, "two letters"), tmp_path / "each", batch_size=3)
    assert np.array_equal(once.take(np.arange(16)), each.take(np.arange(16)))


def test_a_folder_of_other_prompts_is_refused(tmp_path: Path) -> None:
    rows = clustered(9, 20)
    on_disk(rows, tmp_path)
    with pytest.raises(InputError, match="count, texts differ"):
        embed_to_disk(["1", "2"], encoder_of(rows), tmp_path)
    with pytest.raises(InputError, match="encoder differ"):
        embed_to_disk([str(i) for i in range(20)], TextEncoder(len, "other"), tmp_path)
    (tmp_path / STATE).write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="was not written by sagediff"):
        on_disk(rows, tmp_path)


def test_groups_are_taken_over_only_for_the_same_choice(tmp_path: Path) -> None:
    rows = clustered(10, 200)
    texts = [str(i) for i in range(200)]
    first = groups_at_scale(texts, encoder_of(rows), tmp_path, CoverOptions(0.8, 8))
    stamp = (tmp_path / GROUPS).stat().st_mtime_ns
    assert groups_at_scale(texts, encoder_of(rows), tmp_path, CoverOptions(0.8, 8, jobs=2)) == first
    assert (tmp_path / GROUPS).stat().st_mtime_ns == stamp
    assert groups_at_scale(texts, encoder_of(rows), tmp_path, CoverOptions(0.8, 1)) == [
        [i] for i in range(200)
    ]


# -- the command


PROMPTS = [
    f"a {size} {thing} at the top on a red background"
    for size in ("large", "small")
    for thing in ("cat", "car")
]


def test_plan_in_a_folder_says_what_plan_in_memory_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    assert prompt_texts(file) == PROMPTS
    assert main(["plan", "--prompts", str(file), "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)
    command = ["plan", "--prompts", str(file), "--json", "--work", str(tmp_path / "work"), "--jobs", "1"]
    assert main(command) == 0
    disk = json.loads(capsys.readouterr().out)
    assert Path(disk.pop("groups_file")).is_file()
    assert disk == {key: memory[key] for key in disk}
    file.write_bytes(gzip.compress(b'{"prompt": "another"}'))
    assert main(command) == 2
    assert "other prompts" in capsys.readouterr().err


def test_generate_in_a_folder_makes_the_images_of_generate_in_memory(
    small_model: Path, tmp_path: Path
) -> None:
    common = ["generate", *PROMPTS, "--model", str(small_model), "--steps", "1", "--out"]
    assert main([*common, str(tmp_path / "memory")]) == 0
    assert main([*common, str(tmp_path / "disk"), "--work", str(tmp_path / "work"), "--jobs", "1"]) == 0
    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / name / "images").iterdir()}
        for name in ("memory", "disk")
    )
    assert one == two and len(one) == len(PROMPTS)


@pytest.mark.parametrize(
    "changed",
    [
        {"done": "20"}, {"done": -1}, {"done": True}, {"dim": 2.5}, {"dim": None}, {"rounding": "small"},
        {"rounding": -1}, {"rounding": [0]}, {"done": 10**12},
    ],
)  # fmt: skip
def test_vectors_whose_state_is_damaged_are_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    rows = clustered(9, 20)
    on_disk(rows, tmp_path)
    state = json.loads((tmp_path / STATE).read_text(encoding="utf-8"))
    (tmp_path / STATE).write_text(json.dumps(state | changed), encoding="utf-8")
    with pytest.raises(InputError, match="remove"):
        on_disk(rows, tmp_path)


def test_groups_that_are_not_whole_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "groups.npz"
    save_groups(path, "key", [[0, 2], [1]])
    assert load_groups(path, "key") == [[0, 2], [1]]
    content = path.read_bytes()
    for damaged in (
        b"",
        content[:-30],
        content[:40],
        b"PK\x03\x04" + content[30:],
        b"\x93NUMPY" + b"\xff" * 40,
    ):
        path.write_bytes(damaged)
        assert load_groups(path, "key") is None
    for members, ends in (
        ([0, 0, 1], [2, 3]),
        ([0, 2, 1], [2, 5]),
        ([0, 2, 1], [3, 2]),
        ([0, 2], [2, 2]),
        ([0.0], [1]),
    ):
        np.savez(path, key=np.array("key"), members=np.array(members), ends=np.array(ends))
        assert load_groups(path, "key") is None
