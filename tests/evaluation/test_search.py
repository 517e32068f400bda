"""The search for a plan policy keeps within the budget and finds what an exhaustive one finds. No model is run."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest

from sagediff.errors import InputError
from sagediff.evaluation.search import Measured, Search, Trial, tune
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing

pytestmark = pytest.mark.xdist_group("search")  # one process keeps the plans
THRESHOLDS, RATIOS = (0.2, 0.5, 0.8), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
STEPS = 20


def vectors_of(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(6, 8))[rng.integers(0, 6, 40)] + 0.5 * rng.normal(size=(40, 8))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@cache
def plan_of(seed: int, policy: Sharing) -> SharePlan:
    """Trying all asks for the same plans in every world of a seed, twice each; making them is what takes long."""
    return policy.plan(vectors_of(seed), STEPS)


class World:
    """A model whose quality falls by `harm[rung]` for each prompt-step shared at that likeness."""

    def __init__(self, seed: int, harm: tuple[float, ...]) -> None:
        self.seed, self.vectors, self.harm, self.runs = seed, vectors_of(seed), harm, 0

    def saving(self, policy: Sharing) -> float:
        return plan_of(self.seed, policy).cost_saving

    def quality(self, policy: Sharing) -> Measured:
        self.runs += 1
        plan = plan_of(self.seed, policy)
        loss = 0.0
        for step in range(STEPS):
            nodes = plan.partition(step)
            for node in range(nodes.max() + 1):
                members = np.flatnonzero(nodes == node)
                if len(members) > 1:
                    alike = float((self.vectors[members] @ self.vectors[members].T).min())
                    rung = sum(alike >= t - 1e-6 for t in THRESHOLDS[1:])
                    loss += self.harm[rung] * len(members) * (step / STEPS) ** 2
        return Measured((1 - loss / 40, 1 - loss / 40))


def search(**options: Any) -> Search:
    return Search(Sharing(), THRESHOLDS, RATIOS, **({"budget": 0.01, "max_trials": 100} | options))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("harm", [(0.02, 0.005, 0.001), (0.01, 0.01, 0.01), (0.3, 0.3, 0.3), (0.0, 0.0, 0.0)])
def test_the_search_finds_nearly_what_trying_all_finds(seed: int, harm: tuple[float, ...]) -> None:
    world, searched = World(seed, harm), search(families=("fixed", "tree"))
    found = tune(searched, world.saving, world.quality)
    assert found.best.mean >= found.least == pytest.approx(0.99)
    tried = world.runs
    profiles = itertools.combinations_with_replacement((0.0, *RATIOS), len(THRESHOLDS))
    every = [searched.policy(profile) for profile in profiles]
    within = [p for p in every if sum(world.quality(p).quality) / 2 >= found.least]
    assert found.best.cost_saving >= 0.9 * max(map(world.saving, within))
    assert tried <= len(every)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("harm", [(0.02, 0.005, 0.001), (0.01, 0.01, 0.01), (0.0, 0.0, 0.0)])
def test_the_size_of_groups_is_searched_too(seed: int, harm: tuple[float, ...]) -> None:
    alone = []
    for size in (2, 4, 16):
        world = World(seed, harm)
        found = tune(search(sizes=(size,), families=("fixed",)), world.saving, world.quality)
        assert {t.policy.max_group_size for t in found.trials if t.cost_saving} == {size}
        alone.append((found.best.cost_saving, world.runs))
    world = World(seed, harm)
    both = tune(search(sizes=(2, 4, 16), families=("fixed",)), world.saving, world.quality)
    assert both.best.cost_saving == max(saving for saving, _ in alone)
    assert both.best.mean >= both.least
    assert world.runs < sum(runs for _, runs in alone)  # what could not save more is not run


def test_equal_prompts_must_stay_apart() -> None:
    """The longer the closest share, the more alike their images; quality alone would not stop it."""
    world = World(0, (0.0, 0.0, 0.0))
    longest = max(RATIOS)

    def measure(policy: Sharing) -> Measured:
        return Measured(world.quality(policy).quality, (1 - policy.ladder[-1].share_ratio,) * 2)

    def found(apart: float) -> float:
        best = tune(search(apart=apart), world.saving, measure).best
        assert best.apart is not None and best.apart >= apart - 1e-9
        return best.policy.ladder[-1].share_ratio

    assert found(0.0) == longest
    assert found(0.45) == 0.5
    assert found(1.0) == 0.0  # only independent sampling is as far apart as itself


def test_a_family_that_is_left_out_is_not_tried() -> None:
    world = World(0, (0.02, 0.005, 0.001))
    fixed = tune(search(families=("fixed",)), world.saving, world.quality)
    assert not any(trial.policy.rungs for trial in fixed.trials)
    both = tune(search(families=("fixed", "together")), world.saving, world.quality)
    assert both.best.cost_saving >= fixed.best.cost_saving
    assert {t.policy.parting for t in both.trials if t.policy.rungs} <= {"together"}


def test_independent_sampling_is_the_answer_when_nothing_else_holds() -> None:
    world = World(1, (5.0, 5.0, 5.0))
    told: list[Trial] = []
    found = tune(search(budget=0.0), world.saving, world.quality, told.append)
    assert found.best.cost_saving == 0 and tuple(told) == found.trials


class Prompts:
    """So many prompts, each right alone; sharing spoils every image whose number is a multiple of `spoils`."""

    def __init__(self, count: int, spoils: int | None = None, right: float = 1.0) -> None:
        self.alone = (right,) * count
        self.shared = tuple(0.0 if spoils and i % spoils == 0 else right for i in range(count))

    def quality(self, policy: Sharing) -> Measured:
        each = self.shared if policy.share_ratio else self.alone
        return Measured((sum(each) / len(each),), (), each)


BOLD = {"sizes": (8, 32), "families": ("fixed", "together", "tree")}


@pytest.mark.parametrize("count", [1, 4, 30, 99, 150])
@pytest.mark.parametrize("budget", [0.0, 0.001, 0.005])
def test_prompts_that_cannot_show_the_budget_are_not_asked(count: int, budget: float) -> None:
    """Not one image went wrong, and still nothing is known of one in a hundred."""
    world = World(0, (0.0, 0.0, 0.0))
    found = tune(search(budget=budget, **BOLD), world.saving, Prompts(count).quality)
    assert not found.can_show and found.best is found.alone and found.trials == (found.alone,)


def test_enough_prompts_show_it_and_what_they_do_not_show_is_not_taken() -> None:
    world = World(0, (0.0, 0.0, 0.0))

    def best(prompts: Prompts, **options: Any) -> float:
        found = tune(search(**BOLD | options), world.saving, prompts.quality)
        assert found.can_show and (found.best is found.alone or found.keeps(found.best))
        return found.best.cost_saving

    assert best(Prompts(256)) > 0.2
    assert best(Prompts(256, spoils=128)) == 0  # two of 256 are 0.8 %, and may as well be 2 %
    assert best(Prompts(2560, spoils=1280)) > 0.2
    assert best(Prompts(256), confidence=0.95, budget=0.02) > 0.2
    found = tune(search(confidence=0.95, **BOLD), world.saving, Prompts(256).quality)
    assert not found.can_show


def test_nothing_can_be_lost_where_nothing_is_right() -> None:
    world = World(0, (0.0, 0.0, 0.0))
    found = tune(search(**BOLD), world.saving, Prompts(1000, right=0.0).quality)
    assert not found.can_show and found.best.cost_saving == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"thresholds": ()},
        {"ratios": (0.4, 0.2)},
        {"ratios": (0.0, 0.2)},
        {"budget": 1.0},
        {"families": ("all",)},
        {"sizes": (8, 4)},
        {"sizes": (1, 4)},
        {"confidence": 0.4},
        {"confidence": 1.0},
    ],
)
def test_searches_that_cannot_be(wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"base": Sharing(), "thresholds": THRESHOLDS, "ratios": RATIOS}
    with pytest.raises(InputError):
        Search(**(given | wrong))
