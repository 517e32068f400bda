"""Vendi score: how many different images a set effectively holds (Friedman and Dieng, arXiv 2210.02410)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sagediff.errors import InputError
from sagediff.evaluation.arrays import of_two_or_more, unit_rows


def vendi_score(features: Any) -> float:
    """exp of the entropy of the eigenvalues of K / N, K the cosines of all pairs: 1 (all alike) to N (orthogonal).

    Args:
        features: (N, D), N at least 1, no row of zeros.

    Raises:
        InputError: other shapes.
    """
    vectors = unit_rows(features)
    count, width = vectors.shape
    if not count:
        raise InputError("the Vendi score needs at least one image")
    # K and its dual have the same eigenvalues but for zeros, which add nothing: take the smaller
    matrix = vectors @ vectors.T if count <= width else vectors.T @ vectors
    values = np.linalg.eigvalsh(matrix / count)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def group_vendi(features: Any, groups: Sequence[Sequence[int]]) -> float | None:
    """Mean Vendi score of the groups of two or more members; None where there is none.

    Args:
        features: (N, D), one row per image.
        groups: row numbers.
    """
    vectors = unit_rows(features)
    values = [vendi_score(vectors[group]) for group in of_two_or_more(groups)]
    return float(np.mean(values)) if values else None
