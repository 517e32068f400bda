"""What a run writes to is its own: a lock on its folder or file, held from before anything heavy starts to its end.

The system lets a lock go when its process ends, however it ends, so that a kill never stops the run that goes on. The
lock is a file of no bytes, removed at the end; one that a kill left makes no folder "in use" (`is_vacant`).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sagediff.errors import InputError, OutputError
from sagediff.files.atomic import is_leftover, output_errors

_NAME = ".sagediff.lock"
_TRIES = 8  # another run may remove the empty folder that it made, between our making and our locking it
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextmanager
def claimed_output(folder: Path, option: str = "--out", mode: int = 0o777) -> Iterator[None]:
    """Inside, no other run of sagediff writes to the folder. It is made, and removed at the end if it is still empty.

    Args:
        option: what named the folder, for messages.
        mode: who may read it, where it is made.

    Raises:
        InputError: another run is writing there, or it is a file. OutputError: the disk refused.
    """
    words, beside = f"{option} {folder}", _lock_beside(folder)
    with _nameable(words, OSError):
        missing = _missing(folder)
    _refuse_held(beside, words)  # before a folder stands where that run is about to put its file
    lock = _locked_in(folder, words, mode)
    try:
        _refuse_held(beside, words)  # again: that run looks for a folder once it has its lock
        yield
    finally:
        _release(lock, folder / _NAME)
        for made in missing:
            with suppress(OSError):
                made.rmdir()


def _missing(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, innermost first."""
    found = []
    while not folder.exists():
        found.append(folder)
        folder = folder.parent
    return found


@contextmanager
def claimed_file(file: Path, option: str = "--out") -> Iterator[None]:
    """Inside, no other run of sagediff writes this file, or what it keeps beside it.

    Raises:
        InputError: another run is writing it, it is a folder, or the folder of it is not there.
        OutputError: the disk refused.
    """
    words, beside = f"{option} {file}", _lock_beside(file)
    with _nameable(words, OSError):
        if not file.parent.is_dir():
            raise InputError(f"{words}: there is no folder {file.parent}")
        lock = _locked(beside, words)
    try:
        if file.is_dir():
            raise InputError(f"{words} is a folder; name the file to write")
        yield
    finally:
        _release(lock, beside)


def is_vacant(folder: Path) -> bool:
    """Whether nothing is in the folder but what killed runs leave: locks, and files under temporary names."""
    return all(is_leftover(path) or path.name.endswith(_NAME) for path in folder.iterdir())


@contextmanager
def _nameable(words: str, *raised: type[Exception]) -> Iterator[None]:
    """Turn what a name that no file can have raises into an InputError."""
    try:
        yield
    except InputError:
        raise
    except raised as error:
        raise InputError(f"{words[:200]}: {getattr(error, 'strerror', None) or error}") from error


def _lock_beside(target: Path) -> Path:
    whole = target.absolute()
    return whole.with_name(f".{whole.name}{_NAME}") if whole.name else whole / f".{_NAME}"


def _locked_in(folder: Path, words: str, mode: int) -> Any:
    for _ in range(_TRIES):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{words} is a file, not a folder")
        with suppress(FileNotFoundError):
            with _nameable(words, ValueError), output_errors(folder):
                folder.mkdir(mode, parents=True, exist_ok=True)
            return _locked(folder / _NAME, words)
    raise OutputError(f"cannot write {folder}: it is removed as soon as it is made")


def _locked(path: Path, words: str) -> Any:
    """The lock; None on a file system that has none, which is said.

    Raises:
        FileNotFoundError: no such folder. OSError: the name is too long. InputError: somebody else has it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"{words} is being written by another run of sagediff; wait until it has ended, or choose another place"
        ) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            print(
                f"warning: {path.parent} is on a file system without locks; start no second run there",
                file=sys.stderr,
            )
            return None
        if error.errno == errno.ENAMETOOLONG:
            raise
        with output_errors(path.parent):
            raise
    return lock


def _refuse_held(path: Path, words: str) -> None:
    with suppress(OSError):  # nobody has a lock whose name is too long, or that is gone by now
        if path.is_file():
            _release(_locked(path, words), path)


def _release(lock: Any, path: Path) -> None:
    """Remove the lock's file while it is held, so that nobody else's is removed."""
    if lock is not None:
        with suppress(OSError):
            path.unlink()
        lock.release()
