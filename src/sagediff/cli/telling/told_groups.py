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
_MOST_MEMBERS = 1024  # of a group


def largest(plan: SharePlan) -> list[list[int]]:
    """The groups of two or more with the most prompts, largest first."""
    shared = [group for group in plan.groups if len(group) > 1]
    return sorted(shared, key=lambda group: (-len(group), group[0]))[:_NAMED]


def loosest(plan: SharePlan, vectors: Vectors | None) -> list[tuple[list[int], float, tuple[int, int]]]:
    """The groups of two or more with the lowest minimum similarity: each with it, and the pair that has it.

    Args:
        vectors: unit vectors of the prompts, (N, D); None where they are not at hand: then none is named.
    """
    if vectors is None:
        return []
    shared = [group for group in plan.groups if len(group) > 1][:_MOST_GROUPS]
    found = []
    for group in shared:
        least, first, second = least_alike(vectors[group])
        found.append((group, least, (group[first], group[second])))
    return sorted(found, key=lambda each: (each[1], each[0][0]))[:_NAMED]


def least_alike(rows: Vectors) -> tuple[float, int, int]:
    """The minimum similarity (cosine) of any two of some unit vectors, (n, D), and which two these are.

    Of more than 1,024 vectors the first ones are compared.
    """
    rows = rows[:_MOST_MEMBERS]
    cosines = rows @ rows.T
    place = int(cosines.argmin())
    first, second = sorted(divmod(place, len(rows)))
    return float(cosines[first, second]), first, second


def group_rows(
    plan: SharePlan, prompts: Sequence[str], vectors: Vectors | None, width: int = 84
) -> list[tuple[str, str]]:
    """The largest and the loosest groups in words, as rows of a table."""
    large = [
        f"{len(group):,} prompts: {_quoted(prompts, group[:1], width - 14)} and others"
        for group in largest(plan)
    ]
    loose = [
        f"similarity {least:.2f}: {_quoted(prompts, pair, width - 19)}"
        for _, least, pair in loosest(plan, vectors)
    ]
    return [
        (name if not number else "", line)
        for name, lines in (("largest", large), ("loosest", loose))
        for number, line in enumerate(lines)
    ]


def _quoted(prompts: Sequence[str], numbers: Sequence[int], width: int) -> str:
    """How some prompts begin, within a width."""
    texts = [printable(prompts[number]) for number in numbers]
    room = max(10, width // len(texts) - 4)
    return ", ".join(f"'{text if len(text) <= room else text[: room - 1] + '…'}'" for text in texts)


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
