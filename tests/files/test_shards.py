"""Shards: every image once, whatever the order and the kills, as webdataset readers expect them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sagediff.cli import main
from sagediff.errors import InputError, OutputError
from sagediff.files.image_formats import PNG
from sagediff.files.output_folder import OutputFolder
from sagediff.files.shards import ShardStore

parquet = pytest.importorskip(
    "pyarrow.parquet", reason="pyarrow is not installed: pip install 'sagediff[scale]'"
)

PROMPTS = [
    f"a large {thing} at the {place} on a red background"
    for thing in ("cat", "car")
    for place in ("top", "left")
]


def record(index: int) -> dict[str, Any]:
    return {"prompt": f"prompt {index}", "group": index // 2, "evaluations": 1.5}


def store(path: Path, count: int, size: int) -> ShardStore:
    folder = OutputFolder(path)
    folder.begin({}, {}, "{}")
    return ShardStore(folder, list(range(count)), size, record, texts)


def texts(index: int) -> dict[str, str]:
    return {"prompt": f"prompt {index}"}


@cache
def png(index: int) -> bytes:
    return PNG.encode(Image.new("RGB", (4, 4), (index, 0, 0)), texts(index))


def images(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for file in sorted(path.glob("shards/*.tar")):
        with tarfile.open(file) as tar:
            for name in tar.getnames():
                content = tar.extractfile(name)
                assert content is not None and name not in found
                found[name] = content.read()
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(11)), st.integers(1, 12), st.integers(0, 11))
def test_every_image_is_in_a_shard_once_whatever_the_order_and_the_kill(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], size: int, killed: int
) -> None:
    path = tmp_path_factory.mktemp("shards")
    first = store(path, 11, size)
    assert first.finished() == []
    for index in order[:killed]:
        first.save_image(index, png(index))
    again = store(path, 11, size)  # nothing of the first is used any more, as after a kill
    assert again.finished() == sorted(order[:killed])
    for index in order[killed:]:
        again.save_image(index, png(index))
    found = images(path)
    assert {name: data for name, data in found.items() if name.endswith("png")} == {
        f"{i:06d}.png": png(i) for i in range(11)
    }
    assert json.loads(found["000003.json"]) == record(3) | {"key": "000003", "bytes": len(png(3))}
    assert not list(path.glob("images/*"))
    assert sum(part["images"] for part in again.summary()) == 11
    rows = [row for i in range(len(again)) for row in parquet.read_table(again.parquet_path(i)).to_pylist()]
    assert [row["prompt"] for row in rows] == [f"prompt {i}" for i in range(11)]


def test_a_kill_between_the_shard_and_its_metadata_loses_nothing(tmp_path: Path) -> None:
    first = store(tmp_path, 4, 2)
    first.finished()
    first.save_image(0, png(0))
    first.save_image(1, png(1))
    first.parquet_path(0).unlink()  # as if it had not come so far
    for index in (0, 1):
        (tmp_path / "images" / f"{index:06d}.png").write_bytes(png(index))
    again = store(tmp_path, 4, 2)
    assert again.finished() == [0, 1]
    assert images(tmp_path)["000001.png"] == png(1) and not list(tmp_path.glob("images/*"))


def test_a_waiting_image_that_is_not_whole_is_neither_packed_nor_removed_as_if_it_were(
    tmp_path: Path,
) -> None:
    first = store(tmp_path, 4, 2)
    first.finished()
    for index in (0, 2):
        first.save_image(index, png(index))
    for index, harm in ((1, b""), (3, png(3)[:50])):
        (tmp_path / "images" / f"{index:06d}.png").write_bytes(harm)
    again = store(tmp_path, 4, 2)
    assert again.finished() == [0, 2] and not images(tmp_path)
    for index in (1, 3):
        again.save_image(index, png(index))
    assert {name: data for name, data in images(tmp_path).items() if name.endswith("png")} == {
        f"{i:06d}.png": png(i) for i in range(4)
    }
    broken = store(tmp_path / "other", 2, 2)
    broken.finished()
    broken.save_image(0, png(0))
    (tmp_path / "other" / "images" / "000000.png").write_bytes(b"")  # while the run goes on
    with pytest.raises(OutputError, match=r"000000\.png was damaged; --resume makes it again"):
        broken.save_image(1, png(1))
    assert store(tmp_path / "other", 2, 2).finished() == [1]


@pytest.mark.parametrize("name", ["000000.tar", "000000.parquet"])
@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-600]),
        lambda file: file.write_bytes(file.read_bytes()[:700]),
        lambda file: file.write_bytes(b"x" * 10_240),
        lambda file: file.unlink(),
        lambda file: file.symlink_to(file.rename(file.with_name("elsewhere"))),
        lambda file: file.write_bytes(file.with_stem("000001").read_bytes()),
    ],
)
def test_a_shard_that_is_not_whole_is_made_again(
    tmp_path: Path, name: str, harm: Callable[[Path], object]
) -> None:
    first = store(tmp_path, 4, 2)
    first.finished()
    for index in range(4):
        first.save_image(index, png(index))
    before = {file.name: file.read_bytes() for file in (tmp_path / "shards").iterdir()}
    harm(tmp_path / "shards" / name)
    again = store(tmp_path, 4, 2)
    assert again.finished() == [2, 3]
    for index in (0, 1):
        again.save_image(index, png(index))
    assert {name: (tmp_path / "shards" / name).read_bytes() for name in before} == before


def test_generate_in_shards_makes_the_images_that_it_makes_as_files(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["generate", *PROMPTS, "--model", str(small_model), "--steps", "1", "--wave-size", "1"]
    assert main([*common, "--out", str(tmp_path / "files"), "--shard-size", "4"]) == 0  # not beyond that size
    sharded = [*common, "--out", str(tmp_path / "shards"), "--shard-size", "3"]
    assert main(sharded) == 0
    report = json.loads((tmp_path / "shards" / "report.json").read_text(encoding="utf-8"))
    assert report["shards"] == 2 and report["images_made"] == 4
    files = {file.name: file.read_bytes() for file in (tmp_path / "files" / "images").iterdir()}
    found = images(tmp_path / "shards")
    assert {name: data for name, data in found.items() if name.endswith("png")} == files
    lines = (tmp_path / "shards" / "shards.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(json.loads(line)["images"] for line in lines) == 4
    assert sum(json.loads(line)["evaluations"] for line in lines) == pytest.approx(report["evaluations"])
    capsys.readouterr()
    assert main([*sharded, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["images_made"] == 0
    assert main([*sharded[:-1], "2", "--resume"]) == 2
    assert "other settings (shard_size)" in capsys.readouterr().err


def test_a_size_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        ShardStore(OutputFolder(tmp_path), [0], 0, record, texts)
