"""Diversity within groups: how far apart the images of prompts that shared steps are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sagediff.evaluation.arrays import mean_pairwise_cosine, of_two_or_more, unit_rows


def group_diversity(features: Any, groups: Sequence[Sequence[int]]) -> float | None:
    """Mean over groups of the members' mean pairwise cosine distance, 0 (alike) to 2; None without any pair.

    Args:
        features: (N, D), one row per image, none of zeros.
        groups: row numbers; groups of one member count for nothing.
    """
    vectors = unit_rows(features)
    values = [1 - mean_pairwise_cosine(vectors[group]) for group in of_two_or_more(groups)]
    return float(np.mean(values)) if values else None
