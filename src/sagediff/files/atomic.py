"""Files and folders that are written whole or not at all: under a temporary name beside the target, then renamed.

A killed process leaves at most a file under a temporary name, which `sweep` removes. What stands under a final name was
on the disk before it got that name, so a power cut leaves no file without its content; it may take back the names of
the last seconds (`sync_folder` says which are safe). No other module renames files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sagediff.errors import InputError, OutputError

_TEMPORARY = re.compile(r".+\.[0-9a-f]{12}\.partial", re.DOTALL)  # other programs have files named *.partial


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A path beside `target` to make a file or a folder at, which then takes the target's place.

    No other process uses that path. If the block raises, the target stays as it was. The target's folder must exist.

    Raises:
        OutputError: the disk refused.
    """
    partial = _temporary(target)
    with output_errors(target):
        try:
            yield partial
            _sync(partial)
            if partial.is_dir() and target.is_dir() and not target.is_symlink():
                old = _temporary(target)  # a folder cannot be renamed onto one that is not empty
                os.replace(target, old)
                os.replace(partial, target)
                _remove(old)
            else:
                os.replace(partial, target)
        except (Exception, KeyboardInterrupt):
            _remove(partial)
            raise


def write_bytes(target: Path, data: bytes) -> None:
    """Raises OutputError if the disk refuses; the target is then as it was."""
    with writing(target) as partial:
        partial.write_bytes(data)


def write_text(target: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    with writing(target) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json_lines(target: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """As `write_text`, one JSON object per line; they are gone through once, and never in memory together."""
    with writing(target) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Return once the names in a folder are on the disk: to be called before what they replace is removed.

    Raises:
        OutputError: the disk refused.
    """
    if os.name == "posix":  # elsewhere a folder cannot be opened
        with output_errors(folder):
            _sync_file(folder)


def sweep(folder: Path, prefix: str = "") -> None:
    """Remove temporary names that killed runs left in a folder, of targets whose names begin with `prefix`.

    Nobody else may be writing those targets: a run that sweeps has claimed them (`claim`). Files of other programs are
    left alone, whatever they are called.
    """
    for leftover in list(folder.iterdir()) if folder.is_dir() else ():
        if leftover.name.startswith(prefix) and is_leftover(leftover):
            _remove(leftover)


def is_leftover(path: Path) -> bool:
    """Whether the name is a temporary one of ours, left by a killed run."""
    return _TEMPORARY.fullmatch(path.name) is not None


@contextmanager
def output_errors(target: Path) -> Iterator[Path]:
    """Turn what a disk's refusal raises into an OutputError that names `target`, which is also given back."""
    try:
        yield target
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot write {target}: {reason}; what was finished before is kept") from error


@contextmanager
def at_work() -> Iterator[None]:
    """Inside, something has been written already: what cannot go on is a failure at work, not a wrong input.

    Raises:
        OutputError: instead of an InputError.
    """
    try:
        yield
    except InputError as error:
        raise OutputError(f"{error}; what was finished is kept") from error


def _temporary(target: Path) -> Path:
    return target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.partial")


def _sync(path: Path) -> None:
    """Return once a file, or a folder with all that is in it, is on the disk."""
    if path.is_dir():
        for each in path.iterdir():
            _sync(each)
        sync_folder(path)
    else:
        _sync_file(path)


def _sync_file(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
