"""Kernel distance: squared maximum mean discrepancy under a polynomial kernel (Binkowski et al., arXiv 1801.01401).

Unbiased, so it may be compared between sets of different size and is the one to trust with few images; it
may fall a little below 0 for sets that are alike.
"""

from __future__ import annotations

from typing import Any

from sagediff.errors import InputError
from sagediff.evaluation.arrays import Floats, pair_of_rows

_DEGREE = 3
_TILE = 2048  # rows of the kernel matrix held at once


def kernel_distance(features: Any, reference: Any, paired: bool = False) -> float:
    """Unbiased estimate of MMD^2 with the kernel (x . y / D + 1)^3, over all pairs at once, in float64.

    The paper averages over random subsets to save time; all pairs are the same estimate with less variance.

    Args:
        features, reference: (N, D) and (M, D), N and M at least 2.
        paired: row i of both belongs to the same prompt. Such rows are alike whatever the model, so their
            products are left out of the cross term (Gretton et al., 2012, lemma 6), which is then unbiased again.

    Raises:
        InputError: other shapes, numbers that are not finite, or pairs of sets of different size.
    """
    x, y = pair_of_rows(features, reference)
    if not paired:
        cross = _sum(x, y) / (len(x) * len(y))
    elif len(x) != len(y):
        raise InputError(f"paired sets must have equal size, got {len(x)} and {len(y)}")
    else:
        cross = _off_diagonal_mean(x, y)
    return _off_diagonal_mean(x, x) + _off_diagonal_mean(y, y) - 2 * cross


def _sum(x: Floats, y: Floats) -> float:
    tiles = (x[i : i + _TILE] for i in range(0, len(x), _TILE))
    return float(sum(((tile @ y.T / x.shape[1] + 1) ** _DEGREE).sum() for tile in tiles))


def _off_diagonal_mean(x: Floats, y: Floats) -> float:
    own = float((((x * y).sum(1) / x.shape[1] + 1) ** _DEGREE).sum())
    return (_sum(x, y) - own) / (len(x) * (len(x) - 1))
