"""A cache's folder may hold anything: what is no whole entry is skipped with a warning, and stays where it is."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_serving_cache import BYTES, KEY, direction, trajectory

from sagediff.errors import InputError
from sagediff.files.tensor_digest import tensors_digest
from sagediff.sampling.trajectory import Trajectory
from sagediff.serving.engine.cache_files import entry_name, entry_path, read_entry
from sagediff.serving.engine.trajectory_cache import TrajectoryCache

ROOM = 10 * BYTES
Tensors = dict[str, torch.Tensor]


def opened(path: Path) -> tuple[Tensors, dict[str, str]]:
    with safe_open(str(path), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def rewritten(path: Path, change: Callable[[Tensors, dict[str, Any], dict[str, Any]], None]) -> Path:
    """The file with a change in its tensors, its record or its trajectory's; digest and name made to fit again."""
    tensors, metadata = opened(path)
    record, told = json.loads(metadata["entry"]), json.loads(metadata["trajectory"])
    change(tensors, record, told)
    if record.get("digest") != "wrong":
        record["digest"] = tensors_digest(sorted(tensors.items()))
    path.unlink()
    try:
        found = replace(KEY, **record["key"])
        path = entry_path(path.parent, entry_name(found, tensors["centroid"].numpy(), record["noise_seed"]))
    except (TypeError, KeyError, ValueError):
        pass  # no name fits
    entry = json.dumps(record).replace(json.dumps(LONG), "1" * 5000)
    save_file(tensors, str(path), metadata | {"entry": entry, "trajectory": json.dumps(told)})
    return path


def nested(tensors: Tensors, record: dict[str, Any], told: dict[str, Any]) -> None:
    found: Any = []
    for _ in range(200):
        found = [found]
    record["value"] = found


def put(name: str, value: Any) -> Callable[[Tensors, dict[str, Any], dict[str, Any]], None]:
    """Changes the tensor, or the part of the record, of the key or of the trajectory, of that name."""

    def change(tensors: Tensors, record: dict[str, Any], told: dict[str, Any]) -> None:
        where, _, what = name.partition(".")
        {"tensor": tensors, "record": record, "key": record["key"], "told": told}[where][what] = value

    return change


NAN, LONG = float("nan"), "written as a number of 5,000 digits"
CHANGES = {
    "key of a wrong type": put("key.num_steps", "8"),
    "key that is none": put("record.key", [1]),
    "key with a truth value": put("key.height", True),
    "key with another name": put("key.colour", "red"),
    "key out of range": put("key.branch_step", 9),
    "seed of a wrong type": put("record.noise_seed", "7"),
    "seed below 0": put("record.noise_seed", -1),
    "seed of 5,000 digits": put("record.noise_seed", LONG),
    "value of a wrong type": put("record.value", [1.0]),
    "value below 0": put("record.value", -1.0),
    "value that is not finite": put("record.value", NAN),
    "nested record": nested,
    "name too many": put("record.more", 1),
    "digest of others": put("record.digest", "wrong"),
    "calls of a wrong type": put("told.calls", [[1], 1]),
    "calls that are a text": put("told.calls", "11"),
    "calls of nothing": put("told.calls", []),
    "timesteps that are not finite": put("told.timesteps", [NAN, 5.0]),
    "rows that are a truth value": put("told.rows_per_prompt", True),
    "a shape of nothing": put("told.sample_shape", []),
    "start of texts": put("told.start", ["a"]),
    "an empty tensor": put("tensor.output.0000", torch.zeros(1, 0)),
    "a tensor without rows": put("tensor.output.0000", torch.zeros(0, 8)),
    "a tensor of no dimension": put("tensor.output.0000", torch.tensor(1.0)),
    "a tensor of another shape": put("tensor.output.0001", torch.zeros(1, 9)),
    "whole numbers": lambda tensors, record, told: tensors.update(
        {name: torch.zeros(1, 8, dtype=torch.int64) for name in ("output.0000", "output.0001")}
    ),
    "NaN": put("tensor.output.0001", torch.full((1, 8), NAN)),
    "infinity": put("tensor.output.0000", torch.full((1, 8), float("inf"))),
    "a centroid of length 0": put("tensor.centroid", torch.zeros(3)),
    "a centroid that matches everything": put("tensor.centroid", torch.full((3,), 100.0)),
    "a centroid of NaN": put("tensor.centroid", torch.full((3,), NAN)),
    "an empty centroid": put("tensor.centroid", torch.zeros(0)),
    "a centroid of two dimensions": put("tensor.centroid", torch.eye(3)),
    "a centroid in double": put("tensor.centroid", torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)),
}


def fill(folder: Path, count: int = 2) -> list[Path]:
    cache = TrajectoryCache(ROOM, folder)
    for seed in range(count):
        cache.put(KEY, direction(0.0), seed, trajectory(float(seed)), 1.0)
    return sorted(folder.glob("*.safetensors"))


def reread(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Names that another cache of the folder holds; there must be one warning, and it must come soon."""
    caplog.clear()
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        again = TrajectoryCache(ROOM, folder)
        found = [entry.name for entry in again.find(KEY, direction(0.0), -1.0)]
    assert time.monotonic() - start < 2
    assert len(caplog.records) == 1 and "is skipped" in caplog.text, caplog.text
    assert len(caplog.text) < 1000
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_entry_is_skipped_and_left_alone(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = fill(tmp_path)
    bad = rewritten(one, CHANGES[name])
    assert reread(tmp_path, caplog) == [two.stem]
    assert bad.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path: Path) -> None:
    """One bit of a number: no format notices."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def large(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 33)  # a hole: it takes no room


@pytest.mark.parametrize(
    "spoil", [cut, flipped, folder, pipe, dangling, large], ids=lambda each: each.__name__
)
def test_what_is_no_whole_file_is_skipped_too(
    spoil: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = fill(tmp_path)
    spoil(one)
    assert reread(tmp_path, caplog) == [two.stem]
    assert os.path.lexists(one)


def test_what_was_read_can_be_replaced_whatever_lies_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path, spoil in zip(fill(tmp_path, 3), (folder, cut, pipe), strict=True):
        spoil(path)
    cache = TrajectoryCache(ROOM, tmp_path)
    for seed in range(3):
        entry = cache.put(KEY, direction(0.0), seed, trajectory(float(seed)), 1.0)
        assert entry is not None
        cache.discard(entry)
        cache.put(KEY, direction(0.0), seed, trajectory(float(seed)), 1.0)
    assert len(cache.find(KEY, direction(0.0), -1.0)) == 3


def test_vectors_of_another_length_in_files_do_not_switch_a_key_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files cannot tell which length is right; the first prompt can, whichever file came first."""
    good = fill(tmp_path)
    for size, seed in ((2, 7), (5, 8)):
        other = TrajectoryCache(ROOM, tmp_path / "other")
        other.put(KEY, np.eye(size)[0], seed, trajectory(1.0), 1.0)
        for path in (tmp_path / "other").glob("*.safetensors"):
            path.rename(tmp_path / path.name)
    for ask in ("find", "put"):
        cache = TrajectoryCache(ROOM, tmp_path)
        assert len(cache) == 4
        caplog.clear()
        if ask == "put":
            assert cache.put(KEY, direction(0.3), 0, trajectory(2.0), 1.0) is not None
            continue
        found = cache.find(KEY, direction(0.0), -1.0)
        assert {entry.name for entry in found} == {path.stem for path in good}
        assert len([record for record in caplog.records if "centroid" in record.message]) == 2
        with pytest.raises(InputError):  # that is no file's fault
            cache.find(KEY, [1.0, 0.0], 0.5)


def test_numbers_that_are_not_finite_are_not_kept() -> None:
    cache = TrajectoryCache(ROOM)
    for bad in (NAN, float("inf")):
        with pytest.raises(InputError, match="not finite"):
            cache.put(KEY, direction(0.0), 0, trajectory(bad), 1.0)
    assert len(cache) == 0


def test_an_entry_is_read_as_it_was_written(tmp_path: Path) -> None:
    for path in fill(tmp_path, 3):
        entry = read_entry(path, ROOM)
        assert entry.name == path.stem and entry.trajectory.equals(Trajectory.load(path))
