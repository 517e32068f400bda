"""How far a group's prediction lies from its members', by likeness and noise level: a model with few numbers.

The gap at a step is taken to be `scale[step] * spread ** exponent`:

- `spread` of a group is the mean squared distance of its members' unit vectors from their mean, 1 - |mean|^2: 0 for
  equal prompts, (1 - c) (n - 1) / n where all n have the cosine c. A prediction that is smooth in its condition has a
  gap that grows with the spread, so the exponent is kept above 0: equal prompts have no gap, less alike ones never a
  smaller one. It is one number for all steps, as a few groups at a few thresholds cannot tell more.
- `scale` is free at every step looked at, since a gap may grow or fall with the noise: little is decided at first, and
  at last the latents decide all. Between those steps its logarithm is interpolated.

What a gap does. With l = alpha / sigma of the state x = alpha x0 + sigma e, a first-order solver changes x / sigma by
D dl, where D is the prediction of x0. A group that is denoised with D_g in place of a member's D_i arrives with another
state. The laws of both, were the steps taken with noise (which has the same marginals), differ by a relative entropy of
at most half of

    error^2 = integral of mean |D_g - D_i|^2 d(l^2)   along the shared steps,

which for Gaussian data is the squared difference of the finished images in units of a member's own spread from seed to
seed, and exact. The mean is over elements, so that the error has no unit and is the same for images of any size. Errors
of stages that follow each other add up in the square, which is what makes trees of groups cheap to plan.

Fresh noise at the hand-over, a part k^2 of the state's noise by variance (`Sharing.renewed_variance`), replaces what
the group left there; of that part only what the member's own prediction has made of the state stays, namely
K = l^2 v / (1 + l^2 v) of it for Gaussian data of variance v about the prompt's mean. So a member that leaves at l
keeps (1 - k^2) + k^2 K^2 of error^2.
v is not measured: it is taken to be a tenth of the latents' variance, which diffusers' models scale to 1. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sagediff.errors import InputError

Floats = npt.NDArray[np.float64]
_VARIANCE = 0.1  # of the clean latents about a prompt's mean
_EXPONENTS = np.linspace(0.25, 2.0, 36)


@dataclass(frozen=True)
class GroupGap:
    """What was measured of one group at one step.

    Attributes:
        spread: of its members' vectors, above 0.
        step: of the run, from 0.
        gap: mean over members and elements of the squared difference of the predictions of x0.
    """

    spread: float
    step: int
    gap: float


@dataclass(frozen=True)
class GapModel:
    """The fitted model.

    Attributes:
        exponent: of the spread.
        scale: (num_steps,) of each step.
        signal: (num_steps + 1,) alpha / sigma before each step and after the last one.
        renewed: part of a leaving prompt's noise, by variance, that is drawn anew (`Sharing.renewed_variance`).
    """

    exponent: float
    scale: tuple[float, ...]
    signal: tuple[float, ...]
    renewed: float = 0.0

    @property
    def kept(self) -> Floats:
        """The part of error^2 that a member keeps which leaves after 0, 1, ... num_steps steps, (num_steps + 1,)."""
        own = 1 - 1 / (1 + _VARIANCE * np.square(np.asarray(self.signal)))
        return np.asarray((1 - self.renewed) + self.renewed * own**2)

    def error(self, squared: float, step: int) -> float:
        """The error of a member that leaves after so many steps with that error^2."""
        return float(np.sqrt(self.kept[step] * squared)) if squared else 0.0

    def squared_errors(self, spread: float) -> Floats:
        """error^2 of a group after 0, 1, ... num_steps shared steps, (num_steps + 1,), before any fresh noise; grows.

        A step's gap is taken to hold until the next one. Infinite where no noise is left, unless there is no gap.
        """
        if spread <= 0:
            return np.zeros(len(self.scale) + 1)
        grown = np.diff(np.square(np.asarray(self.signal)))
        gaps = np.asarray(self.scale) * spread**self.exponent
        added = np.where(gaps > 0, np.maximum(grown, 0), 0.0) * gaps
        return np.concatenate([[0.0], np.cumsum(added)])


def fit_gaps(
    measured: Sequence[GroupGap], num_steps: int, signal: Sequence[float], renewed: float = 0.0
) -> GapModel:
    """Fit by least squares of the logarithms; each step's scale then makes its mean gap right.

    Args:
        signal, renewed: as `GapModel` has them.

    Raises:
        InputError: nothing was measured, or a gap that is no finite number.
    """
    if not measured:
        raise InputError("no gaps were measured, so nothing can be fitted")
    if not all(np.isfinite(each.gap) and each.gap >= 0 for each in measured):
        raise InputError("the model's predictions are not finite, so their differences tell nothing")
    measured = sorted(
        measured, key=lambda each: (each.step, each.spread, each.gap)
    )  # sums round by their order
    steps = sorted({each.step for each in measured})
    exponent = _exponent([each for each in measured if each.gap > 0 and each.spread > 0])
    at = {step: [each for each in measured if each.step == step] for step in steps}
    scales = [
        sum(e.gap for e in at[step]) / max(sum(e.spread**exponent for e in at[step]), 1e-12) for step in steps
    ]
    logs = np.log(np.maximum(scales, 1e-30))
    every = np.exp(np.interp(np.arange(num_steps), steps, logs)) * (max(scales) > 0)
    return GapModel(exponent, tuple(every.tolist()), tuple(map(float, signal)), renewed)


def _exponent(measured: Sequence[GroupGap]) -> float:
    """Of the spread, with a scale free at every step; 1, where predictions are linear, if nothing tells."""
    spreads = np.log([each.spread for each in measured])
    if len(measured) < 3 or np.ptp(spreads) < 0.1:
        return 1.0
    gaps, steps = np.log([each.gap for each in measured]), np.asarray([each.step for each in measured])
    left = []
    for exponent in _EXPONENTS:
        rest = gaps - exponent * spreads
        left.append(
            sum(float(np.square(rest[steps == s] - rest[steps == s].mean()).sum()) for s in set(steps))
        )
    return float(_EXPONENTS[int(np.argmin(left))])


def spread_of(vectors: npt.NDArray[np.float32]) -> float:
    """Mean squared distance of unit vectors (n, D) from their mean; 0 for equal ones, beyond rounding."""
    wide = np.asarray(vectors, np.float64)
    found = 1 - float(np.square(wide.mean(0)).sum())
    return found if found > 1e-6 else 0.0
