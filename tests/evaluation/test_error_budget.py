"""The choice within a budget: monotone, costed as the plan is, and equal prompts share as long as the grid allows."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from sagediff.errors import InputError
from sagediff.evaluation.error_budget import Choice
from sagediff.evaluation.gap_model import GapModel, spread_of
from sagediff.evaluation.search import FAMILIES, Family
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing

STEPS = 10
MODEL = GapModel(
    1.1, (1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2), (*np.linspace(0.1, 1.9, STEPS), math.inf)
)
BUDGETS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 3.0)


def choice_of(seed: int, families: tuple[Family, ...] = FAMILIES, **base: object) -> Choice:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(6, 8))
    vectors = centres[generator.integers(6, size=40)] + 0.6 * generator.normal(size=(40, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    sharing = replace(Sharing(), **base)  # type: ignore[arg-type]

    def plan(policy: Sharing) -> SharePlan:
        return policy.plan(vectors, STEPS)

    ratios = tuple(k / 10 for k in range(1, 10))
    return Choice(sharing, (0.0, 0.4, 0.7, 0.9), ratios, (4, 16), families, vectors, plan)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("families", [FAMILIES, ("fixed",), ("together",), ("tree",)])
def test_a_larger_budget_never_saves_less_and_is_kept(seed: int, families: tuple[Family, ...]) -> None:
    choice = choice_of(seed, families)
    found = [choice.best(MODEL, budget) for budget in BUDGETS]
    assert all(a.cost_saving <= b.cost_saving + 1e-12 for a, b in pairwise(found))
    assert found[0].policy.share_ratio == 0 and found[-1].cost_saving > found[1].cost_saving
    for budget, each in zip(BUDGETS, found, strict=True):
        assert each.error <= budget + 1e-9
        assert each.cost_saving == pytest.approx(choice.plan(each.policy).cost_saving)
        assert choice.best(MODEL, budget) == each


def test_with_fresh_noise_at_the_hand_over_budgets_are_kept_too() -> None:
    choice, noisy = replace(choice_of(0), sizes=(16,)), replace(MODEL, renewed=1.0)
    found = [choice.best(noisy, budget) for budget in (0.0, 0.02, 0.05, 0.1)]
    assert all(a.cost_saving <= b.cost_saving + 1e-12 for a, b in pairwise(found))
    assert all(
        each.error <= budget + 1e-9 for each, budget in zip(found, (0.0, 0.02, 0.05, 0.1), strict=True)
    )
    assert found[-1].cost_saving > choice.best(MODEL, 0.1).cost_saving


@pytest.mark.parametrize("base", [{}, {"shared_guidance": None}, {"unguided": 0.3}, {"unguided": 1.0}])
def test_the_saving_is_the_plans_however_it_is_guided(base: dict[str, object]) -> None:
    choice = replace(choice_of(0, **base), sizes=(16,), thresholds=(0.4, 0.7))
    for family in FAMILIES:
        found = replace(choice, families=(family,)).best(MODEL, 0.5)
        assert found.policy.share_ratio > 0
        assert found.cost_saving == pytest.approx(choice.plan(found.policy).cost_saving)


def test_more_families_never_save_less() -> None:
    choice = replace(choice_of(1), sizes=(4,))
    every = choice.best(MODEL, 0.4).cost_saving
    for family in FAMILIES:
        assert replace(choice, families=(family,)).best(MODEL, 0.4).cost_saving <= every + 1e-12


def test_the_tree_of_stages_spends_one_budget() -> None:
    """Whoever goes through all stages has the error of all of them."""
    choice = replace(choice_of(2), families=("tree",), sizes=(16,), ratios=(0.3, 0.6, 0.9))
    trees = [
        found for budget in (0.2, 0.3, 0.4, 0.6, 0.9) if (found := choice.best(MODEL, budget)).policy.rungs
    ]
    assert trees
    for found in trees:
        ends = [round(rung.share_ratio * STEPS) for rung in found.policy.ladder]
        whole = choice.plan(found.policy)
        error, begin = 0.0, 0
        for end in ends:  # each stage on the groups that it really has
            nodes = whole.partition(begin)
            groups = [np.flatnonzero(nodes == node) for node in set(nodes.tolist())]
            shared = [group for group in groups if len(group) > 1]
            spread = np.average(
                [spread_of(choice.vectors[g]) for g in shared], weights=[len(g) for g in shared]
            )
            errors = MODEL.squared_errors(float(spread))
            error, begin = error + errors[end] - errors[begin], end
        assert found.error == pytest.approx(error**0.5)


def test_equal_prompts_share_as_long_as_the_grid_allows() -> None:
    choice = choice_of(0)
    vectors = np.repeat(choice.vectors[:1], 8, axis=0)
    equal = replace(choice, vectors=vectors, plan=lambda policy: policy.plan(vectors, STEPS))
    found = equal.best(MODEL, 0.0)
    assert found.policy.share_ratio == 0.9 and found.error == 0


def test_a_fixed_splits_error_can_be_asked_for() -> None:
    choice = choice_of(0)
    errors = [choice.error_of(MODEL, Sharing(0.4, ratio, 4)) for ratio in (0.0, 0.3, 0.6)]
    assert errors[0] == 0 and errors == sorted(errors)
    assert choice.error_of(MODEL, Sharing(1.0, 0.5)) == 0  # only equal ones would share
    fixed = replace(choice, families=("fixed",), sizes=(4,), thresholds=(0.4,))
    assert fixed.best(MODEL, errors[1]).policy.share_ratio >= 0.3


@pytest.mark.parametrize("budget", [-0.1, math.nan])
def test_a_budget_is_a_number_from_0_on(budget: float) -> None:
    with pytest.raises(InputError, match="budget"):
        choice_of(0).best(MODEL, budget)
