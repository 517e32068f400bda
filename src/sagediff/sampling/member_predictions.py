"""What a model predicts for each member of a group at the group's own latents, beside what it predicts for the group.

`predicted_for_members` runs groups along their shared trajectory, through the pipeline's own loop and the hook of
`shared_sampling`. At some steps the denoiser is run once more, on each member's own condition. It knows no family.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sagediff.denoiser.call import DenoiserCall
from sagediff.denoiser.condition import mean_condition
from sagediff.denoiser.guidance import CONDITIONAL, NEGATIVE, Part
from sagediff.denoiser.lookup import denoisers_of, family_of
from sagediff.denoiser.predictions import prediction_of
from sagediff.denoiser.private_names import unwrapped
from sagediff.denoiser.scheduler import clean_per_prediction, known_levels, prediction_type
from sagediff.errors import StoppedError, UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling
from sagediff.sampling.gathering import Gathering
from sagediff.sampling.plan_prompts import default_of
from sagediff.sampling.run import SharedRun


@dataclass(frozen=True)
class StepGaps:
    """How the predictions of clean latents differ at one step of a group's trajectory.

    Attributes:
        step: of the plan, from 0.
        gap: (N,) for each prompt, the mean square over elements of (its group's prediction - its own).
        apart: (N,) the same of (mean of the members' predictions - its own).
    """

    step: int
    gap: tuple[float, ...]
    apart: tuple[float, ...]


@dataclass(frozen=True)
class MemberPredictions:
    """What one run found.

    Attributes:
        steps: the steps looked at, in order.
        signal: (num_steps + 1,) alpha / sigma of the state before each step, and after the last one (infinite where
            no noise is left).
        evaluations: denoiser rows run in all.
    """

    steps: tuple[StepGaps, ...]
    signal: tuple[float, ...]
    evaluations: int


def predicted_for_members(
    pipe: Any,
    sample: Callable[[list[torch.Generator]], object],
    groups: Sequence[Sequence[int]],
    steps: Sequence[int],
    *,
    num_steps: int,
    guidance_scale: float | None = None,
    shared_guidance: float | None = None,
    unguided_steps: int = 0,
    seed: int = 0,
) -> MemberPredictions:
    """Run groups together and look at some steps what the members would have got. No image is made.

    Predictions are guided as the shared steps are (`shared_guidance`, `unguided_steps`), for group and members alike:
    what guidance alone changes is no gap. The run ends after the last step looked at.

    Args:
        sample: calls the pipeline for all prompts in order, with `num_steps` steps and one generator each.
        groups: numbers of prompts; every prompt once, two or more each.
        steps: which to look at, growing, in [0, num_steps).
        guidance_scale: that `sample` gives; None for the pipeline's own.

    Raises:
        UnsupportedPipelineError: a denoiser, scheduler or kind of prediction that is not known.
    """
    check_levels_known(pipe.scheduler)
    plan = SharePlan.from_groups(groups, num_steps, 1.0, shared_guidance, unguided_steps)
    family = family_of(denoisers_of(pipe)[0], pipe)
    scale = default_of(type(pipe), family.scale) if guidance_scale is None else guidance_scale
    with _probed(pipe, plan, frozenset(steps), 1 + scale - family.unguided_scale) as probe:
        with suppress(StoppedError):  # after the last step looked at
            sample(plan.generators(seed))
        evaluations = probe.run.evaluations + probe.evaluations
        return MemberPredictions(tuple(probe.found), tuple(probe.signal), evaluations)


def check_levels_known(scheduler: Any) -> None:
    """Raises UnsupportedPipelineError: the solver's noise levels, which a gap is weighed by, are not known."""
    if known_levels(scheduler) is None:
        raise UnsupportedPipelineError(
            f"the noise levels of {type(scheduler).__name__} are not known, so what a difference of predictions does "
            f"cannot be told; take another solver (--scheduler), or search by quality"
        )


class _Probe:
    """Sees every call of the denoiser inside the context; runs members' own rows at the steps asked for."""

    def __init__(self, pipe: Any, run: SharedRun, steps: frozenset[int], guidance: float) -> None:
        self.run = run
        self.found: list[StepGaps] = []
        self.signal: list[float] = []
        self.evaluations = 0
        self._pipe, self._steps, self._guidance = pipe, steps, guidance
        self._conditional: tuple[Tensor, Tensor] | None = None  # of a step with two calls

    def seen(self, call: DenoiserCall, shared: Tensor, own: Callable[[Part], Tensor]) -> None:
        """A call has been answered.

        Args:
            shared: (rows, ...) the predictions that the pipeline got.
            own: runs each prompt's own rows of a part and gives their predictions, (N, ...).

        Raises:
            UnsupportedPipelineError: guidance of other parts than the conditional and the negative one.
        """
        if not self.signal:
            self.signal = self._levels()
        if not self._is_wanted(call):
            return
        if not {CONDITIONAL, NEGATIVE}.issuperset(call.parts):
            raise UnsupportedPipelineError(
                f"what members would get cannot be told where guidance has the parts {', '.join(call.parts)}; switch "
                f"the further guidance off"
            )
        if call.parts == (CONDITIONAL,):
            group, alone = self._conditional = shared, own(CONDITIONAL)
        elif call.parts == (NEGATIVE,):
            if not self._needs_negative(call) or self._conditional is None:
                return
            self.found.pop()  # in a run's first step nobody knew yet that this call would come
            conditional, own_conditional = self._conditional
            group = self._as_pipeline(conditional, shared)
            alone = self._as_shared(own_conditional, own(NEGATIVE))
        else:
            parts = dict(zip(call.parts, shared.chunk(len(call.parts)), strict=True))
            group, alone = parts[CONDITIONAL], own(CONDITIONAL)
            if self._needs_negative(call):
                group = self._as_pipeline(group, parts[NEGATIVE])
                alone = self._as_shared(alone, own(NEGATIVE))
        self._note(call, group, alone)

    def _is_wanted(self, call: DenoiserCall) -> bool:
        begins = self.run.schedule.begins_step(call.solver_call)
        return begins and call.step in self._steps

    def _needs_negative(self, call: DenoiserCall) -> bool:
        plan = self.run.plan
        return plan.rows_per_prompt > 1 and plan.runs_negative(call.step, members=2)

    def _as_pipeline(self, conditional: Tensor, negative: Tensor) -> Tensor:
        """Guided by the pipeline's scale; the negative rows of shared steps are moved already to suit that."""
        return negative + self._guidance * (conditional - negative)

    def _as_shared(self, conditional: Tensor, negative: Tensor) -> Tensor:
        """Members' own rows, guided as the shared steps are."""
        shared = self.run.plan.shared_guidance
        return negative + (self._guidance if shared is None else shared) * (conditional - negative)

    def _note(self, call: DenoiserCall, group: Tensor, alone: Tensor) -> None:
        """Keep what this step shows."""
        levels = known_levels(self._pipe.scheduler)
        assert levels is not None
        alpha, sigma, *_ = levels(self._pipe.scheduler, self.run.schedule.first + call.solver_call)
        clean = clean_per_prediction(alpha, sigma, prediction_type(self._pipe.scheduler))
        gap = _mean_square(clean * (group - alone).float())
        apart = torch.zeros_like(gap)
        for members in self.run.plan.groups:
            rows = alone[members].float()
            apart[members] = _mean_square(clean * (rows - rows.mean(0, keepdim=True)))
        self.found.append(StepGaps(call.step, tuple(gap.tolist()), tuple(apart.tolist())))
        if call.step == max(self._steps):
            self.run.drop(range(call.prompts))

    def _levels(self) -> list[float]:
        """alpha / sigma before each step and after the last."""
        schedule, levels = self.run.schedule, known_levels(self._pipe.scheduler)
        assert levels is not None
        calls = range(len(schedule.steps))
        found = [levels(self._pipe.scheduler, schedule.first + call) for call in calls]
        ratios = [_ratio(found[call][0], found[call][1]) for call in calls if schedule.begins_step(call)]
        return [*ratios, _ratio(found[-1][2], found[-1][3])]


@contextmanager
def _probed(pipe: Any, plan: SharePlan, steps: frozenset[int], guidance: float) -> Iterator[_Probe]:
    """`shared_sampling` with a probe around the denoiser; afterwards everything is as it was found."""
    modules = denoisers_of(pipe)
    own = [module.forward for module in modules]  # as the pipeline has them without sharing
    with shared_sampling(pipe, plan) as run:
        probe = _Probe(pipe, run, steps, guidance)
        hooked = [vars(module)["forward"] for module in modules]
        for module, sharing, alone in zip(modules, hooked, own, strict=True):
            module.forward = _around(pipe, module, probe, sharing, alone)
        try:
            yield probe
        finally:
            for module, sharing in zip(modules, hooked, strict=True):
                module.forward = sharing


def _around(
    pipe: Any,
    module: torch.nn.Module,
    probe: _Probe,
    sharing: Callable[..., Any],
    alone: Callable[..., Any],
) -> Callable[..., Any]:
    """The denoiser's forward with the probe behind it."""
    inner = unwrapped(module)
    family, name = family_of(inner, pipe), type(inner).__name__
    parameters = list(inspect.signature(type(inner).forward).parameters)[1:]  # without self
    gathering = Gathering(family, mean_condition)

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = sharing(*args, **kwargs)
        named = family.named(parameters, args, kwargs)
        tensors = family.tensors(named, name)
        call = probe.run.latest_call
        assert call is not None
        rows = {part: first for first, part in call.first_rows()}

        def own(part: Part) -> Tensor:
            first = rows[part]
            batch = gathering.rows(tensors, [(first + prompt,) for prompt in range(call.prompts)])
            probe.evaluations += call.prompts
            found = prediction_of(alone(**family.put(named, batch)), name, tuple(family.outputs))
            return _latents_of(found, tensors[family.sample])

        seen = prediction_of(output, name, tuple(family.outputs))
        probe.seen(call, _latents_of(seen, tensors[family.sample]), own)
        return output

    return forward


def _latents_of(prediction: Tensor, sample: Tensor) -> Tensor:
    """Without the channels of a learned variance, which come behind those of the latents."""
    channels = sample.shape[1] if sample.ndim > 1 else 0
    return prediction[:, :channels] if prediction.shape[1] == 2 * channels else prediction


def _mean_square(difference: Tensor) -> Tensor:
    """(N, ...) to (N,)."""
    return difference.pow(2).flatten(1).mean(1).cpu()


def _ratio(alpha: float, sigma: float) -> float:
    return alpha / sigma if sigma > 0 else float("inf")
