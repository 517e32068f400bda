"""What every metric checks first: rows of finite numbers, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sagediff.errors import InputError

Floats: TypeAlias = npt.NDArray[np.float64]


def rows(values: Any, name: str = "features") -> Floats:
    """(N, D) array or tensor -> (N, D) float64.

    Raises:
        InputError: another shape, or a number that is not finite.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2:
        raise InputError(f"{name} must have shape (N, D), got {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{name} hold a number that is not finite")
    return array


def unit_rows(values: Any, name: str = "features") -> Floats:
    """As `rows`, each of length 1.

    Raises:
        InputError: also for a row of zeros, which has no direction.
    """
    array = rows(values, name)
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise InputError(f"{name} hold a row of zeros")
    return np.asarray(array / lengths)


def pair_of_rows(features: Any, reference: Any) -> tuple[Floats, Floats]:
    """Two sets of at least two rows each and of equal width.

    Raises:
        InputError: otherwise.
    """
    x, y = rows(features), rows(reference, "reference features")
    if x.shape[1] != y.shape[1]:
        raise InputError(f"features are {x.shape[1]} wide, the reference's {y.shape[1]}")
    if min(len(x), len(y)) < 2:
        raise InputError(f"a distance needs two images on each side, got {len(x)} and {len(y)}")
    return x, y


def mean_pairwise_cosine(vectors: Floats) -> float:
    """Mean cosine over all pairs of two different rows; (N, D) of unit rows, N at least 2."""
    count = len(vectors)
    similar = vectors @ vectors.T
    return float((similar.sum() - np.trace(similar)) / (count * (count - 1)))


def of_two_or_more(groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """The groups that have pairs."""
    return [list(group) for group in groups if len(group) > 1]
