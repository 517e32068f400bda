"""What a bench compares: each setting is one way of sampling, whatever the seed. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sagediff.errors import InputError
from sagediff.files.digest import object_digest
from sagediff.plan.sharing import Sharing

Weights = Literal["base", "standard", "sage"]

AFTER = {"base": "", "standard": ", standard fine-tuning", "sage": ", SAGE training"}


@dataclass(frozen=True)
class Setting:
    """One way of sampling.

    Attributes:
        method: its name in tables and plots; settings of one method differ in the numbers below only.
        weights: "base", or those after fine-tuning: "standard", "sage".
        num_steps: sampling steps.
        sharing: how prompts share; that of `independent` for independent sampling.
    """

    method: str
    weights: Weights
    num_steps: int
    sharing: Sharing

    @property
    def grouping(self) -> tuple[float, int]:
        """Threshold and largest size of the groups, also of those that independent sampling is measured in."""
        return self.sharing.threshold, self.sharing.max_group_size

    @property
    def key(self) -> str:
        """A short name that no other setting has, good for file names."""
        digest = object_digest(self.record(), size=4)
        return f"{self.weights}-steps{self.num_steps}-share{self.sharing.share_ratio:g}-{digest}"

    def record(self) -> dict[str, Any]:
        """All of it as JSON has it, the options of sharing beside the rest."""
        own = {"method": self.method, "weights": self.weights, "num_steps": self.num_steps}
        return own | self.sharing.record()

    def words(self) -> str:
        """The numbers, for a person."""
        return ", ".join([f"{self.num_steps} steps", *self.sharing.numbers_in_words()])


def independent(threshold: float, max_group_size: int = 8, unguided: float = 0.0) -> Sharing:
    """Nothing shared; the groups are those that diversity is measured in."""
    return Sharing(threshold, 0.0, max_group_size, shared_guidance=None, unguided=unguided)


@dataclass(frozen=True)
class Grid:
    """The numbers that a bench runs over.

    Attributes:
        steps, share_ratios, thresholds: each with each.
        unguided: baselines without guidance in the first part of the steps (arXiv 2404.07724); may be empty.
        sharing: all else of shared sampling.
        fine_tuned: which weights there are beside the base model's.

    Raises:
        InputError: an empty list or a number out of range, named as on the command line.
    """

    steps: tuple[int, ...]
    share_ratios: tuple[float, ...]
    thresholds: tuple[float, ...]
    unguided: tuple[float, ...] = ()
    sharing: Sharing = field(default_factory=Sharing)
    fine_tuned: tuple[Weights, ...] = ()

    def __post_init__(self) -> None:
        for name, values in (("--steps", self.steps), ("--threshold", self.thresholds)):
            if not values:
                raise InputError(f"{name} needs at least one value")
        _check("--steps", self.steps, all(n >= 1 for n in self.steps), "at least 1")
        within = all(0 < r <= 1 for r in self.share_ratios)
        _check("--share-ratio", self.share_ratios, within, "in (0, 1]; independent sampling always runs")
        _check("--threshold", self.thresholds, all(-1 <= t <= 1 for t in self.thresholds), "in [-1, 1]")
        _check("--unguided", self.unguided, all(0 < u <= 1 for u in self.unguided), "in (0, 1]")

    def settings(self) -> list[Setting]:
        """Every setting once. Those of one set of weights stand together, so that each is loaded once.

        Guidance off early is a baseline of the base model and of standard fine-tuning: what sharing after SAGE
        training has to beat. Shared sampling has it too, where it lasts beyond the branch point and is not what
        shared sampling has anyway.
        """
        every: tuple[Weights, ...] = ("base", *self.fine_tuned)
        return [setting for weights in every for setting in self._of(weights)]

    def _of(self, weights: Weights) -> list[Setting]:
        after, first, size = AFTER[weights], self.thresholds[0], self.sharing.max_group_size
        ways = [(f"independent{after}", independent(first, size))]
        for part in self.unguided if weights != "sage" else ():
            ways.append((f"independent, guidance off early{after}", independent(first, size, part)))
        out = [Setting(method, weights, steps, way) for method, way in ways for steps in self.steps]
        for threshold in self.thresholds:
            for ratio in self.share_ratios:
                shared = replace(self.sharing, threshold=threshold, share_ratio=ratio)
                longer = [part for part in self.unguided if part > max(ratio, shared.unguided)]
                early = [replace(shared, unguided=part) for part in longer]
                for steps in self.steps:
                    out.append(Setting(f"shared{after}", weights, steps, shared))
                    name = f"shared, guidance off early{after}"
                    out += [Setting(name, weights, steps, way) for way in early]
        return out


def _check(name: str, values: Sequence[float], right: bool, rule: str) -> None:
    if not right or len(set(values)) != len(values) or not all(map(math.isfinite, values)):
        given = ", ".join(f"{v:g}" for v in values)
        raise InputError(f"every {name} must be {rule}, and given once; got {given}")
