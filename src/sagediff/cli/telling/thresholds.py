"""What a plan would save at other thresholds, from the embeddings at hand; and a word where sharing found little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sagediff.plan.share_plan import SharePlan

MOST_PROMPTS = 4000  # that are grouped anew, which takes a second per threshold; of more, the first ones are
_STEPS = (-0.2, -0.1, -0.05, 0.0, 0.05, 0.1)
_ALONE = 0.5  # fraction of prompts alone from which it is worth a word
_FEWER = 0.9  # of them that a lower threshold must leave alone at most


@dataclass(frozen=True)
class AtThreshold:
    """A plan's figures at a threshold. alone: prompts that share with none."""

    threshold: float
    num_prompts: int
    num_groups: int
    alone: int
    evaluations: int
    sharing_saving: float
    cost_saving: float

    def cells(self, mark: str = "") -> tuple[str, ...]:
        """As a row of a table."""
        return (
            f"{mark}{number(self.threshold)}",
            f"{self.num_groups:,}",
            f"{self.alone:,}",
            f"{self.evaluations:,}",
            f"{self.sharing_saving:.1%}",
            f"{self.cost_saving:.1%}",
        )

    @classmethod
    def of(cls, threshold: float, plan: SharePlan) -> AtThreshold:
        """The figures of a plan that was made at it."""
        alone = sum(len(group) == 1 for group in plan.groups)
        return cls(
            threshold,
            plan.num_prompts,
            len(plan.groups),
            alone,
            plan.evaluations,
            plan.sharing_saving,
            plan.cost_saving,
        )


def number(threshold: float) -> str:
    """A threshold as it is typed: with two digits behind the point, or as many as it has."""
    return f"{threshold:.2f}" if round(threshold, 2) == threshold else f"{threshold:g}"


def around(threshold: float) -> list[float]:
    """Thresholds near one, itself among them, growing."""
    near = (round(threshold + step, 4) for step in _STEPS)
    return sorted({threshold, *(each for each in near if -1 <= each <= 1)})


def lower(threshold: float) -> float:
    """The threshold that a hint is about."""
    return max(-1.0, round(threshold - 0.1, 4))


def hint(used: AtThreshold, plan_at: Callable[[float], AtThreshold | None]) -> str | None:
    """That many prompts are alone, and how many would be at a lower threshold; None where that is not worth a word.

    Args:
        plan_at: the figures at another threshold, of the same prompts; None where they are not at hand.
    """
    if used.num_prompts < 2 or used.alone < _ALONE * used.num_prompts or used.threshold <= -1:
        return None
    other = plan_at(lower(used.threshold))
    if other is None or other.alone > _FEWER * used.alone:
        return None
    low = number(other.threshold)
    return (
        f"{used.alone:,} of {used.num_prompts:,} prompts are alone at {number(used.threshold)}; at {low} it would be "
        f"{other.alone:,}: see sagediff plan --threshold {low}"
    )


def curve_table(curve: list[AtThreshold], used: float, share_ratio: float) -> str:
    """Saving against threshold, in columns; the threshold that is used is marked."""
    head = ("threshold", "groups", "alone", "evaluations", "saved by sharing", "saved in all")
    rows = [each.cells("* " if each.threshold == used else "") for each in curve]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in [head, *rows]
    ]
    title = f"saving against threshold, at share ratio {share_ratio:g}"
    if curve and curve[0].num_prompts == MOST_PROMPTS:
        title += f", of the first {MOST_PROMPTS:,} prompts"
    return "\n".join([title, *lines])
