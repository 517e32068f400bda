"""What the steps of a share plan cost in denoiser rows, and what a plan must keep to so that this can be said. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from sagediff.errors import PlanError

if TYPE_CHECKING:
    from sagediff.plan.share_plan import SharePlan


MOST_ROWS = 8
ROWS_PER_PROMPT = range(
    1, MOST_ROWS + 1
)  # without guidance, with a negative row, with rows of further guidance

Span: TypeAlias = tuple[int, int]
"""(first step, the one after the last)"""


def first_guided(plan: SharePlan) -> npt.NDArray[np.int64]:
    """For each prompt the first step with guidance, shape (N,); past the last one where it has none."""
    if plan.guided_from is None:
        start = plan.unguided_steps if plan.rows_per_prompt > 1 else plan.num_steps
        return np.full(plan.num_prompts, start, dtype=np.int64)
    starts = [plan.num_steps if start is None else start for start in plan.guided_from]
    return np.asarray(starts, dtype=np.int64)


def may_guide(plan: SharePlan, members: int) -> bool:
    """Whether a node of so many members is guided at all."""
    return not (members > 1 and plan.shared_guidance == 1.0)


def rows_of_calls(plan: SharePlan, start: int, end: int) -> tuple[int, ...]:
    """Denoiser rows of a guided prompt in each solver call of the steps from `start` to the one before `end`."""
    count = calls(plan, start, end)
    if plan.rows_per_call is None:
        return (plan.rows_per_prompt,) * count
    before = calls(plan, 0, start)
    return plan.rows_per_call[before : before + count]


def calls_taken(plan: SharePlan, start: int, end: int) -> int:
    """Solver calls that the pipeline takes in the steps from `start` to the one before `end`."""
    return sum(rows > 0 for rows in rows_of_calls(plan, start, end))


def rows_of_nodes(plan: SharePlan, span: Span, *, replayed_too: bool = False) -> npt.NDArray[np.int64]:
    """Denoiser rows for each node in steps between which nothing changes but the rows of a call, shape (nodes,).

    Args:
        replayed_too: whether a step that is replayed counts as well, and not as 0.
    """
    step, end = span
    nodes = plan.partition(step)
    members = np.bincount(nodes)
    starts = np.zeros(len(members), dtype=np.int64)
    starts[nodes] = first_guided(plan)
    guided = np.asarray([may_guide(plan, int(n)) for n in members], dtype=bool)
    rows = np.where(
        (starts <= step) & guided, sum(rows_of_calls(plan, step, end)), calls_taken(plan, step, end)
    )
    if replayed_too:
        return rows
    run = np.zeros(len(members), dtype=bool)
    run[nodes] = ~plan.replays(step)
    return rows * run


def calls(plan: SharePlan, start: int, end: int) -> int:
    """Denoiser calls of the steps from `start` to the one before `end`."""
    return end - start if plan.calls_per_step is None else sum(plan.calls_per_step[start:end])


def spans(plan: SharePlan) -> list[Span]:
    """The stretches in which nodes, replay, and what of guidance the plan leaves out do not change."""
    starts = (start for start, _ in plan.levels)
    cuts = sorted({*starts, *(plan.replayed_steps or ()), *first_guided(plan).tolist(), plan.num_steps})
    return list(pairwise(cuts))


def check_replayed(plan: SharePlan) -> None:
    """Members of a node replay the same steps.

    Raises:
        PlanError: they do not, or numbers out of range.
    """
    replayed = plan.replayed_steps
    if replayed is None:
        return
    if len(replayed) != plan.num_prompts or not all(
        isinstance(steps, int) and 0 <= steps <= plan.num_steps for steps in replayed
    ):
        raise PlanError(
            f"replayed_steps must hold a whole number in [0, {plan.num_steps}] for each of the "
            f"{plan.num_prompts} prompts, got {replayed!r}"
        )
    ends = [*(start for start, _ in plan.levels[1:]), plan.num_steps]
    for (_, nodes), end in zip(plan.levels, ends, strict=True):
        first: dict[int, int] = {}
        for prompt, node in enumerate(nodes):
            other = first.setdefault(node, prompt)
            if min(replayed[prompt], end) != min(replayed[other], end):
                raise PlanError(
                    f"prompts {other} and {prompt} are one node until step {end}, but replay "
                    f"{replayed[other]} and {replayed[prompt]} steps: give both the same number, or part them"
                )


def check_rows(plan: SharePlan) -> None:
    """Rows per prompt are in range, and said of each solver call if of any.

    Raises:
        PlanError: they are not.
    """
    if plan.rows_per_prompt not in ROWS_PER_PROMPT:
        raise PlanError(
            f"rows_per_prompt must be 1, or 2 to {MOST_ROWS} with guidance, got {plan.rows_per_prompt!r}"
        )
    rows, count = plan.rows_per_call, calls(plan, 0, plan.num_steps)
    if rows is not None and (len(rows) != count or min(rows) < 0 or max(rows) != plan.rows_per_prompt):
        raise PlanError(
            f"rows_per_call must hold {count} counts of at least 0, the largest of them {plan.rows_per_prompt}, got "
            f"{rows!r}"
        )


def check_guided(plan: SharePlan) -> None:
    """Members of a group are guided alike.

    Raises:
        PlanError: they are not, or numbers out of range.
    """
    starts = plan.guided_from
    if starts is None:
        return
    if len(starts) != plan.num_prompts or not all(
        start is None or (type(start) is int and 0 <= start <= plan.num_steps) for start in starts
    ):
        raise PlanError(
            f"guided_from must hold a whole number in [0, {plan.num_steps}], or None, for each of the "
            f"{plan.num_prompts} prompts, got {starts!r}"
        )
    if plan.rows_per_prompt < 2 or plan.unguided_steps:
        raise PlanError("guided_from goes with 2 rows per prompt or more, and says what unguided_steps would")
    if mixed := next((group for group in plan.groups if len({starts[i] for i in group}) > 1), None):
        raise PlanError(f"prompts {mixed} are one group, but are not guided alike")
