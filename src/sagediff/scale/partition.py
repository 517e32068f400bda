"""Vectors on disk -> cells of near ones, each small enough to be grouped exactly. Deterministic.

Spherical k-means on a sample, then every row goes to its nearest centre; cells that are still too large are cut again.
That costs rows x centres x dimensions, not rows x rows.
"""

from __future__ import annotations

import math

import numpy as np

from sagediff.scale.disk_vectors import DiskVectors, Floats, Ints

_MAX_CENTRES = 64  # of one cut
_SAMPLE = 256  # rows a centre that the centres are found from
_ROUNDS = 8  # of k-means
_BLOCK = 16_384  # rows held at once


def cut_cells(vectors: DiskVectors, rows: Ints, most: int, seed: int = 0) -> list[Ints]:
    """Partition `rows` into cells of at most `most`, near vectors in one.

    Args:
        rows: ascending numbers of rows.
        seed: another gives other borders.

    Returns:
        Cells, each ascending.
    """
    cells: list[Ints] = []
    stack = [rows]
    while stack:
        part = stack.pop()
        if len(part) <= most:
            cells += [part] if len(part) else []
            continue
        rng = np.random.default_rng([seed, len(part), int(part[0])])
        stack += reversed(_cut(vectors, part, most, rng))
    return cells


def _cut(vectors: DiskVectors, rows: Ints, most: int, rng: np.random.Generator) -> list[Ints]:
    count = min(_MAX_CENTRES, math.ceil(1.3 * len(rows) / most))  # a little more, for cells differ in size
    sample = vectors.take(np.sort(rng.choice(rows, min(len(rows), _SAMPLE * count), replace=False)))
    centres = _centres(sample, count, rng)
    labels = np.concatenate([
        np.argmax(vectors.take(rows[i : i + _BLOCK]) @ centres.T, axis=1) for i in range(0, len(rows), _BLOCK)
    ])  # fmt: skip
    order = np.argsort(labels, kind="stable")
    parts = np.split(rows[order], np.flatnonzero(np.diff(labels[order])) + 1)
    if max(map(len, parts)) > 0.95 * len(rows):  # nearly all are similar: no centres separate them
        return _slices(vectors, rows, most, sample)
    return parts


def _centres(sample: Floats, count: int, rng: np.random.Generator) -> Floats:
    """(count, D) directions; a centre with no rows nearest to it stays where it was."""
    centres = sample[np.sort(rng.choice(len(sample), count, replace=False))].copy()
    for _ in range(_ROUNDS):
        labels = np.argmax(sample @ centres.T, axis=1)
        order = np.argsort(labels, kind="stable")
        found, starts = np.unique(labels[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        usable = lengths[:, 0] > 0
        centres[found[usable]] = (sums / np.where(lengths > 0, lengths, 1))[usable]
    return centres


def _slices(vectors: DiskVectors, rows: Ints, most: int, sample: Floats) -> list[Ints]:
    """Slices along the direction in which the rows differ most."""
    spread = sample - sample.mean(0)
    direction = spread[np.argmax(np.linalg.norm(spread, axis=1))]
    for _ in range(_ROUNDS):
        direction = spread.T @ (spread @ direction)
        direction /= max(float(np.linalg.norm(direction)), 1e-12)
    along = np.concatenate(
        [vectors.take(rows[i : i + _BLOCK]) @ direction for i in range(0, len(rows), _BLOCK)]
    )
    order = rows[np.argsort(along, kind="stable")]
    return [np.sort(order[i : i + most]) for i in range(0, len(order), most)]
