"""How long prompts share, by how alike they are: a ladder of thresholds and share ratios, made into a plan's tree.

Pure: vectors and groups in, share ratios or nested groups out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sagediff.errors import InputError
from sagediff.plan.grouping import TOLERANCE, group_prompts

Parting: TypeAlias = Literal["tree", "together"]
Floats: TypeAlias = "npt.NDArray[np.float32]"


@dataclass(frozen=True)
class Rung:
    """Prompts at least `threshold` alike, every pair, share the first `share_ratio` of the steps."""

    threshold: float
    share_ratio: float


def ladder(rungs: Sequence[Sequence[float]]) -> tuple[Rung, ...]:
    """Rungs from pairs (threshold, share ratio).

    Raises:
        InputError: a number out of range, or rungs that do not grow in both.
    """
    out = []
    for pair in rungs:
        if len(pair) != 2 or not (-1 <= pair[0] <= 1 and 0 <= pair[1] <= 1):
            raise InputError(
                f"a rung must be a threshold in [-1, 1] and a share ratio in [0, 1], got {list(pair)}"
            )
        out.append(Rung(float(pair[0]), float(pair[1])))
    for before, after in pairwise(out):
        if after.threshold <= before.threshold or after.share_ratio <= before.share_ratio:
            raise InputError(
                f"rungs must grow in threshold and in share ratio, as closer prompts stay together longer; "
                f"({after.threshold:g}, {after.share_ratio:g}) follows "
                f"({before.threshold:g}, {before.share_ratio:g})"
            )
    return tuple(out)


def group_ratios(vectors: Floats, groups: Sequence[Sequence[int]], rungs: Sequence[Rung]) -> list[float]:
    """The share ratio of each group: that of the highest rung which its least alike pair reaches.

    Args:
        vectors: (N, D) unit vectors.
        groups: cliques at the first rung's threshold.
    """
    return [_ratio(vectors[list(group)], rungs) for group in groups]


def _ratio(members: Floats, rungs: Sequence[Rung]) -> float:
    least = float((members @ members.T).min())
    reached = [rung.share_ratio for rung in rungs if least >= rung.threshold - TOLERANCE]
    return reached[-1] if reached else rungs[0].share_ratio


def nested_groups(
    vectors: Floats, groups: Sequence[Sequence[int]], rungs: Sequence[Rung], max_group_size: int
) -> list[tuple[float, list[list[int]]]]:
    """(share ratio, groups) of every rung, coarsest first: each group is cut into cliques of the next threshold.

    Args:
        vectors: (N, D) unit vectors.
        groups: cliques at the first rung's threshold, which begin the tree.
    """
    partition = [sorted(map(int, group)) for group in groups]
    tree = [(rungs[0].share_ratio, partition)]
    for rung in rungs[1:]:
        finer = []
        for group in partition:
            parts = group_prompts(vectors[group], rung.threshold, max_group_size) if len(group) > 1 else [[0]]
            finer += [[group[i] for i in part] for part in parts]
        partition = sorted(finer)
        tree.append((rung.share_ratio, partition))
    return tree
