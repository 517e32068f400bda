"""Share plans: partitions only refine, the cost is what the rows add up to, and nothing invalid can be built."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagediff.errors import PlanError
from sagediff.plan.share_plan import SharePlan

GROUPS = [[0, 2, 3], [1], [4, 5]]


@st.composite
def groupings(draw: st.DrawFn, most: int = 12) -> list[list[int]]:
    """Any partition of 0..n-1 into groups, in any order."""
    n = draw(st.integers(1, most))
    labels = draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n))
    groups = [[i for i in range(n) if labels[i] == label] for label in sorted(set(labels))]
    return draw(st.permutations(groups))


@st.composite
def plans(draw: st.DrawFn) -> SharePlan:
    """Plans of every kind: one ratio or one per group, with and without guidance, several calls per step."""
    groups = draw(groupings())
    steps = draw(st.integers(1, 12))
    one = st.floats(0, 1)
    ratio = draw(st.one_of(one, st.lists(one, min_size=len(groups), max_size=len(groups))))
    plan = SharePlan.from_groups(
        groups,
        steps,
        ratio,
        shared_guidance=draw(st.sampled_from([None, 1.0, 2.5])),
        unguided_steps=draw(st.integers(0, steps)),
        rows_per_prompt=draw(st.sampled_from([1, 2, 3])),
    )
    if draw(st.booleans()):
        plan = plan.recost(calls_per_step=draw(st.lists(st.integers(1, 4), min_size=steps, max_size=steps)))
    if draw(st.booleans()):
        replayed = [0] * plan.num_prompts
        for group in groups:
            for i in group:
                replayed[i] = draw(st.integers(0, steps)) if i == group[0] else replayed[group[0]]
        plan = replace(plan, replayed_steps=tuple(replayed))
    if draw(st.booleans()):
        first = st.one_of(st.none(), st.integers(0, steps))
        starts = {i: start for group in groups for start in [draw(first)] for i in group}
        plan = plan.with_guidance([starts[i] for i in range(plan.num_prompts)])
    elif draw(st.booleans()):
        calls = len(plan.rows_of_calls())
        rows = draw(st.lists(st.integers(1, 4), min_size=calls, max_size=calls))
        for call, count in enumerate(rows):
            plan = plan.recost_from(call, count)
        assert plan.rows_of_calls() == tuple(rows)
    return plan


def rows_by_counting(plan: SharePlan, step: int) -> int:
    """Rows of a step by the definition: once a node, its negative row only where that is run."""
    nodes = plan.partition(step).tolist()
    replayed = plan.replayed_steps or [0] * len(nodes)
    counts = plan.calls_per_step or (1,) * plan.num_steps
    rows = plan.rows_of_calls()[sum(counts[:step]) :][: counts[step]]
    total = 0
    for node in set(nodes):
        if replayed[nodes.index(node)] > step:
            continue
        alone = nodes.count(node) == 1
        starts = plan.guided_from or [plan.unguided_steps] * len(nodes)
        start = starts[nodes.index(node)]
        guided = start is not None and step >= start and (alone or plan.shared_guidance != 1.0)
        total += sum(rows) if guided else len(rows)
    return total


# -- partitions


@settings(max_examples=150, deadline=None)
@given(plans())
def test_partitions_cover_every_prompt_once_and_only_refine(plan: SharePlan) -> None:
    assert sorted(i for group in plan.groups for i in group) == list(range(plan.num_prompts))
    for step in range(plan.num_steps):
        nodes = plan.partition(step)
        assert nodes.shape == (plan.num_prompts,)
        assert set(nodes.tolist()) == set(range(nodes.max() + 1))
        if step:
            parents: dict[int, set[int]] = {}
            for before, now in zip(plan.partition(step - 1).tolist(), nodes.tolist(), strict=True):
                parents.setdefault(now, set()).add(before)
            assert all(len(found) == 1 for found in parents.values())


@settings(max_examples=100, deadline=None)
@given(groupings(), st.integers(1, 40), st.floats(0, 1))
def test_a_group_shares_exactly_the_steps_before_its_branch_point(
    groups: list[list[int]], steps: int, ratio: float
) -> None:
    plan = SharePlan.from_groups(groups, steps, ratio)
    for group in groups:
        branch = 0 if len(group) == 1 else int(np.floor(ratio * steps + 0.5 + 1e-9))
        assert {plan.branch_steps[i] for i in group} == {branch}
        for step in range(steps):
            together = len({int(plan.partition(step)[i]) for i in group}) == 1
            assert together == (step < branch or len(group) == 1)
            assert plan.shared(step)[group].tolist() == [step < branch] * len(group)


def test_one_ratio_a_group_gives_each_its_own_branch_point() -> None:
    plan = SharePlan.from_groups(GROUPS, num_steps=10, share_ratio=[0.2, 0.9, 0.7])
    assert plan.branch_steps == [2, 0, 2, 2, 7, 7]
    assert plan.summary()["share_ratio"] == [0.2, 0.9, 0.7]
    assert [start for start, _ in plan.levels] == [0, 2, 7]


def test_a_tree_of_several_levels_branches_where_its_last_pair_parts() -> None:
    plan = SharePlan(6, ((0, (0, 0, 0, 0)), (2, (0, 0, 1, 1)), (4, (0, 0, 1, 2))))
    assert plan.groups == [[0, 1, 2, 3]]
    assert plan.branch_steps == [6, 6, 4, 4]
    assert [plan.step_evaluations(step) for step in range(6)] == [2, 2, 4, 4, 6, 6]


def test_steps_outside_the_plan_are_refused() -> None:
    plan = SharePlan.from_groups(GROUPS, 4)
    for step in (-1, 4):
        with pytest.raises(PlanError, match="step must lie in"):
            plan.partition(step)


# -- cost


@settings(max_examples=150, deadline=None)
@given(plans())
def test_the_cost_is_the_sum_of_its_steps_and_of_its_prompts(plan: SharePlan) -> None:
    steps = [plan.step_evaluations(step) for step in range(plan.num_steps)]
    assert steps == [rows_by_counting(plan, step) for step in range(plan.num_steps)]
    assert plan.evaluations == sum(steps) <= plan.evaluations_independent
    assert plan.prompt_evaluations.sum() == pytest.approx(plan.evaluations)
    assert plan.cost_saving == pytest.approx(1 - plan.evaluations / plan.evaluations_independent)
    for group in plan.groups:
        assert len({round(float(plan.prompt_evaluations[i]), 9) for i in group}) == 1


@settings(max_examples=100, deadline=None)
@given(groupings(), st.integers(1, 10), st.integers(0, 10), st.sampled_from([1, 2]))
def test_saving_is_beta_times_one_minus_k_over_n(
    groups: list[list[int]], scale: int, tenths: int, rows: int
) -> None:
    """With shared guidance 1.0 a shared node costs half as much, so k / n becomes k / (2 n) for the groups."""
    steps, beta = 10 * scale, tenths / 10
    n, k = sum(map(len, groups)), len(groups)
    plan = SharePlan.from_groups(groups, steps, beta, rows_per_prompt=rows)
    assert plan.cost_saving == pytest.approx(beta * (1 - k / n))
    shared = sum(len(group) > 1 for group in groups)  # prompts that stay alone keep their guidance
    cheap = SharePlan.from_groups(groups, steps, beta, shared_guidance=1.0, rows_per_prompt=rows)
    left_out = shared / 2 if rows == 2 else 0
    assert cheap.cost_saving == pytest.approx(beta * (1 - (k - left_out) / n))
    if shared == k and rows == 2:
        assert cheap.cost_saving == pytest.approx(beta * (1 - k / (2 * n)))


def test_the_papers_figure() -> None:
    """40 % of the steps in groups of 2.76 prompts on average: 25.5 % saved."""
    groups, start = [], 0
    for size in [3] * 19 + [2] * 6:  # 25 groups, 69 prompts
        groups.append(list(range(start, start + size)))
        start += size
    plan = SharePlan.from_groups(groups, num_steps=30, share_ratio=0.4)
    assert plan.num_prompts / len(groups) == 2.76
    assert plan.cost_saving == pytest.approx(0.255, abs=5e-4)


@settings(max_examples=50, deadline=None)
@given(groupings(), st.integers(1, 20), st.sampled_from([None, 1.0, 3.0]))
def test_a_ratio_of_zero_saves_nothing(
    groups: list[list[int]], steps: int, shared_guidance: float | None
) -> None:
    plan = SharePlan.from_groups(groups, steps, 0.0, shared_guidance)
    assert plan.cost_saving == 0.0
    assert plan.evaluations == plan.evaluations_independent == 2 * steps * plan.num_prompts
    assert plan.branch_steps == [0] * plan.num_prompts


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(1, 20), st.data())
def test_unguided_steps_drop_everyones_negative_rows(n: int, steps: int, data: st.DataObject) -> None:
    unguided = data.draw(st.integers(0, steps))
    plan = SharePlan.from_groups([[i] for i in range(n)], steps, 0.5, unguided_steps=unguided)
    assert plan.evaluations == n * (unguided + 2 * (steps - unguided))
    assert plan.evaluations_independent == 2 * n * steps
    unguided_model = SharePlan.from_groups(
        [[i] for i in range(n)], steps, 0.5, unguided_steps=unguided, rows_per_prompt=1
    )
    assert unguided_model.evaluations == unguided_model.evaluations_independent == n * steps


def test_unguided_steps_past_the_branch_point_cost_one_row_a_prompt() -> None:
    plan = SharePlan.from_groups([[0, 1, 2], [3]], 10, 0.2, unguided_steps=5)
    assert [plan.step_evaluations(step) for step in range(10)] == [2, 2, 4, 4, 4, 8, 8, 8, 8, 8]


def test_calls_per_step_multiply_the_rows_of_their_step() -> None:
    plan = SharePlan.from_groups([[0, 1]], 4, 0.5)
    heun = plan.recost(calls_per_step=[2, 2, 2, 1])
    assert [heun.step_evaluations(step) for step in range(4)] == [4, 4, 8, 4]
    assert heun.evaluations == 20 and heun.evaluations_independent == 28
    assert heun.levels == plan.levels
    assert heun.recost(rows_per_prompt=1).evaluations == 10


# -- replay


def test_where_prompts_are_not_guided_alike_each_costs_its_own() -> None:
    shared = SharePlan.from_groups([[0, 1], [2, 3], [4], [5]], 10, 0.4)
    plan = shared.with_guidance([0, 0, None, None, 0, 7])
    assert plan.prompt_evaluations.tolist() == [16, 16, 8, 8, 20, 13]
    assert plan.evaluations_independent == 20 * 4 + 10 * 2
    assert plan.evaluations_unshared == 20 * 3 + 10 * 2 + 13
    part = plan.subset([2, 3])
    assert part == SharePlan.from_groups([[0, 1]], 10, 0.4, rows_per_prompt=1)
    assert plan.subset([5]) == SharePlan.from_groups([[0]], 10, 0.4, unguided_steps=7)
    assert plan.subset([0, 1, 5]).guided_from == (0, 0, 7)
    assert plan.recost(2).guided_from is None
    with pytest.raises(PlanError, match=r"prompts \[0, 1\] are one group, but are not guided alike"):
        shared.with_guidance([0, None, 0, 0, 0, 0])
    with pytest.raises(PlanError, match="for each of the 6 prompts"):
        shared.with_guidance([0, None])
    for wrong in ((1.0, 1.0, 0, 0, 0, 0), (True, True, 0, 0, 0, 0), (11, 11, 0, 0, 0, 0)):
        with pytest.raises(PlanError, match="whole number in"):
            replace(shared, guided_from=wrong)
    with pytest.raises(PlanError, match="goes with 2 rows"):
        replace(plan, rows_per_prompt=1)


def test_replayed_steps_cost_nothing_and_are_no_steps_of_ones_own() -> None:
    plan = replace(SharePlan.from_groups([[0, 1], [2]], 10, 0.4), replayed_steps=(2, 2, 3))
    assert [plan.step_evaluations(step) for step in range(5)] == [0, 0, 2, 4, 6]
    assert plan.branch_steps == [4, 4, 3]
    assert plan.evaluations_independent == 60
    assert [plan.replays(step).tolist() for step in (1, 2, 3)] == [
        [True] * 3,
        [False, False, True],
        [False] * 3,
    ]
    apart = replace(plan, replayed_steps=(4, 7, 0))  # may differ once their node has parted
    assert apart.branch_steps == [4, 7, 0]
    assert apart.subset([2]).replayed_steps == (0,)


def test_plans_stored_before_there_was_replay_are_read() -> None:
    plan = SharePlan.from_groups([[0, 1]], 10)
    stored = json.loads(plan.to_json())
    del stored["replayed_steps"]
    assert SharePlan.from_json(json.dumps(stored)) == plan


# -- in and out


@settings(max_examples=150, deadline=None)
@given(plans())
def test_json_reads_back_as_the_same_plan(plan: SharePlan) -> None:
    again = SharePlan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert isinstance(again.share_ratio, type(plan.share_ratio))


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "not a share plan"),
        ("{", "not a share plan"),
        ("[1, 2]", "format"),
        ('{"format": "other"}', "format"),
        ('{"format": "sagediff.SharePlan", "version": 2}', "version 2"),
        ('{"format": "sagediff.SharePlan", "version": 1}', "share_ratio"),
    ],
)
def test_text_that_is_no_plan_is_refused(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        SharePlan.from_json(text)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_steps": 0}, "num_steps"),
        ({"levels": []}, "step 0"),
        ({"levels": [[0, [0, 1]], [2, [0, 0]]]}, "joins"),
        ({"levels": 7}, "not a share plan"),
        ({"levels": [[0, [0, "x"]]]}, "not a share plan"),
        ({"levels": [[0]]}, "not a share plan"),
        ({"unguided_steps": 11}, "unguided_steps"),
        ({"calls_per_step": [1]}, "calls_per_step"),
        ({"replayed_steps": [1]}, "replayed_steps"),
        ({"replayed_steps": [1, 11]}, "replayed_steps"),
        ({"replayed_steps": [1, 2]}, "prompts 0 and 1 are one node until step 4"),
    ],
)
def test_a_stored_plan_that_was_damaged_is_refused(changes: dict[str, Any], words: str) -> None:
    good = json.loads(SharePlan.from_groups([[0, 1]], 10).to_json())
    with pytest.raises(PlanError, match=words):
        SharePlan.from_json(json.dumps(good | changes))


@pytest.mark.parametrize(
    "levels, words",
    [
        ((), "step 0"),
        (((1, (0, 1)),), "step 0"),
        (((0, (1, 0)),), "numbered from 0"),
        (((0, (0, 2)),), "numbered from 0"),
        (((0, (0, 0)), (3, (0, 1)), (3, (0, 1))), "growing steps"),
        (((0, (0, 0)), (9, (0, 1))), "growing steps below 5"),
        (((0, (0, 0)), (2, (0, 1, 2))), "3 prompts, not 2"),
        (((0, (0, 1)), (2, (0, 0))), "step 2 joins"),
        (((0, (0, 0, 1)), (2, (0, 1, 1))), "step 2 joins"),
    ],
)
def test_partitions_that_do_not_refine_are_refused(levels: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        SharePlan(5, levels)


@pytest.mark.parametrize(
    "groups, words",
    [
        ([[0, 1], [3]], r"prompts 0\.\.2 exactly once"),
        ([[0, 1], [1]], "exactly once"),
        ([[1, 2]], "exactly once"),
        ([[0, -1]], "exactly once"),
        ([[0], []], "empty"),
    ],
)
def test_groups_that_do_not_cover_the_prompts_once_are_refused(groups: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        SharePlan.from_groups(groups)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"share_ratio": -0.1}, "share_ratio"),
        ({"share_ratio": 1.1}, "share_ratio"),
        ({"share_ratio": float("nan")}, "share_ratio"),
        ({"share_ratio": [0.1, 0.2]}, r"one per group \(3\), got 2"),
        ({"share_ratio": [0.1, 0.2, 1.2]}, "share_ratio"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": True}, "num_steps"),
        ({"num_steps": 2.5}, "num_steps"),
        ({"unguided_steps": -1}, "unguided_steps"),
        ({"unguided_steps": 31}, "unguided_steps"),
        ({"unguided_steps": 0.5}, "unguided_steps"),
        ({"shared_guidance": -1.0}, "shared_guidance"),
        ({"shared_guidance": float("inf")}, "shared_guidance"),
        ({"rows_per_prompt": 9}, "rows_per_prompt"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        SharePlan.from_groups(GROUPS, **options)


def test_calls_per_step_must_fit_the_steps() -> None:
    plan = SharePlan.from_groups(GROUPS, 3)
    for calls in ([1, 1], [1, 1, 0]):
        with pytest.raises(PlanError, match="calls_per_step"):
            plan.recost(calls_per_step=calls)


# -- subsets


@settings(max_examples=100, deadline=None)
@given(plans(), st.data())
def test_the_cost_is_additive_over_disjoint_subsets(plan: SharePlan, data: st.DataObject) -> None:
    taken = data.draw(st.lists(st.booleans(), min_size=len(plan.groups), max_size=len(plan.groups)))
    parts = [
        [i for group, side in zip(plan.groups, taken, strict=True) if side == which for i in group]
        for which in (True, False)
    ]
    subsets = [plan.subset(part) for part in parts if part]
    assert sum(part.evaluations for part in subsets) == plan.evaluations
    assert sum(part.evaluations_independent for part in subsets) == plan.evaluations_independent
    for part, subset in zip([part for part in parts if part], subsets, strict=True):
        np.testing.assert_allclose(subset.prompt_evaluations, plan.prompt_evaluations[part])
        assert subset.branch_steps == [plan.branch_steps[i] for i in part]


def test_a_subset_keeps_its_groups_and_claims_no_ratio_of_theirs() -> None:
    plan = SharePlan.from_groups(GROUPS, 10, [0.2, 0.9, 0.7])
    subset = plan.subset([5, 4, 0, 2, 3])
    assert subset.share_ratio is None  # one per group, in an order that a part cannot tell
    assert subset.groups == [[0, 1], [2, 3, 4]]


def test_half_a_group_and_a_prompt_named_twice_are_refused() -> None:
    plan = SharePlan.from_groups(GROUPS, 10)
    with pytest.raises(PlanError, match=r"whole groups.*\[0, 2, 3\]"):
        plan.subset([0, 2, 1])
    with pytest.raises(PlanError, match="once"):
        plan.subset([1, 1])


# -- words and noise


def test_printed_it_says_what_it_saves() -> None:
    plan = SharePlan.from_groups(GROUPS, 10, 0.4, shared_guidance=1.0, unguided_steps=1)
    first, *rest = str(plan).splitlines()
    assert f"{plan.cost_saving:.1%} saved" in first
    assert "6 prompts in 3 groups, 10 steps, guidance 1 while shared, the first 1 without guidance" in first
    assert f"{plan.evaluations} evaluations instead of {plan.evaluations_independent}" in first
    assert rest[0].strip() == "group 0: prompts 0, 2, 3; branch point 4"
    many = str(SharePlan.from_groups([[i] for i in range(50)], 10))
    assert len(many.splitlines()) == 22 and many.endswith("30 more groups")


def draws(plan: SharePlan, seed: Any) -> torch.Tensor:
    """The first numbers of every prompt's generator, (N, 4)."""
    return torch.stack([torch.randn(4, generator=generator) for generator in plan.generators(seed)])


@pytest.mark.parametrize("seed", [0, 123456789, [9, 8, 7, 6, 5, 4]])
def test_generators_are_equal_within_a_group_and_different_between(seed: Any) -> None:
    plan = SharePlan.from_groups(GROUPS, 10)
    noise = draws(plan, seed)
    for one in range(6):
        for two in range(6):
            together = plan.partition(0)[one] == plan.partition(0)[two]
            assert torch.equal(noise[one], noise[two]) == bool(together)
    assert torch.equal(noise, draws(plan, seed))


def test_another_seed_gives_other_noise_and_a_groups_is_its_first_members() -> None:
    plan = SharePlan.from_groups(GROUPS, 10)
    assert not torch.equal(draws(plan, 0), draws(plan, 1))
    own = draws(plan, [9, 8, 7, 6, 5, 4])
    assert torch.equal(own[3], torch.randn(4, generator=torch.Generator().manual_seed(9)))
    with pytest.raises(PlanError, match=r"one per prompt \(6\), got 2"):
        plan.generators([1, 2])


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": [[0, [0, 1.5]]]},
        {"levels": [[0, [0, "1"]]]},
        {"levels": [[0, [0, True]]]},
        {"levels": [["0", [0, 1]]]},
        {"shared_guidance": "high"},
        {"shared_guidance": [1]},
        {"share_ratio": "0.4"},
        {"share_ratio": [0.4, None, {}]},
        {"share_ratio": 7},
        {"rows_per_prompt": True},
        {"calls_per_step": [1.5] * 10},
        {"calls_per_step": 3},
        {"replayed_steps": ["1", "1"]},
    ],
)
def test_a_plan_of_the_wrong_types_is_refused_and_not_rounded(changes: dict[str, Any]) -> None:
    good = json.loads(SharePlan.from_groups([[0], [1]], 10).to_json())
    with pytest.raises(PlanError) as raised:
        SharePlan.from_json(json.dumps(good | changes))
    assert "\n" not in str(raised.value)


def test_a_plan_out_of_bounds_is_one_line() -> None:
    for text in ("[" * 100_000, '{"format": ' * 100_000, "9" * 5000, '{"a": NaN}', '{"a": "\\ud800"}'):
        with pytest.raises(PlanError) as raised:
            SharePlan.from_json(text)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
