"""Files and folders are there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sagediff.errors import OutputError
from sagediff.files.atomic import is_leftover, sweep, write_bytes, write_json_lines, write_text, writing


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
    (tmp_path / "folder.partial").mkdir()
    (tmp_path / "folder.partial" / "half").write_text("half")
    assert [path.name for path in sorted(tmp_path.iterdir()) if is_leftover(path)] == [
        "folder.partial", killed.name,
    ]  # fmt: skip
    sweep(tmp_path, "killed")
    assert names(tmp_path) == ["file", "folder.partial", "other"]
    sweep(tmp_path)
    assert names(tmp_path) == ["file", "other"]
