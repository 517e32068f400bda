"""`MemberNoise`: noise of each member's own from its branch point on, where the options of sharing ask for it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sagediff.denoiser.scheduler import corrects_last_state, noise_in, noise_levels_of, prediction_type
from sagediff.errors import InputError
from sagediff.files.digest import number_of
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.run import SharedRun

Generators: TypeAlias = "torch.Generator | list[torch.Generator] | None"


class MemberNoise:
    """Gives prompts past their branch point generators of their own, and replaces part of the state's noise, at the
    branch point (`fresh_noise`) or after the first step past it (`handover_noise`).

    After that step the group's image is still in the state, as if it were noise; the member's own prediction is known
    by then, and what else the state holds is drawn anew.

    Args:
        fresh_noise, fresh_noise_rows, member_noise, handover_noise: as `shared_sampling` has them.

    Attributes:
        start: the generators that the pipeline draws its initial noise from; None where that is not seen.

    Raises:
        InputError: an option out of range, or not one entry per prompt.
        UnsupportedPipelineError: noise is to be replaced, and the scheduler's noise levels are not known.
    """

    def __init__(
        self,
        scheduler: Any,
        plan: SharePlan,
        fresh_noise: float = 0.0,
        fresh_noise_rows: Sequence[bool] | None = None,
        member_noise: Sequence[int] | None = None,
        handover_noise: float = 0.0,
    ) -> None:
        for option, strength in (("fresh_noise", fresh_noise), ("handover_noise", handover_noise)):
            if not (math.isfinite(strength) and 0.0 <= strength <= 1.0):
                raise InputError(f"{option} should be in [0, 1], got {strength!r}")
        for name, values in (("fresh_noise_rows", fresh_noise_rows), ("member_noise", member_noise)):
            if values is not None and len(values) != plan.num_prompts:
                raise InputError(
                    f"{name} should hold one entry per prompt ({plan.num_prompts}), got {len(values)}"
                )
        self._scheduler = scheduler
        self._fresh_noise = float(fresh_noise)
        self._handover_noise = float(handover_noise)
        self._levels = noise_levels_of(scheduler) if max(fresh_noise, handover_noise) > 0 else None
        # by position, whatever index a column has
        self._fresh_rows = None if fresh_noise_rows is None else list(fresh_noise_rows)
        self._seeds = None if member_noise is None else list(member_noise)
        self.start: Generators = None
        self.begin()

    def begin(self) -> None:
        """A run of the pipeline begins: generators start anew."""
        self._generators: dict[tuple[int, bool], torch.Generator] = {}
        self._fallback: torch.Generator | None = None

    def _generator(self, prompt: int, for_solver: bool = False) -> torch.Generator | None:
        """The prompt's own generator; None (torch's) without seeds.

        Args:
            for_solver: the one that its solver draws from.  A group's initial noise often has the seed of one of its
                members, so that one's solver must not begin with the same numbers: it would add to the noise in the
                state as much again, not what is missing.
        """
        if self._seeds is None:
            return None
        key = prompt, for_solver
        if key not in self._generators:
            seed = int(self._seeds[prompt])
            seed = number_of(f"solver\0{seed}") >> 1 if for_solver else seed
            self._generators[key] = torch.Generator().manual_seed(seed)
        return self._generators[key]

    def generators(self, run: SharedRun, given: Generators) -> Generators:
        """What the solver's call draws from: prompts past their branch point from generators of their own, prompts
        that never shared from the pipeline's.

        Args:
            given: the pipeline's generators: one, one per prompt, or None. Many pipelines hand none on to their
                solvers: then those that their initial noise came from (`start`).
        """
        given = self.start if given is None else given
        plan = run.plan
        branched = [prompt for prompt, branch in enumerate(plan.branch_steps) if 0 < branch <= run.step]
        if self._seeds is None or not branched:
            return given
        if given is None:  # the pipeline would draw from torch's: seed one generator from there
            if self._fallback is None:
                self._fallback = torch.Generator().manual_seed(int(torch.randint(2**62, ()).item()))
            given = self._fallback
        rows: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        if len(rows) != plan.num_prompts:
            rows = rows[:1] * plan.num_prompts
        for prompt in branched:
            rows[prompt] = self._generator(prompt, for_solver=True)
        return rows

    def added(self, run: SharedRun, state: Tensor, given: Mapping[str, Any]) -> Tensor:
        """The state (N, ...) after the solver's call, with the noise replaced of those whose turn it is.

        Args:
            given: the arguments of the call.
        """
        if self._levels is None or not run.ends_step or run.step + 1 >= run.plan.num_steps:
            return state  # after the last step there is no denoiser call to make an image of it
        levels = self._levels(self._scheduler, run.schedule.first + run.solver_call)
        for prompts, change in (
            (self._parting(run), partial(refreshed, self._fresh_noise)),
            (self._handed_over(run), partial(renewed, self._handover_noise)),
        ):
            if prompts:
                state = self._changed(state, prompts, given["model_output"], given["sample"], levels, change)
        return state

    def _parting(self, run: SharedRun) -> dict[int, int]:
        """Prompts that part at the end of this step and are to get fresh noise, each of its own."""
        if not self._fresh_noise:
            return {}
        return {
            prompt: prompt
            for prompt, branch in enumerate(run.plan.branch_steps)
            if branch == run.step + 1 and (self._fresh_rows is None or self._fresh_rows[prompt])
        }

    def _handed_over(self, run: SharedRun) -> dict[int, int]:
        """Prompts whose node took its first step since it parted from others, with the node's first member."""
        plan, step = run.plan, run.step
        if not self._handover_noise or step == 0:
            return {}
        before, now = plan.partition(step - 1), plan.partition(step)
        smaller = np.bincount(now)[now] < np.bincount(before)[before]
        smaller |= np.asarray(plan.branch_steps) == step  # also where a recorded phase was replayed
        first = np.unique(now, return_index=True)[1][now]
        return {int(p): int(first[p]) for p in np.flatnonzero(smaller)}

    def _changed(
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
        kind, state = prediction_type(self._scheduler), state.clone()
        drawn: dict[int, Tensor] = {}
        for prompt, drawing in prompts.items():
            row = slice(prompt, prompt + 1)
            before = sample[row].float()
            noise = noise_in(before, prediction[row].float(), alpha, sigma, kind)
            clean = (before - sigma * noise) / alpha
            if drawing not in drawn:
                drawn[drawing] = randn_tensor(
                    noise.shape, generator=self._generator(drawing), device=noise.device, dtype=noise.dtype
                )
            fresh = drawn[drawing]
            after = change(state[row].float(), alpha_next, sigma_next, clean, noise, fresh)
            state[row] = after.to(state.dtype)
            if corrects_last_state(self._scheduler):  # it must hold the same noise
                last = self._scheduler.last_sample.clone()
                last[row] = change(last[row].float(), alpha, sigma, clean, noise, fresh).to(last.dtype)
                self._scheduler.last_sample = last
        return state


# -- where noise comes from ------------------------------------------------------------------------


@contextmanager
def start_seen(pipe: Any, noise: MemberNoise) -> Iterator[None]:
    """Inside the context `noise.start` is what the pipeline draws its initial noise from."""
    prepare = getattr(pipe, "prepare_latents", None)
    if prepare is None or "generator" not in (signature := inspect.signature(prepare)).parameters:
        yield
        return
    found = vars(pipe).get("prepare_latents")

    @functools.wraps(prepare)
    def seen(*args: Any, **kwargs: Any) -> Any:
        noise.start = signature.bind(*args, **kwargs).arguments.get("generator")
        return prepare(*args, **kwargs)

    pipe.prepare_latents = seen
    try:
        yield
    finally:
        vars(pipe).pop("prepare_latents", None)
        if found is not None:
            pipe.prepare_latents = found


def global_noise(like: Any) -> bytes:
    """The state of torch's own generators that noise like this tensor could be drawn from."""
    state = torch.get_rng_state().numpy().tobytes()
    if isinstance(like, Tensor) and like.is_cuda:
        state += torch.cuda.get_rng_state(like.device).numpy().tobytes()
    return state


# -- what happens to a row -------------------------------------------------------------------------

Change: TypeAlias = Callable[[Tensor, float, float, Tensor, Tensor, Tensor], Tensor]
"""(rows, their alpha and sigma, predicted image x0 and noise e, fresh noise) to rows."""


def refreshed(
    strength: float, rows: Tensor, a: float, s: float, clean: Tensor, noise: Tensor, fresh: Tensor
) -> Tensor:
    """Part of the noise component replaced: x + s ((sqrt(1 - k^2) - 1) e + k fresh), k the strength."""
    return rows + s * ((math.sqrt(1.0 - strength**2) - 1.0) * noise + strength * fresh)


def renewed(
    strength: float, rows: Tensor, a: float, s: float, clean: Tensor, noise: Tensor, fresh: Tensor
) -> Tensor:
    """The predicted image with part of all else that the rows hold drawn anew: a x0 + s (sqrt(1 - k^2) e' + k
    fresh), e' = (x - a x0) / s, k the strength. With k = 1 it is one step of ancestral sampling (DDIM's eta of 1).
    """
    return a * clean + math.sqrt(1.0 - strength**2) * (rows - a * clean) + s * strength * fresh
