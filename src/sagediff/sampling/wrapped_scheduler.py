"""`WrappedScheduler`: the pipeline's scheduler while prompts share; its steps are counted and members kept equal.

diffusers' solvers keep their history for the whole batch, so it branches by itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagediff.denoiser.lookup import GuidanceKind
from sagediff.denoiser.scheduler import check_first_timestep
from sagediff.sampling.noise import MemberNoise
from sagediff.sampling.run import SharedRun

_MISSING = object()


class WrappedScheduler:
    """Context manager: wraps `step` and `set_timesteps` of one scheduler, then puts it back as it was found.

    Around every step it counts; copies the state of a node's first member to the others while they share (a
    solver that was given one generator for all rows would else draw different noise for members); and gives
    prompts noise of their own past their branch point, as `MemberNoise` says.

    Args:
        run: told of every step, and of every new run.
    """

    def __init__(self, scheduler: Any, run: SharedRun, guidance: GuidanceKind, noise: MemberNoise) -> None:
        self._scheduler = scheduler
        self._run = run
        self._guidance = guidance
        self._noise = noise

    def __enter__(self) -> None:
        scheduler = self._scheduler
        self._found = {name: vars(scheduler).get(name, _MISSING) for name in ("step", "set_timesteps")}
        step, set_timesteps = scheduler.step, scheduler.set_timesteps
        signature = inspect.signature(step)

        # wraps() keeps the signatures: pipelines look for `generator`, `eta`, `timesteps`, `sigmas` in them
        @functools.wraps(step)
        def counted_step(*args: Any, **kwargs: Any) -> Any:
            return self._step(step, signature, signature.bind(*args, **kwargs))

        @functools.wraps(set_timesteps)
        def begin(*args: Any, **kwargs: Any) -> Any:
            self._run.begin()
            self._noise.begin()
            return set_timesteps(*args, **kwargs)

        scheduler.step, scheduler.set_timesteps = counted_step, begin

    def __exit__(self, *exc: object) -> None:
        for name, value in self._found.items():
            if value is _MISSING:
                vars(self._scheduler).pop(name, None)
            else:
                setattr(self._scheduler, name, value)

    def _step(
        self, step: Callable[..., Any], signature: inspect.Signature, bound: inspect.BoundArguments
    ) -> Any:
        given, run = bound.arguments, self._run
        run.enter_scheduler(self._guidance)
        if run.solver_call == 0:
            check_first_timestep(self._scheduler, given.get("timestep"))
        if "generator" in signature.parameters:
            given["generator"] = self._noise.generators(run, given.get("generator"))
        output = step(*bound.args, **bound.kwargs)
        state = output[0] if isinstance(output, tuple) else output.prev_sample
        changed = self._noise.added(run, self._with_equal_members(state), given)
        run.leave_scheduler()
        if changed is state:
            return output
        if isinstance(output, tuple):
            return (changed, *output[1:])
        output.prev_sample = changed
        return output

    def _with_equal_members(self, state: Tensor) -> Tensor:
        """The state (N, ...) with each member's row that of its node's first member."""
        plan, step = self._run.plan, self._run.step
        if not np.asarray(plan.shared(step)).any():
            return state
        _, first, node = np.unique(np.asarray(plan.partition(step)), return_index=True, return_inverse=True)
        return state.index_select(0, torch.from_numpy(first[node]).to(state.device))
