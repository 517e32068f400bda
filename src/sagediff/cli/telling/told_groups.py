"""Which groups of a plan are worth a look: the largest, and the loosest, whose prompts are least alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sagediff.plan.share_plan import SharePlan
from sagediff.printable import printable

Vectors = npt.NDArray[np.float32]
_NAMED = 3
_MOST_GROUPS = 200_000  # whose similarities are looked at: some seconds
_MOST_MEMBERS = 1024  # of a group, likewise


def largest(plan: SharePlan) -> list[list[int]]:
    """The groups of two or more with the most prompts, largest first."""
    shared = [group for group in plan.groups if len(group) > 1]
    return sorted(shared, key=lambda group: (-len(group), group[0]))[:_NAMED]


def loosest(plan: SharePlan, vectors: Vectors | None) -> list[tuple[list[int], float]]:
    """The groups of two or more whose least alike pair is least alike, with that cosine similarity.

    Args:
        vectors: unit vectors of the prompts, (N, D); None where they are not at hand: then none is named.
    """
    shared = [group for group in plan.groups if len(group) > 1][:_MOST_GROUPS]
    if vectors is None:
        return []
    found = [(group, least_similarity(vectors[group[:_MOST_MEMBERS]])) for group in shared]
    return sorted(found, key=lambda each: (each[1], each[0][0]))[:_NAMED]


def least_similarity(rows: Vectors) -> float:
    """The least cosine between any two of some unit vectors, (n, D)."""
    return float((rows @ rows.T).min())


def group_lines(
    plan: SharePlan, prompts: Sequence[str], vectors: Vectors | None, width: int = 100
) -> list[str]:
    """The largest and the loosest groups in words, a line each."""
    lines = []
    for group in largest(plan):
        lines.append(_line(f"largest: {len(group)} prompts", group, prompts, width))
    for group, least in loosest(plan, vectors):
        lines.append(_line(f"loosest: similarity {least:.2f}", group, prompts, width))
    return lines


def _line(head: str, group: Sequence[int], prompts: Sequence[str], width: int) -> str:
    """Numbers of a group's first prompts and how the first two begin, within a width."""
    first, second = (printable(prompts[number]) for number in group[:2])
    room = max(10, (width - len(head) - 12) // 2)
    return f"{head}, {_cut(first, room)!r} and {_cut(second, room)!r}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def size_words(plan: SharePlan) -> str:
    """How many groups of which sizes there are, and how many prompts are alone."""
    sizes: Any = [len(group) for group in plan.groups if len(group) > 1]
    alone = plan.num_prompts - sum(sizes)
    words = f"{alone:,} alone" if sizes else "all alone"
    if not sizes:
        return words
    span = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes):,}"
    many = "1 group" if len(sizes) == 1 else f"{len(sizes):,} groups"
    return f"{many} of {span}, {words}"
