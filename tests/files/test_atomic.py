"""Files and folders are there whole or not at all."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sagediff.errors import InputError, OutputError
from sagediff.files.atomic import (
    at_work,
    is_leftover,
    sweep,
    write_bytes,
    write_json_lines,
    write_text,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_stands_under_its_name_alone(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"\0\xff")
    write_text(tmp_path / "b", "東京\n")
    write_json_lines(tmp_path / "c", [{"a": "東京"}, {"a": 2}])
    assert names(tmp_path) == ["a", "b", "c"]
    assert (tmp_path / "a").read_bytes() == b"\0\xff"
    assert (tmp_path / "b").read_bytes() == "東京\n".encode()
    lines = (tmp_path / "c").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"a": "東京"}, {"a": 2}] and "東京" in lines[0]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "file", "old")

    def fail(partial: Path) -> None:
        partial.write_text("half of the n")
        raise error

    with pytest.raises(error), writing(tmp_path / "file") as partial:
        fail(partial)
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with writing(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / name).write_text(name)
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["new"]


def test_a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    (tmp_path / "name" / "kept").write_text("kept")
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "name", "text")
    assert names(tmp_path) == ["name"] and names(tmp_path / "name") == ["kept"]


def test_two_who_write_one_file_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with writing(target) as mine, writing(target) as yours:
        assert mine != yours and mine.parent == yours.parent == tmp_path
        mine.write_text("mine")
        yours.write_text("yours")
    assert names(tmp_path) == ["file"] and target.read_text() == "mine"


def test_what_the_disk_refuses_names_the_file_and_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file/b: .*; what was finished before is kept"):
        write_text(tmp_path / "file" / "b", "text")


def test_leftovers_of_killed_runs_are_swept(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "whole")
    with writing(tmp_path / "other") as partial:
        killed = partial.with_name(partial.name.replace("other", "killed"))
        partial.write_text("")
    killed.write_text("half")
    folder = "folder.0123456789ab.partial"
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "half").write_text("half")
    assert [path.name for path in sorted(tmp_path.iterdir()) if is_leftover(path)] == [folder, killed.name]
    sweep(tmp_path, "killed")
    assert names(tmp_path) == ["file", folder, "other"]
    sweep(tmp_path)
    assert names(tmp_path) == ["file", "other"]
    sweep(tmp_path / "absent")


@pytest.mark.parametrize(
    "name", ["film.mkv.partial", "a.0123456789ABCDEF.partial", ".partial", "a.0123456789ab.part"]
)
def test_files_of_other_programs_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("somebody's download")
    sweep(tmp_path)
    assert names(tmp_path) == [name] and not is_leftover(tmp_path / name)


def test_a_name_is_given_to_what_is_on_the_disk_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the renaming finds the content: it was synced before, a folder's files one by one."""
    calls: list[str] = []
    synced, renamed = os.fsync, os.replace

    def fsync(opened: int) -> None:
        calls.append(Path(f"/proc/self/fd/{opened}").resolve().name)
        synced(opened)

    def replace(source: Path, target: Path) -> None:
        calls.append(f"rename to {target.name}")
        renamed(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "file", "text")
    assert [call.split(".")[0] for call in calls] == ["file", "rename to file"]
    calls.clear()
    with writing(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "weights").write_text("1")
    assert [call.split(".")[0] for call in calls] == ["weights", "folder", "rename to folder"]


def test_a_full_disk_and_what_safetensors_makes_of_it_are_failures_of_the_work(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, kept[1]))
        with pytest.raises(OutputError, match=r"cannot write .*file: .*what was finished before is kept"):
            write_bytes(tmp_path / "file", bytes(5000))
        with pytest.raises(OutputError, match="cannot write"), writing(tmp_path / "tensors") as partial:
            save_file({"a": np.zeros(5000, np.float32)}, partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


def test_once_something_is_written_a_wrong_input_is_a_failure_of_the_work() -> None:
    with pytest.raises(OutputError, match="that will not do; what was finished is kept"), at_work():
        raise InputError("that will not do")
