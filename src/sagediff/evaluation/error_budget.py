"""The policy that saves most while no group's predicted error exceeds a budget. Pure: the error is that of `gap_model`.

Policies are those of the search over quality: a fixed split, a branch point for each group by its likeness, and trees,
over a grid of thresholds, share ratios and group sizes. What a policy costs is counted on the prompts' own groups. In a
tree the squared errors of the stages that a prompt goes through add up, so that who goes through all has the most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sagediff.errors import InputError
from sagediff.evaluation.gap_model import Floats, GapModel, spread_of
from sagediff.evaluation.search import Family, laddered
from sagediff.plan.grouping import group_prompts
from sagediff.plan.ladder import Parting, Rung, group_ratios, nested_groups
from sagediff.plan.levels import part_of_steps
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing

Groups = list[list[int]]
_STAGES = 3  # of a tree at most: a further one would save little, and there are many ways to choose them


@dataclass(frozen=True)
class Chosen:
    """A policy, its cost saving, and the error predicted of the prompts that share longest."""

    policy: Sharing
    cost_saving: float
    error: float


@dataclass(frozen=True)
class Choice:
    """What policies there are to choose from.

    Attributes:
        base: everything of the policy that is not chosen.
        thresholds, ratios: grids, growing.
        sizes: grid of the most members of a group, growing.
        families: which kinds of policy.
        vectors: (N, D) unit vectors of the prompts, each prompt once.
        plan: what a policy makes of the prompts, costed as the pipeline runs it.
    """

    base: Sharing
    thresholds: tuple[float, ...]
    ratios: tuple[float, ...]
    sizes: tuple[int, ...]
    families: tuple[Family, ...]
    vectors: npt.NDArray[np.float32]
    plan: Callable[[Sharing], SharePlan]

    def error_of(self, model: GapModel, policy: Sharing) -> float:
        """The error predicted of a fixed split: that of its groups' mean spread."""
        groups = group_prompts(self.vectors, policy.threshold, policy.max_group_size)
        spread = _mean_spread(self.vectors, groups)
        if spread is None:  # of two prompts that are just as alike as they must be
            spread = (1 - policy.threshold) / 2
        steps = policy.shared_steps(len(model.scale))
        return model.error(float(model.squared_errors(spread)[steps]), steps)

    def best(self, model: GapModel, budget: float) -> Chosen:
        """The policy that saves most with an error of at most `budget`; sharing nothing if nothing else does.

        A larger budget never saves less where no prompt repeats: it rules out no policy that a smaller one allows.

        Raises:
            InputError: the budget is negative or no number.
        """
        if not budget >= 0:
            raise InputError(f"the budget must be at least 0, got {budget}")
        best = Chosen(self.nothing, self.alone.cost_saving, 0.0)
        for found in self._candidates(model, budget):
            if found.cost_saving > best.cost_saving + 1e-12:
                best = found
        return best

    @property
    def nothing(self) -> Sharing:
        """The policy that shares nothing."""
        return replace(self.base, share_ratio=0.0, rungs=())

    @cached_property
    def alone(self) -> SharePlan:
        """Its plan."""
        return self.plan(self.nothing)

    def _candidates(self, model: GapModel, budget: float) -> Iterator[Chosen]:
        """The policies that could be best."""
        for size in self.sizes:
            chains = self._chains[size]
            singles = [chain for chain in chains if len(chain.numbers) == 1]
            longest = {chain.numbers[0]: _longest(chain, model, budget) for chain in singles}
            if "fixed" in self.families:
                for chain in singles:
                    ratio, error = longest[chain.numbers[0]]
                    if ratio > 0:
                        policy = self._policy(chain.numbers, (ratio,), "tree", size)
                        groups = chain.stages[0]
                        yield self._chosen(policy, groups, [ratio] * len(groups), error)
            if "together" in self.families:
                for chain in chains:
                    found = [longest[number] for number in chain.numbers if number in longest]
                    if len(found) == len(chain.numbers) and _grows([ratio for ratio, _ in found]):
                        ratios = tuple(ratio for ratio, _ in found)
                        policy = self._policy(chain.numbers, ratios, "together", size)
                        branch = group_ratios(self.vectors, chain.stages[0], policy.ladder)
                        yield self._chosen(policy, chain.stages[0], branch, max(error for _, error in found))
            if "tree" in self.families:
                for chain in chains:
                    if (way := chain.cheapest(model, budget)) is not None:
                        ratios = tuple(self.steps(len(model.scale))[end] for end in way.ends)
                        policy = self._policy(chain.numbers, ratios, "tree", size)
                        saving = self.alone.cost_saving + way.saved / self.alone.evaluations_independent
                        yield Chosen(policy, saving, model.error(way.error, way.ends[-1]))

    def _chosen(self, policy: Sharing, groups: Groups, ratios: Sequence[float], error: float) -> Chosen:
        """A policy in which each group has one branch point."""
        of_steps: dict[int, Groups] = {}
        for group, ratio in zip(groups, ratios, strict=True):
            of_steps.setdefault(part_of_steps(ratio, self.alone.num_steps), []).append(group)
        saved = sum(float(_saved(self.alone, found)[step]) for step, found in of_steps.items())
        return Chosen(policy, self.alone.cost_saving + saved / self.alone.evaluations_independent, error)

    def _policy(
        self, numbers: Sequence[int], ratios: Sequence[float], parting: Parting, size: int
    ) -> Sharing:
        """The policy with these ratios from these thresholds on."""
        profile, reached = [], 0.0
        of = dict(zip(numbers, ratios, strict=True))
        for number in range(len(self.thresholds)):
            reached = of.get(number, reached)
            profile.append(reached)
        return laddered(self.base, self.thresholds, tuple(profile), parting, size)

    @cached_property
    def _chains(self) -> dict[int, list[_Chain]]:
        """For each size every choice of thresholds."""
        return {size: list(self._chains_of(size)) for size in self.sizes}

    def _chains_of(self, size: int) -> Iterator[_Chain]:
        """Every choice of thresholds at which some prompts are grouped, with the groups that they make."""

        def beyond(numbers: tuple[int, ...], stages: list[Groups], spreads: list[float]) -> Iterator[_Chain]:
            if len(stages) == _STAGES:
                return
            for number in range(numbers[-1] + 1 if numbers else 0, len(self.thresholds)):
                rungs = [Rung(-1.0, 0.0), Rung(self.thresholds[number], 1.0)]
                groups = (
                    nested_groups(self.vectors, stages[-1], rungs, size)[1][1]
                    if stages
                    else group_prompts(self.vectors, rungs[1].threshold, size)
                )
                spread = _mean_spread(self.vectors, groups)
                if spread is not None:
                    chain = _Chain(self, (*numbers, number), [*stages, groups], [*spreads, spread])
                    yield chain
                    yield from beyond(chain.numbers, chain.stages, chain.spreads)

        return beyond((), [], [])

    def steps(self, num_steps: int) -> dict[int, float]:
        """Branch points of the grid, each with its share ratio."""
        return {step: r for r in self.ratios[::-1] if (step := part_of_steps(r, num_steps)) > 0}


@dataclass(frozen=True)
class _Chain:
    """Thresholds, and the groups of the stages between them; spreads are means over prompts that share."""

    of: Choice
    numbers: tuple[int, ...]
    stages: list[Groups]
    spreads: list[float]

    def cheapest(self, model: GapModel, budget: float) -> _Way | None:
        """The tree that saves most; None if none is within the budget."""
        num_steps = len(model.scale)
        grid, most = self.of.steps(num_steps), budget * (1 + 1e-12)
        ways: dict[int, list[_Way]] = {0: [_Way(0.0, 0.0, ())]}
        for groups, spread in zip(self.stages, self.spreads, strict=True):
            errors = model.squared_errors(spread)
            saved = _saved(self.of.alone, groups)
            following: dict[int, list[_Way]] = {}
            for begin, before in ways.items():
                for end in grid:
                    added = float(errors[end] - errors[begin]) if end > begin else math.inf
                    if model.error(added, end) > most:
                        continue
                    gained = float(saved[end] - saved[begin])
                    following.setdefault(end, []).extend(
                        _Way(way.error + added, way.saved + gained, (*way.ends, end))
                        for way in before
                        if model.error(way.error + added, end) <= most
                    )
            ways = {end: _not_worse(found) for end, found in following.items()}
        last = [way for found in ways.values() for way in found]
        return max(last, key=lambda way: (way.saved, -way.error), default=None)


@dataclass(frozen=True)
class _Way:
    """The first stages of a tree: squared error, evaluations saved, and where each stage ends."""

    error: float
    saved: float
    ends: tuple[int, ...]


def _not_worse(ways: list[_Way]) -> list[_Way]:
    """Those than which no other has less error and saves at least as much."""
    kept: list[_Way] = []
    for way in sorted(ways, key=lambda way: (way.error, -way.saved)):
        if not kept or way.saved > kept[-1].saved:
            kept.append(way)
    return kept


def _longest(chain: _Chain, model: GapModel, budget: float) -> tuple[float, float]:
    """(largest ratio of the grid, its error) of one threshold's groups within the budget; 0 for none."""
    squared = model.squared_errors(chain.spreads[0])
    steps = chain.of.steps(len(model.scale))
    errors = {step: model.error(float(squared[step]), step) for step in steps}
    within = [step for step in steps if errors[step] <= budget * (1 + 1e-12)]
    return (steps[max(within)], errors[max(within)]) if within else (0.0, 0.0)


def _saved(alone: SharePlan, groups: Groups) -> Floats:
    """Evaluations saved by sharing the first 0, 1, ... num_steps steps in these groups, (num_steps + 1,).

    Args:
        alone: the plan of the same prompts in which nobody shares.
    """
    members = [len(group) for group in groups if len(group) > 1]
    rows = [[alone.rows_of_node(step, count) for count in (1, 2)] for step in range(alone.num_steps)]
    saved = [sum(count * single - shared for count in members) for single, shared in rows]
    return np.cumsum([0.0, *saved])


def _mean_spread(vectors: npt.NDArray[np.float32], groups: Sequence[Sequence[int]]) -> float | None:
    """Mean over the prompts that are not alone; None where all are."""
    shared = [group for group in groups if len(group) > 1]
    if not shared:
        return None
    return float(np.average([spread_of(vectors[list(g)]) for g in shared], weights=[len(g) for g in shared]))


def _grows(ratios: Sequence[float]) -> bool:
    return all(a <= b for a, b in pairwise(ratios)) and ratios[0] > 0
