"""Frechet distance between two sets of features, taken as Gaussians (Heusel et al., arXiv 1706.08500).

The term tr (S1 S2)^(1/2) is computed as the sum of the singular values of A1 A2^T with S = A^T A. No square
root of a product that is not symmetric is taken, so nothing turns complex or fails where covariances are
singular, as they are with fewer images than dimensions. It is biased upwards for few samples; compare only
sets of equal size, and see `kernel.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sagediff.errors import InputError
from sagediff.evaluation.arrays import Floats, pair_of_rows


def frechet_distance(features: Any, reference: Any) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in float64; 0 for equal sets, symmetric.

    Args:
        features, reference: (N, D) and (M, D), N and M at least 2.

    Raises:
        InputError: other shapes, or numbers that are not finite.
    """
    x, y = pair_of_rows(features, reference)
    return _distance(x.mean(0), y.mean(0), _factor_of_rows(x), _factor_of_rows(y))


def frechet_from_statistics(mean: Any, covariance: Any, other_mean: Any, other_covariance: Any) -> float:
    """The same from means (D,) and covariances (D, D).

    Raises:
        InputError: shapes that do not belong together.
    """
    means = [np.asarray(m, np.float64) for m in (mean, other_mean)]
    covariances = [np.asarray(c, np.float64) for c in (covariance, other_covariance)]
    wide = means[0].shape
    if len(wide) != 1 or means[1].shape != wide or any(c.shape != wide * 2 for c in covariances):
        shapes = [a.shape for a in (*means, *covariances)]
        raise InputError(f"expected means (D,) and covariances (D, D), got {shapes}")
    return _distance(*means, *(_factor_of_covariance(c) for c in covariances))


def _distance(mean: Floats, other_mean: Floats, factor: Floats, other_factor: Floats) -> float:
    cross = np.linalg.svd(factor @ other_factor.T, compute_uv=False).sum()
    spread = np.square(factor).sum() + np.square(other_factor).sum() - 2 * cross
    return float(np.square(mean - other_mean).sum() + max(spread, 0.0))  # below 0 by rounding only


def _factor_of_rows(x: Floats) -> Floats:
    """A (min(N, D), D) with A^T A the unbiased covariance of the rows."""
    return np.asarray(np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r"))


def _factor_of_covariance(covariance: Floats) -> Floats:
    """A (D, D) with A^T A the covariance; eigenvalues below 0, by rounding, count as 0."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.asarray(np.sqrt(values.clip(0))[:, None] * vectors.T)
