"""Frechet distance between two sets of features, taken as Gaussians (Heusel et al., arXiv 1706.08500).

The term tr (S1 S2)^(1/2) is computed as the sum of the singular values of A1 A2^T with S = A^T A. No square
root of a product that is not symmetric is taken, so nothing turns complex or fails where covariances are
singular, as they are with fewer images than dimensions. It is biased upwards for few samples; compare only
sets of equal size, and see `kernel.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sagediff.evaluation.arrays import Floats, pair_of_rows


def frechet_distance(features: Any, reference: Any) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in float64; 0 for equal sets, symmetric.

    Args:
        features, reference: (N, D) and (M, D), N and M at least 2.

    Raises:
        InputError: other shapes, or numbers that are not finite.
    """
    x, y = pair_of_rows(features, reference)
    factor, other = _factor(x), _factor(y)
    cross = np.linalg.svd(factor @ other.T, compute_uv=False).sum()
    spread = np.square(factor).sum() + np.square(other).sum() - 2 * cross
    return float(np.square(x.mean(0) - y.mean(0)).sum() + max(spread, 0.0))  # below 0 by rounding only


def _factor(x: Floats) -> Floats:
    """A (min(N, D), D) with A^T A the unbiased covariance of the rows."""
    return np.asarray(np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r"))
