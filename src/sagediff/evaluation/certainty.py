"""What a number of prompts can show: how much quality may really be lost where so much was seen to be lost. Pure.

The prompts are taken for a sample of those to come. An average over them can hide what a few images show: of four that
stay right, nothing follows about one in a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def loss_at_most(before: Sequence[float], after: Sequence[float], confidence: float) -> float:
    """Upper bound of the part of the quality that is lost, held with the confidence given.

    It is the mean of the differences, prompt by prompt, and so many of its standard errors. One more prompt is counted
    than was seen, whose image is lost altogether: without it a sample in which nothing went wrong would have no
    spread. For right and wrong, and few that are lost, that is a little more than the exact bound (Clopper-Pearson).

    Args:
        before, after: (N,) quality of each prompt without and with sharing; higher is better.
        confidence: in [0.5, 1).

    Returns:
        1 for all of it; infinite where there was no quality to lose.
    """
    alone = np.asarray(before, float)
    whole = float(alone.mean()) if len(alone) else 0.0
    if not whole > 0:
        return math.inf
    losses = np.append(alone - np.asarray(after, float), whole)
    error = float(losses.std(ddof=1)) / math.sqrt(len(losses))
    return (float(losses.mean()) + NormalDist().inv_cdf(confidence) * error) / whole


def prompts_needed(budget: float, confidence: float) -> int | None:
    """The fewest prompts that can show a loss of at most `budget`, if none of their images gets worse.

    None where no number can: a budget of 0.
    """
    if budget <= 0:
        return None
    errors = NormalDist().inv_cdf(confidence)
    return max(1, math.ceil((1 + errors) / budget * (1 - 1e-12)) - 1)
