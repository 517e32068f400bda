"""Vectors on disk -> groups: exact grouping inside cells, then again across their borders.

Every group is a clique at the threshold, as `group_prompts` makes them, whatever the cells. Cells only cost groups that
a border cuts: groups that are not full are put into other cells with other borders and grouped again, and the result is
kept if it has fewer groups. Deterministic for any number of processes; the order of the prompts may change the groups.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from sagediff.errors import InputError, OutputError
from sagediff.plan.grouping import group_prompts
from sagediff.scale.disk_vectors import DiskVectors, Ints
from sagediff.scale.partition import cut_cells

Cover = list[list[int]]  # row numbers; a row repeats for each of its copies in the group
OnProgress = Callable[[str, int, int], None]
"""Called with the name of the stage, the number of items done and their total."""

CELL = 4096  # rows grouped exactly at once: 64 MiB of similarities
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class CoverOptions:
    """How vectors are grouped.

    Attributes:
        threshold: minimum cosine similarity of any two members of a group, before the vectors were rounded.
        max_group_size: most members of a group.
        cell_size: rows grouped exactly at once. Higher: fewer groups, longer.
        passes: regroupings across the borders of cells; 0 leaves the groups that borders cut.
        jobs: number of processes; changes no group.
    """

    threshold: float
    max_group_size: int
    cell_size: int = CELL
    passes: int = 2
    jobs: int = 1

    def __post_init__(self) -> None:
        group_prompts(np.zeros((0, 1)), self.threshold, self.max_group_size)  # refuses what cannot work
        for name, value, least in (
            ("cell_size", self.cell_size, 2),
            ("passes", self.passes, 0),
            ("jobs", self.jobs, 1),
        ):
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")


def group_on_disk(
    vectors: DiskVectors, inverse: Ints, options: CoverOptions, on_progress: OnProgress | None = None
) -> list[list[int]]:
    """Partition prompts into groups, as `group_prompts` does, in bounded memory.

    Args:
        inverse: (N,) row of each prompt; equal prompts have the same row.

    Returns:
        Groups of prompt numbers, every prompt once; each ascending, groups by their first prompt.

    Raises:
        InputError: an option out of range. OutputError: a process was killed.
    """
    on_progress = on_progress or (lambda stage, done, total: None)
    if not len(inverse):
        return []
    copies = np.bincount(inverse, minlength=vectors.count)
    size = options.max_group_size
    full = [
        [row] * size for row in np.flatnonzero(copies >= size).tolist() for _ in range(copies[row] // size)
    ]
    left = copies % size
    with _limited_threads(), _Cells(vectors, options) as run:
        on_progress("cutting cells", 0, 1)
        cells = cut_cells(vectors, np.flatnonzero(left), options.cell_size)
        tasks: list[Cover] = [[[row] * int(left[row]) for row in cell.tolist()] for cell in cells]
        cover = run.all(tasks, "grouping", on_progress)
        for number in range(1, options.passes + 1):
            cover = _regroup(vectors, cover, options, number, run, on_progress)
    return _numbered([*full, *cover], inverse)


def _regroup(
    vectors: DiskVectors,
    cover: Cover,
    options: CoverOptions,
    number: int,
    run: _Cells,
    on_progress: OnProgress,
) -> Cover:
    """Group those again that are not full, in cells with other borders."""
    kept: Cover = []
    by_first: defaultdict[int, Cover] = defaultdict(list)  # those that are not full
    for group in cover:
        (kept if len(group) >= options.max_group_size else by_first[group[0]]).append(group)
    firsts = np.array(sorted(by_first), dtype=np.int64)
    cells = cut_cells(vectors, firsts, max(2, options.cell_size // 2), seed=number)
    tasks = [[group for first in cell.tolist() for group in by_first[first]] for cell in cells]
    return kept + run.all(tasks, "regrouping across borders", on_progress)


def cover_cell(vectors: DiskVectors, groups: Cover, threshold: float, size: int) -> Cover:
    """Group the members of some groups again; the groups as they were unless that makes fewer."""
    members = np.array([row for group in groups for row in group], dtype=np.int64)
    rows = vectors.take(members)
    found = group_prompts(rows, min(1.0, threshold + 2 * vectors.rounding), size, orders=1)
    if len(found) >= len(groups):
        return groups
    return [sorted(members[group].tolist()) for group in found]


class _Cells:
    """Groups cells in child processes, with a bounded queue; results come in the order of the tasks."""

    def __init__(self, vectors: DiskVectors, options: CoverOptions) -> None:
        self._fixed = (vectors, options.threshold, options.max_group_size)
        self._jobs = options.jobs
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Cells:
        if self._jobs > 1:
            self._pool = ProcessPoolExecutor(self._jobs, multiprocessing.get_context("spawn"))
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def all(self, tasks: Sequence[Cover], stage: str, on_progress: OnProgress) -> Cover:
        total = sum(map(len, tasks))
        done, cover = 0, []
        on_progress(stage, 0, total)
        try:
            for task, found in zip(tasks, self._each(tasks), strict=True):
                cover += found
                done += len(task)
                on_progress(stage, done, total)
        except BrokenProcessPool as error:
            raise OutputError(
                "a grouping process was killed, most likely for lack of memory; use fewer processes or smaller cells"
            ) from error
        return cover

    def _each(self, tasks: Sequence[Cover]) -> Iterator[Cover]:
        vectors, threshold, size = self._fixed
        if self._pool is None:
            yield from (cover_cell(vectors, task, threshold, size) for task in tasks)
            return
        waiting: list[Future[Cover]] = []
        for task in tasks:
            waiting.append(self._pool.submit(cover_cell, vectors, task, threshold, size))
            if len(waiting) >= 4 * self._jobs:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


@contextmanager
def _limited_threads() -> Iterator[None]:
    """Child processes that start inside use one thread each, as cells already run in parallel."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _numbered(cover: Cover, inverse: Ints) -> list[list[int]]:
    """Groups of rows -> groups of prompt numbers; copies of a row are assigned in order."""
    order = np.argsort(inverse, kind="stable")
    following = np.concatenate([[0], np.cumsum(np.bincount(inverse))]).tolist()
    out = []
    for group in cover:
        members = []
        for row in group:
            members.append(int(order[following[row]]))
            following[row] += 1
        out.append(sorted(members))
    return sorted(out)
