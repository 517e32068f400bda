"""The scheduler while prompts share: calls counted, members kept equal, noise of their own afterwards.

diffusers' solvers keep their history for the whole batch, so it branches by itself.  What is left to do here
is told at `SchedulerTap`.  Noise levels are a declared table by scheduler class, needed only for fresh noise.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sagediff.denoiser.lookup import GuidanceKind
from sagediff.errors import UnsupportedPipelineError
from sagediff.sampling.run import SharedRun, check_first_timestep

_MISSING = object()


class SchedulerTap:
    """Context manager: wraps `step` and `set_timesteps` of one scheduler, then puts it back as it was found.

    Around every step it counts; copies the state of a node's first member to the others while they share (a
    solver that was given one generator for all rows would else draw different noise for members); gives
    prompts past their branch point their own generator; and replaces part of the state's noise, at the branch point
    (`fresh_noise`) or after the first step past it (`handover_noise`).

    Args:
        fresh_noise: strength k in [0, 1]: the noise component e of a state a x0 + s e becomes sqrt(1 - k^2) e
            + k fresh, whose variance is e's.  0 leaves it, 1 keeps only the predicted image.
        fresh_noise_rows: for which prompts; None for all that branch.
        handover_noise: strength in [0, 1] of the same for every node after its first step since it parted from
            others. The group's image is still in that state, as if it were noise; the member's own prediction is
            known by then, and what else the state holds is drawn anew.
        member_noise: a seed per prompt; None: the solver goes on with the pipeline's generators.

    Raises:
        UnsupportedPipelineError: fresh noise is wanted, and the table does not know the scheduler's noise
            levels.
    """

    def __init__(
        self,
        scheduler: Any,
        run: SharedRun,
        guidance: GuidanceKind,
        fresh_noise: float = 0.0,
        fresh_noise_rows: Sequence[bool] | None = None,
        member_noise: Sequence[int] | None = None,
        handover_noise: float = 0.0,
    ) -> None:
        self._scheduler = scheduler
        self._run = run
        self._guidance = guidance
        self._fresh_noise = float(fresh_noise)
        self._handover_noise = float(handover_noise)
        self._levels = noise_levels_of(scheduler) if max(fresh_noise, handover_noise) > 0 else None
        self._fresh_rows = fresh_noise_rows
        self._member_noise = member_noise
        self._generators: dict[int, torch.Generator] = {}
        self._fallback: torch.Generator | None = None

    def __enter__(self) -> None:
        scheduler = self._scheduler
        self._found = {name: vars(scheduler).get(name, _MISSING) for name in ("step", "set_timesteps")}
        step, set_timesteps = scheduler.step, scheduler.set_timesteps
        signature = inspect.signature(step)

        # wraps() keeps the signatures: pipelines look for `generator`, `eta`, `timesteps`, `sigmas` in them
        @functools.wraps(step)
        def counted_step(*args: Any, **kwargs: Any) -> Any:
            return self._step(step, signature, args, kwargs)

        @functools.wraps(set_timesteps)
        def begin(*args: Any, **kwargs: Any) -> Any:
            self._run.begin()
            self._generators.clear()
            self._fallback = None
            return set_timesteps(*args, **kwargs)

        scheduler.step, scheduler.set_timesteps = counted_step, begin

    def __exit__(self, *exc: object) -> None:
        for name, value in self._found.items():
            if value is _MISSING:
                vars(self._scheduler).pop(name, None)
            else:
                setattr(self._scheduler, name, value)

    def _step(
        self,
        step: Callable[..., Any],
        signature: inspect.Signature,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        run = self._run
        run.enter_scheduler(self._guidance)
        if run.first_call:
            check_first_timestep(self._scheduler, given.get("timestep"))
        if "generator" in signature.parameters:
            self._swap_generators(given)
        fresh, handed = self._fresh_members(), self._handed_over()
        levels = (
            self._levels(self._scheduler, run.scheduler_call) if self._levels and (fresh or handed) else None
        )
        output = step(*bound.args, **bound.kwargs)
        state = output[0] if isinstance(output, tuple) else output.prev_sample
        changed = self._keep_members_equal(state)
        if levels is not None:
            prediction, sample = given["model_output"], given["sample"]
            for prompts, change in (
                (fresh, refreshed(self._fresh_noise)),
                (handed, renewed(self._handover_noise)),
            ):
                changed = self._replace(changed, prompts, prediction, sample, levels, change)
        run.leave_scheduler()
        if changed is state:
            return output
        if isinstance(output, tuple):
            return (changed, *output[1:])
        output.prev_sample = changed
        return output

    def _keep_members_equal(self, state: Tensor) -> Tensor:
        """The state (N, ...) with each member's row that of its node's first member."""
        plan, step = self._run.plan, self._run.step
        if not np.asarray(plan.shared(step)).any():
            return state
        _, first, node = np.unique(np.asarray(plan.partition(step)), return_index=True, return_inverse=True)
        return state.index_select(0, torch.from_numpy(first[node]).to(state.device))

    # -- noise of each member's own ----------------------------------------------------------------

    def _generator(self, prompt: int) -> torch.Generator | None:
        """The prompt's own generator; None (torch's) without member_noise."""
        if self._member_noise is None:
            return None
        if prompt not in self._generators:
            self._generators[prompt] = torch.Generator().manual_seed(int(self._member_noise[prompt]))
        return self._generators[prompt]

    def _swap_generators(self, given: dict[str, Any]) -> None:
        """Past their branch point prompts draw from their own generator; prompts that never shared keep the
        pipeline's."""
        if self._member_noise is None:
            return
        plan, step = self._run.plan, self._run.step
        branched = [prompt for prompt, branch in enumerate(plan.branch_steps) if 0 < branch <= step]
        if not branched:
            return
        generator = given.get("generator")
        if isinstance(generator, list | tuple) and len(generator) == plan.num_prompts:
            rows: list[Any] = list(generator)
        else:
            if generator is None:  # the pipeline would draw from torch's: seed one generator from there
                if self._fallback is None:
                    self._fallback = torch.Generator().manual_seed(int(torch.randint(2**62, ()).item()))
                generator = self._fallback
            rows = [generator[0] if isinstance(generator, list | tuple) else generator] * plan.num_prompts
        for prompt in branched:
            rows[prompt] = self._generator(prompt)
        given["generator"] = rows

    def _fresh_members(self) -> dict[int, int]:
        """Prompts that part at the end of this scheduler call and are to get fresh noise, each of its own."""
        plan, step = self._run.plan, self._run.step
        if not self._fresh_noise or not self._run.ends_step or step + 1 >= plan.num_steps:
            return {}
        wanted = self._fresh_rows
        return {
            p: p
            for p, branch in enumerate(plan.branch_steps)
            if branch == step + 1 and (wanted is None or wanted[p])
        }

    def _handed_over(self) -> dict[int, int]:
        """Prompts whose node took its first step since it parted from others, with the node's first member."""
        plan, step = self._run.plan, self._run.step
        if not self._handover_noise or not self._run.ends_step or step + 1 >= plan.num_steps or step == 0:
            return {}
        before, now = plan.partition(step - 1), plan.partition(step)
        smaller = np.bincount(now)[now] < np.bincount(before)[before]
        smaller |= np.asarray(plan.branch_steps) == step  # also where a recorded phase was replayed
        first = np.unique(now, return_index=True)[1][now]
        return {int(p): int(first[p]) for p in np.flatnonzero(smaller)}

    def _replace(
        self,
        state: Tensor,
        prompts: Mapping[int, int],
        prediction: Tensor,
        sample: Tensor,
        levels: tuple[float, ...],
        change: Change,
    ) -> Tensor:
        """The state with some prompts' rows changed.

        Args:
            state: (N, ...) after the step, at (alpha_next, sigma_next).
            prompts: whose rows, each with the prompt that draws the noise for it.
            prediction, sample: (N, ...) what the step was given, at (alpha, sigma).
            levels: (alpha, sigma, alpha_next, sigma_next).
            change: what happens to a row; it draws one fresh noise.
        """
        alpha, sigma, alpha_next, sigma_next = levels
        state = state.clone() if prompts else state
        drawn: dict[int, Tensor] = {}
        for prompt, drawing in prompts.items():
            row = slice(prompt, prompt + 1)
            before = sample[row].float()
            noise = noise_in(before, prediction[row].float(), alpha, sigma, _prediction_type(self._scheduler))
            clean = (before - sigma * noise) / alpha
            if drawing not in drawn:
                drawn[drawing] = randn_tensor(
                    noise.shape, generator=self._generator(drawing), device=noise.device, dtype=noise.dtype
                )
            fresh = drawn[drawing]
            after = change(state[row].float(), alpha_next, sigma_next, clean, noise, fresh)
            state[row] = after.to(state.dtype)
            if _is_a(self._scheduler, "UniPCMultistepScheduler"):
                # Its corrector starts the next step anew from the state before this one: it must hold the
                # same noise
                last = self._scheduler.last_sample.clone()
                last[row] = change(last[row].float(), alpha, sigma, clean, noise, fresh).to(last.dtype)
                self._scheduler.last_sample = last
        return state


# -- what happens to a row -------------------------------------------------------------------------

Change: TypeAlias = Callable[[Tensor, float, float, Tensor, Tensor, Tensor], Tensor]
"""(rows, their alpha and sigma, predicted image x0 and noise e, fresh noise) to rows."""


def refreshed(strength: float) -> Change:
    """Part of the noise component replaced: x + s ((sqrt(1 - k^2) - 1) e + k fresh), k the strength."""

    def change(rows: Tensor, a: float, s: float, clean: Tensor, noise: Tensor, fresh: Tensor) -> Tensor:
        return rows + s * ((math.sqrt(1.0 - strength**2) - 1.0) * noise + strength * fresh)

    return change


def renewed(strength: float) -> Change:
    """The predicted image with part of all else that the rows hold drawn anew: a x0 + s (sqrt(1 - k^2) e' + k
    fresh), e' = (x - a x0) / s, k the strength. With k = 1 it is one step of ancestral sampling (DDIM's eta of 1).
    """

    def change(rows: Tensor, a: float, s: float, clean: Tensor, noise: Tensor, fresh: Tensor) -> Tensor:
        return a * clean + math.sqrt(1.0 - strength**2) * (rows - a * clean) + s * strength * fresh

    return change


# -- noise levels ----------------------------------------------------------------------------------


def noise_in(sample: Tensor, prediction: Tensor, alpha: float, sigma: float, prediction_type: str) -> Tensor:
    """The noise e that a denoiser's prediction sees in a state alpha x0 + sigma e; all shapes alike.

    Also for states that are not variance preserving (alpha 1): v-predicting models get them divided by
    sqrt(alpha^2 + sigma^2).
    """
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "sample":
        return (sample - alpha * prediction) / sigma
    if prediction_type == "v_prediction":
        norm = math.hypot(alpha, sigma)
        return (sigma / norm) * (sample / norm) + (alpha / norm) * prediction
    return sample + alpha * prediction  # flow: v = e - x0, x = (1 - s) x0 + s e


Levels = Callable[[Any, int], tuple[float, float, float, float]]
"""(scheduler, number of the call) to (alpha, sigma) of the state that the call starts from, and of the one it
leads to."""


def _sigma_pair(scheduler: Any, call: int) -> tuple[float, float]:
    place = call + (scheduler.begin_index or 0)
    return float(scheduler.sigmas[place]), float(scheduler.sigmas[place + 1])


def _flow(scheduler: Any, call: int) -> tuple[float, float, float, float]:
    """x = (1 - s) x0 + s e."""
    sigma, following = _sigma_pair(scheduler, call)
    return 1.0 - sigma, sigma, 1.0 - following, following


def _exploding(scheduler: Any, call: int) -> tuple[float, float, float, float]:
    """x = x0 + s e: the state that Euler's and Heun's step is given."""
    sigma, following = _sigma_pair(scheduler, call)
    return 1.0, sigma, 1.0, following


def _preserving(scheduler: Any, call: int) -> tuple[float, float, float, float]:
    """x = (x0 + s e) / sqrt(1 + s^2), or flow if so configured."""
    if getattr(scheduler.config, "use_flow_sigmas", False):
        return _flow(scheduler, call)
    sigma, following = _sigma_pair(scheduler, call)
    norm, following_norm = (1 + sigma**2) ** 0.5, (1 + following**2) ** 0.5
    return 1.0 / norm, sigma / norm, 1.0 / following_norm, following / following_norm


def _cumulative(scheduler: Any, call: int) -> tuple[float, float, float, float]:
    """DDIM: from the products of alphas at this call's timestep and the next one's."""
    timesteps = scheduler.timesteps
    product = float(scheduler.alphas_cumprod[int(timesteps[call])])
    last = call + 1 == len(timesteps)
    following = float(
        scheduler.final_alpha_cumprod if last else scheduler.alphas_cumprod[int(timesteps[call + 1])]
    )
    return product**0.5, (1 - product) ** 0.5, following**0.5, (1 - following) ** 0.5


NOISE_LEVELS: dict[str, Levels] = {
    "DDIMScheduler": _cumulative,
    "DPMSolverMultistepScheduler": _preserving,
    "EulerAncestralDiscreteScheduler": _exploding,
    "EulerDiscreteScheduler": _exploding,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "HeunDiscreteScheduler": _exploding,
    "UniPCMultistepScheduler": _preserving,
}


def noise_levels_of(scheduler: Any) -> Levels:
    """The table's entry for a scheduler's class or one of its base classes.

    Raises:
        UnsupportedPipelineError: none is known, or the solver carries noise predictions over from earlier
            steps, which fresh noise would contradict.
    """
    config = scheduler.config
    remembers_noise = (
        getattr(config, "algorithm_type", None) in ("dpmsolver", "sde-dpmsolver")
        or getattr(config, "predict_x0", True) is False
    )
    for cls in type(scheduler).__mro__:
        if cls.__name__ in NOISE_LEVELS and not remembers_noise:
            return NOISE_LEVELS[cls.__name__]
    why = (
        "extrapolates earlier noise predictions"
        if remembers_noise
        else "is not in sagediff.sampling.solver.NOISE_LEVELS"
    )
    raise UnsupportedPipelineError(
        f"fresh noise at the branch point does not work with {type(scheduler).__name__}, which {why}; set "
        f"fresh_noise to 0, or take one of {', '.join(sorted(NOISE_LEVELS))} (DPM-Solver as dpmsolver++, "
        f"UniPC with predict_x0)"
    )


def _prediction_type(scheduler: Any) -> str:
    return str(getattr(scheduler.config, "prediction_type", "flow_prediction"))


def _is_a(scheduler: Any, class_name: str) -> bool:
    return any(cls.__name__ == class_name for cls in type(scheduler).__mro__)
