"""Files and folders that are written whole or not at all: under a temporary name beside the target, then renamed.

A killed process leaves at most a file under a temporary name, which `sweep` removes. No other module renames files.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sagediff.errors import OutputError

_SUFFIX = ".partial"


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A path beside `target` to make a file or a folder at, which then takes the target's place.

    No other process uses that path. If the block raises, the target stays as it was. The target's folder must exist.

    Raises:
        OutputError: the disk refused.
    """
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}{_SUFFIX}")
    with output_errors(target):
        try:
            yield partial
            if partial.is_dir() and target.is_dir():
                shutil.rmtree(target)  # a folder cannot be renamed onto one that is not empty
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
    """As `write_text`, one JSON object per line."""
    write_text(target, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def sweep(folder: Path, prefix: str = "") -> None:
    """Remove temporary names that killed runs left in a folder, of targets whose names begin with `prefix`.

    Nobody else may be writing those targets.
    """
    for leftover in folder.glob(f"{prefix}*{_SUFFIX}"):
        _remove(leftover)


def is_leftover(path: Path) -> bool:
    """Whether the name is a temporary one, left by a killed run."""
    return path.suffix == _SUFFIX


@contextmanager
def output_errors(target: Path) -> Iterator[Path]:
    """Turn an OSError into an OutputError that names `target`, which is also given back."""
    try:
        yield target
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; what was finished before is kept"
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
