"""What a bench compares: each setting is one way of sampling, whatever the seed. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from sagediff.errors import InputError
from sagediff.plan.ladder import Parting

Weights = Literal["base", "standard", "sage"]

AFTER = {"base": "", "standard": ", standard fine-tuning", "sage": ", SAGE training"}


@dataclass(frozen=True)
class Setting:
    """One way of sampling.

    Attributes:
        method: its name in tables and plots; settings of one method differ in the numbers below only.
        weights: "base", or those after fine-tuning: "standard", "sage".
        num_steps: sampling steps.
        share_ratio: part of the steps that a group takes together; 0 is independent sampling.
        threshold: least cosine in a group; for independent sampling, the groups its diversity is measured in.
        shared_guidance: guidance scale of shared steps, None for the pipeline's.
        unguided: part of the steps, the first ones, that run without guidance (arXiv 2404.07724), shared or not.
        handover_noise: part of the noise drawn anew after a member's first step of its own.
        rungs, parting: closer prompts stay together longer (`Sharing`).
    """

    method: str
    weights: Weights
    num_steps: int
    share_ratio: float
    threshold: float
    shared_guidance: float | None
    unguided: float
    handover_noise: float = 0.0
    rungs: tuple[tuple[float, float], ...] = ()
    parting: Parting = "tree"

    @property
    def key(self) -> str:
        """A short name that no other setting has, good for file names."""
        numbers = asdict(self)
        if not self.rungs:  # a fixed split is called what it was before there were others
            del numbers["rungs"], numbers["parting"]
        digest = hashlib.blake2b(json.dumps(numbers, sort_keys=True).encode(), digest_size=4).hexdigest()
        return f"{self.weights}-steps{self.num_steps}-share{self.share_ratio:g}-{digest}"

    def words(self) -> str:
        """The numbers, for a person."""
        parts = [f"{self.num_steps} steps"]
        if self.share_ratio:
            parts += [f"share ratio {self.share_ratio:g}", f"threshold {self.threshold:g}"]
            parts += [f"{ratio:g} from {threshold:g} on" for threshold, ratio in self.rungs]
            parts += ["groups part as a whole"] if self.rungs and self.parting == "together" else []
        if self.unguided:
            parts += [f"first {self.unguided:.0%} unguided"]
        if self.handover_noise:
            parts += [f"noise at the hand-over {self.handover_noise:g}"]
        return ", ".join(parts)


@dataclass(frozen=True)
class Grid:
    """The numbers that a bench runs over.

    Attributes:
        steps, share_ratios, thresholds, unguided: each with each; `unguided` may be empty.
        shared_guidance: guidance scale of shared steps, None for the pipeline's.
        handover_noise: of shared sampling, in [0, 1].
        rungs, parting: of shared sampling (`Sharing`), above its one threshold and share ratio.
        fine_tuned: which weights there are beside the base model's.

    Raises:
        InputError: an empty list or a number out of range, named as on the command line.
    """

    steps: tuple[int, ...]
    share_ratios: tuple[float, ...]
    thresholds: tuple[float, ...]
    unguided: tuple[float, ...] = ()
    shared_guidance: float | None = 1.0
    fine_tuned: tuple[Weights, ...] = ()
    handover_noise: float = 0.0
    rungs: tuple[tuple[float, float], ...] = ()
    parting: Parting = "tree"

    def __post_init__(self) -> None:
        for name, values in (("--steps", self.steps), ("--threshold", self.thresholds)):
            if not values:
                raise InputError(f"{name} needs at least one value")
        _check("--steps", self.steps, all(n >= 1 for n in self.steps), "at least 1")
        _check("--handover-noise", (self.handover_noise,), 0 <= self.handover_noise <= 1, "in [0, 1]")
        within = all(0 < r <= 1 for r in self.share_ratios)
        _check("--share-ratio", self.share_ratios, within, "in (0, 1]; independent sampling always runs")
        _check("--threshold", self.thresholds, all(-1 <= t <= 1 for t in self.thresholds), "in [-1, 1]")
        _check("--unguided", self.unguided, all(0 < u <= 1 for u in self.unguided), "in (0, 1]")

    def settings(self) -> list[Setting]:
        """Every setting once. Those of one set of weights stand together, so that each is loaded once.

        Guidance off early is a baseline of the base model and of standard fine-tuning: what sharing after SAGE
        training has to beat. Shared sampling has it too, where it lasts beyond the branch point.
        """
        out: dict[Setting, None] = {}
        every: tuple[Weights, ...] = ("base", *self.fine_tuned)
        for weights in every:
            after, first = AFTER[weights], self.thresholds[0]
            for steps in self.steps:
                out[Setting(f"independent{after}", weights, steps, 0.0, first, None, 0.0)] = None
            for part in self.unguided if weights != "sage" else ():
                for steps in self.steps:
                    name = f"independent, guidance off early{after}"
                    out[Setting(name, weights, steps, 0.0, first, None, part)] = None
            for threshold in self.thresholds:
                for ratio in self.share_ratios:
                    for steps in self.steps:
                        setting = Setting(
                            f"shared{after}",
                            weights,
                            steps,
                            ratio,
                            threshold,
                            self.shared_guidance,
                            0.0,
                            self.handover_noise,
                            self.rungs,
                            self.parting,
                        )
                        out[setting] = None
                        for part in self.unguided:
                            if part > ratio:
                                name = f"shared, guidance off early{after}"
                                out[replace(setting, method=name, unguided=part)] = None
        return list(out)


def _check(name: str, values: Sequence[float], right: bool, rule: str) -> None:
    if not right or len(set(values)) != len(values) or not all(map(math.isfinite, values)):
        given = ", ".join(f"{v:g}" for v in values)
        raise InputError(f"every {name} must be {rule}, and given once; got {given}")
