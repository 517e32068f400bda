"""The partitions of a share plan: made from groups and from trees of groups, and checked. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from sagediff.errors import PlanError

Level: TypeAlias = "tuple[int, tuple[int, ...]]"
"""(first step, node of each prompt): nodes are numbered in the order of their first member."""
Groups: TypeAlias = Sequence[Sequence[int]]


def check_levels(levels: Sequence[Level], num_steps: int) -> None:
    """Raises PlanError unless levels begin at step 0, at growing steps, each refining the one before."""
    if not levels or levels[0][0] != 0:
        raise PlanError("levels must begin at step 0")
    before: Level | None = None
    for level in levels:
        start, nodes = level
        if tuple(renumber(nodes)) != tuple(nodes):
            raise PlanError(f"nodes at step {start} must be numbered from 0 in the order of first members")
        if before is not None:
            if not before[0] < start < num_steps:
                raise PlanError(
                    f"levels must begin at growing steps below {num_steps}; {start} follows {before[0]}"
                )
            if len(nodes) != len(before[1]):
                raise PlanError(f"the level at step {start} has {len(nodes)} prompts, not {len(before[1])}")
            parent: dict[int, int] = {}
            for child, node in zip(nodes, before[1], strict=True):
                if parent.setdefault(child, node) != node:
                    raise PlanError(
                        f"the partition at step {start} joins prompts that were apart before; "
                        "partitions may only get finer"
                    )
        before = level


def check_groups(groups: Groups) -> int:
    """The number of prompts that the groups hold.

    Raises:
        PlanError: a group is empty, or the groups are not a partition of 0..N-1.
    """
    flat = sorted(int(i) for group in groups for i in group)
    if any(not len(group) for group in groups):
        raise PlanError("a group is empty; every group needs at least one prompt")
    if flat != list(range(len(flat))):
        raise PlanError(f"groups must name each of the prompts 0..{max(len(flat) - 1, 0)} exactly once")
    return len(flat)


def branching_levels(groups: Groups, branch: Sequence[int], num_steps: int) -> tuple[Level, ...]:
    """Each group is one node before its branch step, and single prompts from there on."""
    count = check_groups(groups)
    levels: list[Level] = []
    for start in sorted({0, *(b for b in branch if b < num_steps)}):
        whole = [group for group, end in zip(groups, branch, strict=True) if start < end]
        _append(levels, start, _nodes(whole, count))
    return tuple(levels)


def tree_levels(tree: Sequence[tuple[int, Groups]], num_steps: int) -> tuple[Level, ...]:
    """Partitions that hold until a step each, then single prompts.

    Args:
        tree: (end, groups): the groups are nodes from the end of the partition before, or from step 0, to the step
            before `end`. Ends grow; one that does not lie beyond the one before, or 0, leaves its partition out.

    Raises:
        PlanError: a partition joins prompts that were apart, or does not hold every prompt once.
    """
    levels: list[Level] = []
    start = count = 0
    for end, groups in tree:
        count = check_groups(groups)
        if start < min(end, num_steps):
            _append(levels, start, _nodes(groups, count))
            start = end
    if start < num_steps:
        _append(levels, start, _nodes((), count))
    return tuple(levels)


def part_of_steps(part: float, num_steps: int) -> int:
    """`part` of the steps as a number of steps, rounded half up."""
    return math.floor(part * num_steps + 0.5 + 1e-9)


def renumber(nodes: Sequence[int]) -> list[int]:
    """Numbers in the order of first appearance."""
    seen: dict[int, int] = {}
    return [seen.setdefault(node, len(seen)) for node in nodes]


def _nodes(groups: Groups, count: int) -> tuple[int, ...]:
    """The node of each prompt, where these groups are whole and all other prompts alone."""
    nodes = list(range(count))
    for group in groups:
        for i in group:
            nodes[int(i)] = min(map(int, group))
    return tuple(renumber(nodes))


def _append(levels: list[Level], start: int, nodes: tuple[int, ...]) -> None:
    if not levels or levels[-1][1] != nodes:
        levels.append((start, nodes))


def check_ratios(ratios: Sequence[float]) -> None:
    """Raises PlanError for one that is not a part of the steps."""
    for ratio in ratios:
        if not 0 <= ratio <= 1:
            raise PlanError(f"share_ratio must lie in [0, 1], got {ratio}")
