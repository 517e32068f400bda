"""Embeddings to groups: few cliques above a cosine threshold, without an N x N matrix. Pure and deterministic.

Fewest cliques is NP-hard (clique cover), so this is greedy with a repair pass: prompts with the fewest
possible companions choose first, each group grows by the companion that keeps most others possible, then
small groups are dissolved into others where their members fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sagediff.errors import InputError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

TOLERANCE = 1e-6  # float32 products of equal unit vectors differ from 1 by this much
_TILE = 4096  # a tile of similarities is at most _TILE x _TILE float32: 64 MiB
_ORDERS = 8  # orders of choice there are
_MAX_FORWARD = 128  # strongest companions kept for each prompt: bounds memory, never validity


def group_prompts(
    embeddings: Any, threshold: float = 0.8, max_group_size: int = 8, orders: int | None = None
) -> list[list[int]]:
    """Partition prompts into groups whose members are pairwise at least `threshold` alike.

    Args:
        embeddings: (N, D) array or tensor; rows need not have unit length.
        threshold: least cosine between any two members, in [-1, 1]. Higher gives more, purer groups.
        max_group_size: most members of a group, at least 1.
        orders: orders of choice that are tried, 1 to 8, the best cover kept: time grows with them. None (default): all
            up to 3,000 distinct rows, beyond that one.

    Returns:
        Groups of prompt numbers, every prompt once; each group ascending, groups by their first prompt. The
        order of the rows does not change the partition, but for which of several equal rows goes where.

    Raises:
        InputError: a shape, threshold or size that cannot work, or a row that is zero or not finite.
    """
    vectors = _unit_rows(embeddings)
    if not (isinstance(threshold, int | float) and math.isfinite(threshold) and -1 <= threshold <= 1):
        raise InputError(f"threshold must lie in [-1, 1], got {threshold!r}")
    if isinstance(max_group_size, bool) or int(max_group_size) != max_group_size or max_group_size < 1:
        raise InputError(f"max_group_size must be a whole number of at least 1, got {max_group_size!r}")
    if orders is not None and not 1 <= orders <= _ORDERS:
        raise InputError(f"orders must lie in [1, {_ORDERS}] or be None, got {orders!r}")
    if not len(vectors):
        return []
    unique, inverse, copies = np.unique(vectors, axis=0, return_inverse=True, return_counts=True)
    cover = _Cover(unique, float(threshold), int(max_group_size), copies.astype(np.int64))
    tried = orders or (_ORDERS if len(unique) <= 3000 else 1)  # cheap enough to try more than one
    return _number(cover.solve(tried), inverse.reshape(-1), copies)


def _unit_rows(embeddings: Any) -> Floats:
    if hasattr(embeddings, "detach"):  # a torch tensor, without importing torch
        embeddings = embeddings.detach().cpu().float().numpy()
    array = np.asarray(embeddings)
    if array.ndim != 2:
        raise InputError(f"embeddings must have shape (N, D), got {array.shape}")
    if array.dtype.kind not in "fiu":
        raise InputError(f"embeddings must be numbers, got dtype {array.dtype}")
    array = array.astype(np.float32)
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(bad):
        raise InputError(
            f"embedding {bad[0]} is zero or not finite; a prompt without a direction cannot be grouped"
        )
    return np.asarray(array / lengths, dtype=np.float32)


class _Cover:
    """One clique cover being built over distinct vectors, each with a number of copies still to place."""

    def __init__(self, vectors: Floats, threshold: float, size: int, copies: Ints) -> None:
        self.vectors, self.size, self.left = vectors, size, copies.copy()
        self.least = threshold - TOLERANCE
        self.groups: list[dict[int, int]] = []  # vector -> copies
        for index in np.flatnonzero(self.left >= size):  # copies of one prompt fill groups of their own first
            full = int(self.left[index]) // size
            self.groups += [{int(index): size} for _ in range(full)]
            self.left[index] -= full * size
        self.full = len(self.groups)
        self.starts, self.companions = _companions(vectors, self.least)

    def solve(self, tried: int) -> list[dict[int, int]]:
        """The best of the first few orders of choice, each repaired."""
        degrees = np.diff(self.starts)
        orders: list[Ints] = [np.argsort(degrees, kind="stable")]
        if tried > 1:
            orders.append(np.argsort(-degrees, kind="stable"))
            orders.append(np.arange(len(self.vectors)))
            rng = np.random.default_rng(0)  # of the canonical order, so still independent of the rows' order
            orders += [
                np.argsort(degrees + rng.random(len(degrees)) * 1.5, kind="stable")
                for _ in range(_ORDERS - len(orders))
            ]
        best: list[dict[int, int]] | None = None
        first, left = self.groups, self.left
        for order in orders[:tried]:
            self.groups, self.left = [dict(group) for group in first], left.copy()
            for index in order:
                while self.left[index]:
                    self.groups.append(self._grow(int(index)))
            self._dissolve()
            if best is None or len(self.groups) < len(best):
                best = self.groups
        assert best is not None
        return best

    def _neighbours(self, index: int) -> Ints:
        return self.companions[self.starts[index] : self.starts[index + 1]]

    def _grow(self, seed: int) -> dict[int, int]:
        group = {seed: self._take(seed, self.size)}
        room = self.size - group[seed]
        near = self._neighbours(seed)
        near = near[self.left[near] > 0]
        if room and len(near):
            rows = self.vectors[near]
            alike = rows @ rows.T  # (n, n), n bounded by the companions kept
            fits = alike >= self.least
            options = np.diff(self.starts)[near]
            closeness = rows @ self.vectors[seed]
            open_ = np.ones(len(near), dtype=bool)
            while room and open_.any():
                candidates = np.flatnonzero(open_)
                keeps = (fits[np.ix_(candidates, candidates)] * self.left[near[candidates]]).sum(1)
                # keeps most others possible; then has fewest options elsewhere; then is closest to the seed
                pick = candidates[
                    np.lexsort((-closeness[candidates], options[candidates], -np.minimum(keeps, room)))[0]
                ]
                taken = self._take(int(near[pick]), room)
                group[int(near[pick])] = taken
                room -= taken
                open_ &= fits[pick]
                open_[pick] = False
        return group

    def _take(self, index: int, most: int) -> int:
        taken = min(int(self.left[index]), most)
        self.left[index] -= taken
        return taken

    def _dissolve(self) -> None:
        """Empty small groups into others, as long as any can be emptied whole."""
        groups = self.groups
        home: dict[int, set[int]] = {}
        sizes = [sum(group.values()) for group in groups]
        for number, group in enumerate(groups):
            for member in group:
                home.setdefault(member, set()).add(number)
        moved = True
        while moved:
            moved = False
            for number in sorted(range(len(groups)), key=lambda g: (sizes[g], g)):
                if not 0 < sizes[number] <= self.size // 2:
                    continue
                places = self._places(number, groups, sizes, home)
                if places is None:
                    continue
                for member, target, count in places:
                    groups[target][member] = groups[target].get(member, 0) + count
                    sizes[target] += count
                    home[member].add(target)
                for member in groups[number]:
                    home[member].discard(number)
                groups[number], sizes[number] = {}, 0
                moved = True
        self.groups = [group for group in groups if group]

    def _places(
        self, number: int, groups: list[dict[int, int]], sizes: list[int], home: dict[int, set[int]]
    ) -> list[tuple[int, int, int]] | None:
        """(member, target group, copies) that empty the group, or None."""
        room: dict[int, int] = {}
        joined: dict[int, list[int]] = {}
        out: list[tuple[int, int, int]] = []
        for member, count in groups[number].items():
            rest = count
            near = [member, *self._neighbours(member).tolist()]
            targets = sorted({target for other in near for target in home.get(other, ())} - {number})
            for target in targets:
                space = room.get(target, self.size - sizes[target])
                if space <= 0 or not rest:
                    continue
                others = [*groups[target], *joined.get(target, [])]
                if (self.vectors[others] @ self.vectors[member] < self.least).any():
                    continue
                moving = min(space, rest)
                room[target] = space - moving
                joined.setdefault(target, []).append(member)
                out.append((member, target, moving))
                rest -= moving
            if rest:
                return None
        return out


def _companions(vectors: Floats, least: float) -> tuple[Ints, Ints]:
    """For every row the rows at least that alike, as compressed rows (starts, indices).

    Tiles of the upper triangle only; of each row at most `_MAX_FORWARD` later companions are kept, the
    strongest, so memory is bounded by N times that.
    """
    left, right = map(np.concatenate, zip(*_edges(vectors, least), strict=True))
    one, two = np.concatenate([left, right]), np.concatenate([right, left])
    order = np.lexsort((two, one))
    counts = np.bincount(one, minlength=len(vectors))
    return np.concatenate([[0], np.cumsum(counts)]), two[order]


def _edges(vectors: Floats, least: float) -> Iterator[tuple[Ints, Ints]]:
    count = len(vectors)
    for top in range(0, count, _TILE):
        rows = vectors[top : top + _TILE]
        found: list[tuple[Ints, Ints, Floats]] = []
        for start in range(top, count, _TILE):
            alike = rows @ vectors[start : start + _TILE].T
            if start == top:
                alike[np.tril_indices(len(rows))] = -2.0  # each pair once, no row with itself
            i, j = np.nonzero(alike >= least)
            found.append((i, j + start, alike[i, j]))
            if sum(len(part[0]) for part in found) > 4 * _MAX_FORWARD * len(rows):
                found = [_strongest(found)]
        i, j, _ = _strongest(found)
        yield i + top, j


def _strongest(parts: list[tuple[Ints, Ints, Floats]]) -> tuple[Ints, Ints, Floats]:
    """Of each row i the `_MAX_FORWARD` most alike."""
    i, j, alike = map(np.concatenate, zip(*parts, strict=True))
    order = np.lexsort((j, -alike, i))
    i, j, alike = i[order], j[order], alike[order]
    rank = np.arange(len(i)) - np.searchsorted(i, i)
    keep = rank < _MAX_FORWARD
    return i[keep], j[keep], alike[keep]


def _number(groups: list[dict[int, int]], inverse: Ints, copies: Ints) -> list[list[int]]:
    """Groups of distinct vectors with copies -> groups of prompt numbers."""
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(copies)
    following = (ends - copies).tolist()  # next unplaced copy of each vector
    out = []
    for group in groups:
        members: list[int] = []
        for vector, count in group.items():
            members += order[following[vector] : following[vector] + count].tolist()
            following[vector] += count
        out.append(sorted(members))
    return sorted(out)
