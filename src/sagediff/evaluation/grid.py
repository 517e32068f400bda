"""What a bench compares: each setting is one way of sampling, whatever the seed. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
        guidance_scale: None takes the bench's.
        scheduler: one of `denoiser.scheduler.SCHEDULERS`; None takes the pipeline's own.
    """

    method: str
    weights: Weights
    num_steps: int
    sharing: Sharing
    guidance_scale: float | None = None
    scheduler: str | None = None

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
        own = {
            "method": self.method, "weights": self.weights, "num_steps": self.num_steps,
            "guidance_scale": self.guidance_scale, "scheduler": self.scheduler,
        }  # fmt: skip
        return own | self.sharing.record()

    def words(self) -> str:
        """The numbers, for a person."""
        return ", ".join([f"{self.num_steps} steps", *self.sharing.numbers_in_words()])

    def guidance_words(self) -> str:
        """The guidance scale of every step, for a person; which steps are without it is in `words`."""
        if self.sharing.unguided == 1:
            return "off"
        scale = "the pipeline's own" if self.guidance_scale is None else f"{self.guidance_scale:g}"
        shared = self.sharing.shared_guidance
        if self.sharing.share_ratio == 0 or shared is None:
            return scale
        return f"{scale}, {'off' if shared == 1 else f'{shared:g}'} while shared"


def independent(threshold: float, max_group_size: int = 8, unguided: float = 0.0) -> Sharing:
    """Nothing shared; the groups are those that diversity is measured in."""
    return Sharing(threshold, 0.0, max_group_size, shared_guidance=None, unguided=unguided)


@dataclass(frozen=True)
class Arm:
    """How one set of weights is sampled, which is how it is sampled best.

    Attributes:
        sharing: all of shared sampling but for the lists below.
        share_ratios, thresholds: each with each.
        guidance_scale: None takes the bench's.
        schedulers: the solver for a number of steps; those that are missing take the pipeline's own.
    """

    sharing: Sharing
    share_ratios: tuple[float, ...]
    thresholds: tuple[float, ...]
    guidance_scale: float | None = None
    schedulers: Mapping[int, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        within = all(0 < r <= 1 for r in self.share_ratios)
        _check("--share-ratio", self.share_ratios, within, "in (0, 1]; independent sampling always runs")
        if not self.thresholds:
            raise InputError("--threshold needs at least one value")
        _check("--threshold", self.thresholds, all(-1 <= t <= 1 for t in self.thresholds), "in [-1, 1]")

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"schedulers": {str(steps): name for steps, name in self.schedulers.items()}}


@dataclass(frozen=True)
class Grid:
    """The numbers that a bench runs over.

    Attributes:
        steps, share_ratios, thresholds: each with each.
        unguided: baselines without guidance in the first part of the steps (arXiv 2404.07724); may be empty.
        sharing: all else of shared sampling.
        fine_tuned: which weights there are beside the base model's.
        arms: those of the weights that are not sampled by `share_ratios`, `thresholds` and `sharing`.

    Raises:
        InputError: an empty list or a number out of range, named as on the command line.
    """

    steps: tuple[int, ...]
    share_ratios: tuple[float, ...]
    thresholds: tuple[float, ...]
    unguided: tuple[float, ...] = ()
    sharing: Sharing = field(default_factory=Sharing)
    fine_tuned: tuple[Weights, ...] = ()
    arms: Mapping[Weights, Arm] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.steps:
            raise InputError("--steps needs at least one value")
        _check("--steps", self.steps, all(n >= 1 for n in self.steps), "at least 1")
        self.arm("base")  # its own check
        _check("--unguided", self.unguided, all(0 < u <= 1 for u in self.unguided), "in (0, 1]")

    def settings(self) -> list[Setting]:
        """Every setting once. Those of one set of weights stand together, so that each is loaded once.

        Guidance off early is a baseline of the base model and of standard fine-tuning: what sharing after SAGE
        training has to beat. Shared sampling has it too, where it lasts beyond the branch point and is not what
        shared sampling has anyway.
        """
        return [setting for weights in self.weights for setting in self._of(weights)]

    @property
    def weights(self) -> tuple[Weights, ...]:
        """The base model's first."""
        return ("base", *self.fine_tuned)

    def arm(self, weights: Weights) -> Arm:
        """How these weights are sampled."""
        return self.arms.get(weights) or Arm(self.sharing, self.share_ratios, self.thresholds)

    def _of(self, weights: Weights) -> list[Setting]:
        """Independent sampling of weights trained to share is without guidance where shared sampling of them is: that
        is how they are used, and what tells the worth of sharing alone.
        """
        arm, after = self.arm(weights), AFTER[weights]
        first, size = arm.thresholds[0], arm.sharing.max_group_size
        unguided = arm.sharing.unguided if weights == "sage" else 0.0

        def setting(method: str, steps: int, way: Sharing) -> Setting:
            return Setting(
                f"{method}{after}", weights, steps, way, arm.guidance_scale, arm.schedulers.get(steps)
            )

        ways = [("independent", independent(first, size, unguided))]
        for part in self.unguided if weights != "sage" else ():
            ways.append(("independent, guidance off early", independent(first, size, part)))
        out = [setting(method, steps, way) for method, way in ways for steps in self.steps]
        for threshold in arm.thresholds:
            for ratio in arm.share_ratios:
                shared = replace(arm.sharing, threshold=threshold, share_ratio=ratio)
                longer = [part for part in self.unguided if part > max(ratio, shared.unguided)]
                early = [replace(shared, unguided=part) for part in longer]
                for steps in self.steps:
                    out.append(setting("shared", steps, shared))
                    out += [setting("shared, guidance off early", steps, way) for way in early]
        return out


def _check(name: str, values: Sequence[float], right: bool, rule: str) -> None:
    if not right or len(set(values)) != len(values) or not all(map(math.isfinite, values)):
        given = ", ".join(f"{v:g}" for v in values)
        raise InputError(f"every {name} must be {rule}, and given once; got {given}")
