"""`benchmarks/hostile_files.py` in little: three hundred damaged files, each read or refused in one line, soon."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import hostile_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

KINDS = hostile_files.kinds()


def read(kind: hostile_files.Kind, data: bytes, folder: Path) -> str:
    """What comes of a file with these bytes."""
    file = folder / kind.name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    return hostile_files.outcome(kind, file)


@pytest.mark.parametrize("name", KINDS)
def test_whole_files_are_read(tmp_path: Path, name: str) -> None:
    assert read(KINDS[name], KINDS[name].good, tmp_path) == "read"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32))
def test_damaged_files_are_read_or_refused_in_one_line(name: str, seed: int) -> None:
    data = hostile_files.mutated(KINDS[name], random.Random(seed))
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        assert read(KINDS[name], data, Path(folder)) in ("read", "refused")
        assert time.process_time() - start < 2
