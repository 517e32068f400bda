"""What a run writes to is its own, from the first moment to the last, and a kill lets it go."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import filelock
import pytest

from sagediff.errors import InputError, OutputError
from sagediff.files.claim import claimed_file, claimed_output, is_vacant


def everything(path: Path) -> set[str]:
    return {found.relative_to(path).as_posix() for found in path.rglob("*")}


def test_a_folder_is_one_runs_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with claimed_output(out):
        assert is_vacant(out)
        with (
            pytest.raises(InputError, match=r"--out .*out is being written by another run"),
            claimed_output(out),
        ):
            pass
        (tmp_path / "link").symlink_to(out)
        with pytest.raises(InputError, match="another run"), claimed_output(tmp_path / "link"):
            pass
        with claimed_output(tmp_path / "other"):  # whose own folder is nobody else's
            (out / "image").touch()
    assert everything(tmp_path) == {"deep", "deep/out", "deep/out/image", "link"}
    with claimed_output(out):
        assert not is_vacant(out)


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "deep/deeper"):
        with pytest.raises(InputError, match="no such model"), claimed_output(tmp_path / name):
            raise InputError("no such model")
    assert everything(tmp_path) == {"there"}


def test_a_file_is_one_runs_at_a_time_and_no_folder_comes_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    with claimed_file(file):
        for other in (claimed_file(file), claimed_output(file)):
            with pytest.raises(InputError, match="another run"), other:
                pass
        assert not file.exists()
        with claimed_file(tmp_path / "policy.json2"):
            file.touch()
    assert everything(tmp_path) == {"policy.json"}
    out = tmp_path / "out"
    with claimed_output(out), pytest.raises(InputError, match="is a folder"), claimed_file(out):
        pass
    assert everything(tmp_path) == {"policy.json"}
    (tmp_path / ".out.sagediff.lock").touch()  # of a run that was killed
    with claimed_output(tmp_path / "out"):
        pass


HOLD = (
    "import sys, time; from pathlib import Path; from sagediff.files.claim import claimed_{kind} as claimed\n"
)
HOLD += "with claimed(Path(sys.argv[1])): print(flush=True); time.sleep(60)"


@pytest.mark.parametrize("kind", ["output", "file"])
def test_a_kill_lets_go(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    again: AbstractContextManager[None] = (claimed_output if kind == "output" else claimed_file)(place)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD.format(kind=kind), str(place)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(InputError, match="another run"), claimed_output(place):
            pass
        holder.send_signal(signal.SIGKILL)
    assert [path for path in tmp_path.rglob("*") if path.name.endswith(".sagediff.lock")]
    if kind == "output":
        assert is_vacant(place)
    with again:
        pass
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".sagediff.lock")]


def test_what_cannot_be_a_folder_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, error, words in (
        (tmp_path / "file", InputError, "is a file, not a folder"),
        (tmp_path / "file" / "below", OutputError, "cannot write"),
        (tmp_path / ("n" * 5000), InputError, "too long"),
        (tmp_path / "a\0b", InputError, "null"),
    ):
        with pytest.raises(error, match=words) as said, claimed_output(place):
            pass
        assert len(str(said.value)) < 400
    with pytest.raises(InputError, match="there is no folder"), claimed_file(tmp_path / "no" / "policy.json"):
        pass
    with pytest.raises(InputError, match="too long"), claimed_file(tmp_path / ("n" * 5000)):
        pass
    assert everything(tmp_path) == {"file"}
    with claimed_output(tmp_path / ("n" * 250)):  # whose lock beside it would have too long a name
        pass


def test_where_there_are_no_locks_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = [errno.ENOLCK, errno.EOPNOTSUPP, errno.EACCES]

    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(code := codes.pop(0), os.strerror(code))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    for _ in range(2):
        with claimed_output(tmp_path / "out"):
            assert "a file system without locks" in capsys.readouterr().err
    with pytest.raises(OutputError, match="cannot write"), claimed_output(tmp_path / "out"):
        pass
