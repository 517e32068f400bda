"""The search for the plan policy that saves most within a quality budget. Pure: saving and quality are asked for.

A policy is a profile over a grid of thresholds: for each threshold the share ratio of prompts that similar, growing
with the threshold; beside it, the largest size of a group. The cost of every policy is known without running it.
Quality is taken to fall as a profile shares more (at no threshold less, at one more), but for what chance in grouping
adds. First the longest fixed split of each size and threshold is found, unless even the longest of the grid would save
less than what is there; then ascents from them, the best first: of all profiles that share one step of the grid more,
the one that saves most is run, and where it keeps within the budget, it goes on from there.

Where prompts repeat, their images must stay apart too: that one is like the other does not show in its quality.

Where the quality of each prompt is told, a policy is within the budget only if the prompts are enough to show it
(`certainty.py`). If they could not show it for any policy, none is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from sagediff.errors import InputError
from sagediff.evaluation.certainty import loss_at_most, prompts_needed
from sagediff.plan.ladder import Parting
from sagediff.plan.sharing import Sharing

Profile: TypeAlias = tuple[float, ...]
"""For each threshold of the grid the share ratio of prompts at least that similar; 0 where they do not share."""
Family: TypeAlias = Literal["fixed", "together", "tree"]
FAMILIES: tuple[Family, ...] = ("fixed", "together", "tree")
_Start: TypeAlias = "tuple[Profile, int, Trial]"  # a fixed split within the budget and its group size


@dataclass(frozen=True)
class Measured:
    """What a policy's images are like, one number per seed.

    Attributes:
        quality: mean over prompts; higher is better.
        apart: mean distance between the images of equal prompts; empty where no prompt repeats.
        each: quality of each prompt, a mean over seeds and repetitions; empty where that is not known.
    """

    quality: tuple[float, ...]
    apart: tuple[float, ...] = ()
    each: tuple[float, ...] = ()


@dataclass(frozen=True)
class Trial:
    """A policy that was run, and what came out."""

    policy: Sharing
    cost_saving: float
    measured: Measured

    @property
    def mean(self) -> float:
        """Quality, over the seeds."""
        return _mean(self.measured.quality)

    @property
    def apart(self) -> float | None:
        """How far apart equal prompts' images are, over the seeds; None where no prompt repeats."""
        return _mean(self.measured.apart) if self.measured.apart else None


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        best: saves most within the budget; sharing nothing if nothing else does.
        least: the quality that had to be kept.
        least_apart: how far apart equal prompts' images had to stay; None where no prompt repeats.
        trials: all that was run, independent sampling first.
        search: what was looked for.
        alone: independent sampling.
    """

    best: Trial
    least: float
    least_apart: float | None
    trials: tuple[Trial, ...]
    search: Search
    alone: Trial

    @property
    def can_show(self) -> bool:
        """Whether the prompts could show that anything is within the budget."""
        if not self.alone.mean > 0:
            return False
        each = self.alone.measured.each
        needed = prompts_needed(self.search.budget, self.search.confidence)
        return not each or (needed is not None and len(each) >= needed)

    def loss_at_most(self, trial: Trial) -> float | None:
        """Upper bound of the part of the quality that a trial loses; None where prompts are not told apart."""
        before, after = self.alone.measured.each, trial.measured.each
        if not before or trial is self.alone:
            return None
        return loss_at_most(before, after, self.search.confidence)

    def keeps(self, trial: Trial) -> bool:
        """Whether a trial is within the budget."""
        apart = trial.apart is None or self.least_apart is None or trial.apart >= self.least_apart
        lost = self.loss_at_most(trial)
        return apart and trial.mean >= self.least and (lost is None or lost <= self.search.budget)


@dataclass(frozen=True)
class Search:
    """What is searched and how.

    Attributes:
        base: everything of the policy that is not searched.
        thresholds: grid, growing.
        ratios: grid, growing, in (0, 1].
        budget: part of independent sampling's quality that may be lost, in [0, 1).
        families: "fixed" (one threshold, one ratio), "together", "tree" (`Sharing.parting`).
        max_trials: of profiles beyond the fixed ones, for each family.
        sizes: grid of the most members of a group, growing; empty for the base's own.
        apart: part of independent sampling's distance between the images of equal prompts that has to stay,
            in [0, 1].
        confidence: how sure it must be that no more than the budget is lost, in [0.5, 1).

    Raises:
        InputError: an empty or unordered grid, or a number out of range.
    """

    base: Sharing
    thresholds: tuple[float, ...]
    ratios: tuple[float, ...]
    budget: float = 0.01
    families: tuple[Family, ...] = FAMILIES
    max_trials: int = 12
    sizes: tuple[int, ...] = ()
    apart: float = 0.25
    confidence: float = 0.8

    def __post_init__(self) -> None:
        for name, grid, low in (("thresholds", self.thresholds, -1), ("ratios", self.ratios, 0)):
            if not grid or list(grid) != sorted(set(grid)) or not low <= grid[0] <= grid[-1] <= 1:
                raise InputError(f"{name} must be growing numbers in [{low}, 1], got {list(grid)}")
        if self.ratios[0] == 0:
            raise InputError("ratios must be above 0; sharing nothing is always measured")
        if list(self.sizes) != sorted(set(self.sizes)) or min(self.sizes, default=2) < 2:
            raise InputError(f"sizes must be growing numbers of at least 2, got {list(self.sizes)}")
        if not 0 <= self.budget < 1:
            raise InputError(f"the budget must lie in [0, 1), got {self.budget}")
        if not 0 <= self.apart <= 1:
            raise InputError(f"apart must lie in [0, 1], got {self.apart}")
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"the confidence must lie in [0.5, 1), got {self.confidence}")
        if not self.families or not set(self.families) <= set(FAMILIES):
            raise InputError(f"families must be some of {', '.join(FAMILIES)}, got {list(self.families)}")

    def policy(self, profile: Profile, parting: Parting = "tree", size: int | None = None) -> Sharing:
        """The policy of a profile; `size` None takes the base's."""
        return laddered(self.base, self.thresholds, profile, parting, size)


def laddered(
    base: Sharing,
    thresholds: Sequence[float],
    profile: Profile,
    parting: Parting = "tree",
    size: int | None = None,
) -> Sharing:
    """The policy of a profile over thresholds: a rung wherever its ratio grows; `size` None takes the base's."""
    rungs: list[tuple[float, float]] = []
    for threshold, ratio in zip(thresholds, profile, strict=True):
        if ratio > (rungs[-1][1] if rungs else 0.0):
            rungs.append((threshold, ratio))
    if not rungs:
        return replace(base, share_ratio=0.0, rungs=())
    (threshold, ratio), *further = rungs
    return replace(
        base, threshold=threshold, share_ratio=ratio, rungs=tuple(further), parting=parting,
        max_group_size=size or base.max_group_size,
    )  # fmt: skip


def tune(
    search: Search,
    saving: Callable[[Sharing], float],
    measure: Callable[[Sharing], Measured],
    on_trial: Callable[[Trial], None] | None = None,
) -> Tuned:
    """Search; `measure` runs the model, once a policy, `saving` is free.

    Args:
        measure: the same seeds every time.
        on_trial: told of every policy that was run.
    """
    trials: list[Trial] = []

    def run(policy: Sharing) -> Trial:
        trial = Trial(policy, saving(policy), measure(policy))
        trials.append(trial)
        if on_trial is not None:
            on_trial(trial)
        return trial

    none = run(search.policy((0.0,) * len(search.thresholds)))
    least_apart = None if none.apart is None else none.apart * search.apart
    bar = Tuned(none, none.mean * (1 - search.budget), least_apart, (none,), search, none)
    if not bar.can_show:
        return bar
    best, start = none, len(search.ratios) // 2
    fixed: list[_Start] = []
    for size in reversed(search.sizes or (search.base.max_group_size,)):
        for number in range(len(search.thresholds)):
            top = search.policy(_fixed(search, number, search.ratios[-1]), size=size)
            reached = max([trial.cost_saving for _, _, trial in fixed], default=0.0)
            if saving(top) <= reached:
                continue
            found = _longest(search, number, size, start, run, bar.keeps)
            if found is not None:
                start = found[0]
                fixed.append((_fixed(search, number, search.ratios[start]), size, found[1]))
    if "fixed" in search.families:
        best = max([none, *(trial for _, _, trial in fixed)], key=lambda trial: trial.cost_saving)
    fixed.sort(key=lambda entry: entry[2].cost_saving, reverse=True)
    partings: list[Parting] = [f for f in ("tree", "together") if f in search.families]
    for parting in partings:
        climbed = _ascend(search, fixed, parting, saving, run, bar.keeps)
        best = max([best, *climbed], key=lambda trial: trial.cost_saving)
    return replace(bar, best=best, trials=tuple(trials))


def _longest(
    search: Search,
    number: int,
    size: int,
    start: int,
    run: Callable[[Sharing], Trial],
    keeps: Callable[[Trial], bool],
) -> tuple[int, Trial] | None:
    """(number of the ratio, trial) of the longest fixed split at one threshold and size within the budget.

    Begins at the ratio that the threshold before could bear, as closer prompts mostly bear as much.
    """
    kept: tuple[int, Trial] | None = None
    place, step = start, 0
    while 0 <= place < len(search.ratios):
        trial = run(search.policy(_fixed(search, number, search.ratios[place]), size=size))
        within = keeps(trial)
        if within:
            kept = (place, trial)
        if step == 0:
            step = 1 if within else -1
        elif within != (step > 0):  # up until it breaks, or down until it holds
            break
        place += step
    return kept


def _fixed(search: Search, number: int, ratio: float) -> Profile:
    """The fixed split at a threshold of the grid."""
    return tuple(ratio if i >= number else 0.0 for i in range(len(search.thresholds)))


def _ascend(
    search: Search,
    starts: Sequence[_Start],
    parting: Parting,
    saving: Callable[[Sharing], float],
    run: Callable[[Sharing], Trial],
    keeps: Callable[[Trial], bool],
) -> list[Trial]:
    """The trials within the budget on the ways up from profiles that are, one after the other."""
    failed: list[tuple[Profile, int]] = []
    kept: dict[tuple[Profile, int], Trial] = {}
    left = search.max_trials
    for profile, size, best in starts:
        while left:
            above = [
                (saving(search.policy(higher, parting, size)), higher)
                for higher in _neighbours(profile, search.ratios)
                if (higher, size) not in kept
                and not any(
                    _shares_more(higher, other) and size >= least_size for other, least_size in failed
                )
            ]
            above = [entry for entry in above if entry[0] > best.cost_saving]
            if not above:
                break
            left -= 1
            _, higher = max(above)
            trial = run(search.policy(higher, parting, size))
            if keeps(trial):
                profile, best = higher, trial
                kept[higher, size] = trial
            else:
                failed.append((higher, size))
    return list(kept.values())


def _neighbours(profile: Profile, ratios: Sequence[float]) -> Iterator[Profile]:
    """Profiles that share one step of the grid more at one threshold, and as much as that at those above it."""
    grid = (0.0, *ratios)
    for number, ratio in enumerate(profile):
        place = grid.index(ratio) + 1
        if place < len(grid):
            yield tuple(max(r, grid[place]) if i >= number else r for i, r in enumerate(profile))


def _shares_more(one: Profile, other: Profile) -> bool:
    """Whether `one` shares at no threshold less than `other`."""
    return all(a >= b for a, b in zip(one, other, strict=True))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
