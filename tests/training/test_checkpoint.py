"""Checkpoints are believed only when they are whole and of the run that goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sagediff.errors import InputError, OutputError
from sagediff.training import checkpoint

RECORD: dict[str, Any] = {"rank": 2, "data": "0123", "model": "4567", "range": (0.2, 0.4)}


def stepped(steps: int) -> tuple[dict[str, Tensor], torch.optim.Optimizer]:
    """Weights after some steps."""
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    for step in range(steps):
        weight.grad = torch.full_like(weight, step + 1.0)
        optimizer.step()
    return {"parameter.w": weight, "average.w": weight.detach() / 2}, optimizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (2, 4, 6):
        checkpoint.save(tmp_path / "checkpoints", step, *stepped(step), RECORD, limit=3)
    return tmp_path / "checkpoints"


def test_the_newest_is_put_back_as_it_was(folder: Path) -> None:
    found, broken = checkpoint.newest_whole(folder)
    assert found is not None and found.step == 6 and not broken
    found.check(RECORD)
    weights, optimizer = stepped(1)
    found.restore(weights, optimizer)
    wanted, other = stepped(6)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    theirs = checkpoint.optimizer_tensors(other)
    assert all(torch.equal(t, theirs[k]) for k, t in checkpoint.optimizer_tensors(optimizer).items())
    assert (
        checkpoint.newest_whole(folder / "none") == (None, []) and checkpoint.latest(folder / "none") is None
    )


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def _plain(file: Path) -> None:
    save_file(load_file(file), file)


def _of(step: int) -> Callable[[Path], object]:
    return lambda file: file.write_bytes((file.parents[1] / f"step-{step:07d}" / file.name).read_bytes())


HARMS: list[Callable[[Path], object]] = [
    lambda file: file.write_bytes(b""),
    lambda file: file.write_bytes(file.read_bytes()[:-4]),
    lambda file: file.write_bytes(b"\xff" * 100),
    lambda file: save_file({"a": torch.zeros(1)}, file, {"step": "6", "record": "{}", "digest": ""}),
    lambda file: save_file({"a": torch.zeros(1)}, file, {"step": "6" * 5000, "record": "[" * 5000}),
    _flip,
    _plain,
    _of(4),
    Path.unlink,
    lambda file: (file.unlink(), file.mkdir()),
]


@pytest.mark.parametrize("harm", HARMS)
def test_a_broken_one_is_named_and_the_one_before_it_is_taken(
    folder: Path, harm: Callable[[Path], object]
) -> None:
    harm(folder / "step-0000006" / "state.safetensors")
    found, broken = checkpoint.newest_whole(folder)
    assert found is not None and found.step == 4
    assert len(broken) == 1 and "step-0000006 is broken" in broken[0] and "\n" not in broken[0]
    checkpoint.save(folder, 6, *stepped(6), RECORD, limit=3)
    found, broken = checkpoint.newest_whole(folder)
    assert found is not None and found.step == 6 and not broken


def test_where_none_is_whole_that_is_said(folder: Path) -> None:
    for path in folder.iterdir():
        (path / "state.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"no checkpoint is whole: .*step-0000006 .*step-0000002"):
        checkpoint.newest_whole(folder)


def test_one_of_another_run_is_refused_and_what_differs_is_named(folder: Path) -> None:
    found, _ = checkpoint.newest_whole(folder)
    assert found is not None
    for record, named in (
        (RECORD | {"data": "89ab"}, "data"),
        (RECORD | {"model": "89ab", "rank": 4}, "model, rank"),
        ({"rank": 2}, "data, model, range"),
    ):
        with pytest.raises(InputError, match=rf"other settings \({named}\)"):
            found.check(record)
    weights, optimizer = stepped(1)
    for other in ({}, weights | {"parameter.v": torch.zeros(1)}, weights | {"average.w": torch.zeros(3, 2)}):
        with pytest.raises(InputError, match="other weights"):
            found.restore(other, optimizer)


def test_as_many_are_kept_as_are_wanted_and_none_of_a_time_to_come(folder: Path) -> None:
    checkpoint.save(folder, 5, *stepped(5), RECORD, limit=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-0000004", "step-0000005"]


def test_a_disk_that_refuses_leaves_what_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(OutputError, match="No space left on device"):
        checkpoint.save(folder, 8, *stepped(8), RECORD, limit=1)
    assert sorted(path.name for path in folder.iterdir()) == [f"step-000000{step}" for step in (2, 4, 6)]
