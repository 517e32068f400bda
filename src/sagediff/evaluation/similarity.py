"""Bands of groups by how alike their prompts are, so that a figure can be shown for near and far prompts apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sagediff.errors import InputError
from sagediff.evaluation.arrays import mean_pairwise_cosine, of_two_or_more, unit_rows


@dataclass(frozen=True)
class Band:
    """Groups whose members' mean pairwise cosine lies in [low, high), in the last band also at `high`."""

    low: float
    high: float
    groups: list[list[int]]

    @property
    def prompts(self) -> list[int]:
        """The members of all its groups."""
        return [i for group in self.groups for i in group]


def similarity_bands(
    vectors: Any, groups: Sequence[Sequence[int]], edges: Sequence[float] | None = None
) -> list[Band]:
    """Sort the groups of two or more members into bands; the least alike first, groups of one in none.

    Args:
        vectors: (N, D) prompt embeddings.
        groups: prompt numbers.
        edges: K + 1 growing limits of K bands; None takes terciles of the groups. Groups outside belong to none.

    Raises:
        InputError: edges that do not grow.
    """
    units = unit_rows(vectors, "prompt embeddings")
    pairs = of_two_or_more(groups)
    if edges is not None and (len(edges) < 2 or any(not a < b for a, b in pairwise(edges))):
        raise InputError(f"edges of bands must be two or more growing numbers, got {list(edges)}")
    if not pairs:
        return []
    alike = np.array([mean_pairwise_cosine(units[group]) for group in pairs])
    if edges is None:
        # ties can make two quantiles equal: then there are fewer bands
        edges = np.unique(np.quantile(alike, [0, 1 / 3, 2 / 3, 1])).tolist()
        if len(edges) == 1:
            edges = [edges[0], math.nextafter(edges[0], math.inf)]
    place = np.searchsorted(np.asarray(edges), alike, side="right") - 1
    place[alike == edges[-1]] = len(edges) - 2
    return [
        Band(float(low), float(high), [group for group, at in zip(pairs, place, strict=True) if at == number])
        for number, (low, high) in enumerate(pairwise(edges))
    ]
