"""Folders of which each is used by one process at a time."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any


def claimed_folder(root: Path) -> Path:
    """A folder below `root` that no other process uses, by a lock held until this one ends.

    Replicas come and go, and a folder of trajectories is used by one cache at a time.
    """
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    number = 0
    while True:
        lock = FileLock(root / f"replica-{number}.lock")
        with suppress(Timeout):
            lock.acquire(blocking=False)
            _CLAIMED.append(lock)
            return root / f"replica-{number}"
        number += 1


_CLAIMED: list[Any] = []  # a lock that is collected is let go
