"""Plans by likeness: closer prompts stay together longer, no one shares with others less alike than it may."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagediff.errors import InputError, PlanError
from sagediff.plan.grouping import TOLERANCE, group_prompts
from sagediff.plan.ladder import group_ratios, ladder, nested_groups
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing

RUNGS = ladder([(0.2, 0.3), (0.5, 0.5), (0.8, 0.75)])
STEPS = 20


def vectors_of(seed: int, count: int) -> Any:
    """Unit vectors around a few centres, so that all degrees of likeness occur."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(3, 6))[rng.integers(0, 3, count)] + rng.uniform(0.1, 1.5) * rng.normal(
        size=(count, 6)
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def policy(parting: Any, rungs: Any = RUNGS) -> Sharing:
    first, *rest = rungs
    further = tuple((r.threshold, r.share_ratio) for r in rest)
    return Sharing(first.threshold, first.share_ratio, 4, 1.0, 0.0, further, parting)


cases = given(st.integers(0, 10**6), st.integers(1, 24))


@settings(max_examples=60, deadline=None)
@cases
def test_every_node_is_as_alike_as_its_rung_asks(seed: int, count: int) -> None:
    vectors = vectors_of(seed, count)
    for parting in ("tree", "together"):
        plan = policy(parting).plan(vectors, STEPS)
        for step in range(STEPS):
            asked = next((r.threshold for r in RUNGS if step < r.share_ratio * STEPS), None)
            nodes = plan.partition(step)
            for node in range(nodes.max() + 1):
                members = np.flatnonzero(nodes == node)
                if len(members) > 1:
                    assert asked is not None and len(members) <= 4
                    assert (vectors[members] @ vectors[members].T).min() >= asked - TOLERANCE


@settings(max_examples=60, deadline=None)
@cases
def test_more_rungs_never_cost_more_and_the_tree_never_more_than_parting_together(
    seed: int, count: int
) -> None:
    vectors = vectors_of(seed, count)
    one = policy("tree", RUNGS[:1]).plan(vectors, STEPS).evaluations
    together, tree = (policy(p).plan(vectors, STEPS).evaluations for p in ("together", "tree"))
    assert tree <= together <= one


@settings(max_examples=40, deadline=None)
@cases
def test_the_tree_begins_with_the_groups_of_the_fixed_split_and_refines_them(seed: int, count: int) -> None:
    vectors = vectors_of(seed, count)
    groups = group_prompts(vectors, RUNGS[0].threshold, 4)
    tree = nested_groups(vectors, groups, RUNGS, 4)
    assert tree[0] == (RUNGS[0].share_ratio, groups)
    for (_, coarse), (_, fine) in pairwise(tree):
        assert sorted(i for group in fine for i in group) == list(range(count))
        assert all(any(set(small) <= set(large) for large in coarse) for small in fine)


def test_one_rung_is_the_fixed_split() -> None:
    vectors = vectors_of(1, 20)
    for parting in ("tree", "together"):
        plan = policy(parting, RUNGS[:1]).plan(vectors, STEPS)
        groups = group_prompts(vectors, 0.2, 4)
        assert plan == SharePlan.from_groups(groups, STEPS, 0.3, 1.0)


def test_a_group_parts_by_its_least_alike_pair() -> None:
    angles = np.deg2rad([0, 10, 70, 75])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert group_ratios(vectors, [[0, 1], [2, 3], [0, 2]], RUNGS) == [0.75, 0.75, 0.3]
    assert group_ratios(vectors, [[1, 2]], RUNGS) == [0.5]  # exactly half alike


@pytest.mark.parametrize(
    "rungs",
    [[(0.5, 0.3), (0.4, 0.5)], [(0.2, 0.3), (0.5, 0.3)], [(0.2, 1.5)], [(2.0, 0.5)], [(0.2, 0.3, 0.4)]],
)
def test_rungs_must_grow_in_both(rungs: Any) -> None:
    with pytest.raises(InputError, match="rung"):
        ladder(rungs)


def test_a_tree_as_given() -> None:
    plan = SharePlan.from_tree([(0.2, [[0, 1, 2], [3]]), (0.5, [[0, 2], [1], [3]])], num_steps=10)
    assert [start for start, _ in plan.levels] == [0, 2, 5]
    assert plan.branch_steps == [5, 2, 5, 0]
    assert plan.evaluations == 2 * (2 * 2 + 3 * 3 + 5 * 4)
    assert SharePlan.from_json(plan.to_json()) == plan
    assert (
        SharePlan.from_tree([(0.01, [[0, 1]]), (0.5, [[0, 1]])], num_steps=10).levels
        == SharePlan.from_groups([[0, 1]], 10, 0.5).levels
    )


@pytest.mark.parametrize(
    "tree",
    [
        [],
        [(0.5, [[0, 1]]), (0.2, [[0], [1]])],
        [(0.2, [[0], [1]]), (0.5, [[0, 1]])],
        [(0.2, [[0, 1]]), (0.5, [[0]])],
        [(1.2, [[0, 1]])],
    ],
)
def test_trees_that_cannot_be(tree: Any) -> None:
    with pytest.raises(PlanError):
        SharePlan.from_tree(tree, num_steps=10)
