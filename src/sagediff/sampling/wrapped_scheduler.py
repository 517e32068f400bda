"""`wrapped_scheduler`: the pipeline's scheduler while prompts share; its steps are counted and members kept equal.

diffusers' solvers keep their history for the whole batch, so it branches by itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagediff.denoiser.lookup import GuidanceKind
from sagediff.denoiser.scheduler import check_first_timestep
from sagediff.sampling.noise import MemberNoise
from sagediff.sampling.run import SharedRun

_MISSING = object()


@contextmanager
def wrapped_scheduler(
    scheduler: Any, run: SharedRun, guidance: GuidanceKind, noise: MemberNoise
) -> Iterator[None]:
    """Inside the context `step` and `set_timesteps` of one scheduler are wrapped; then it is as it was found.

    Around every step it counts; copies the state of a node's first member to the others while they share (a
    solver that was given one generator for all rows would else draw different noise for members); and gives
    prompts noise of their own past their branch point, as `MemberNoise` says.
    """
    found = {name: vars(scheduler).get(name, _MISSING) for name in ("step", "set_timesteps")}
    step, set_timesteps = scheduler.step, scheduler.set_timesteps
    signature = inspect.signature(step)

    # wraps() keeps the signatures: pipelines look for `generator`, `eta`, `timesteps`, `sigmas` in them
    @functools.wraps(step)
    def counted_step(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        run.enter_scheduler(guidance)
        if run.solver_call == 0:
            check_first_timestep(scheduler, given.get("timestep"))
        if "generator" in signature.parameters:
            given["generator"] = noise.generators(run, given.get("generator"))
        output = step(*bound.args, **bound.kwargs)
        state = output[0] if isinstance(output, tuple) else output.prev_sample
        changed = noise.added(run, _with_equal_members(state, run), given)
        run.leave_scheduler(changed)
        if changed is state:
            return output
        if isinstance(output, tuple):
            return (changed, *output[1:])
        output.prev_sample = changed
        return output

    @functools.wraps(set_timesteps)
    def begin(*args: Any, **kwargs: Any) -> Any:
        run.begin()
        noise.begin()
        return set_timesteps(*args, **kwargs)

    scheduler.step, scheduler.set_timesteps = counted_step, begin
    try:
        yield
    finally:
        for name, value in found.items():
            if value is _MISSING:
                vars(scheduler).pop(name, None)
            else:
                setattr(scheduler, name, value)


def _with_equal_members(state: Tensor, run: SharedRun) -> Tensor:
    """The state (N, ...) with each member's row that of its node's first member."""
    if not run.plan.shared(run.step).any():
        return state
    _, first, node = np.unique(run.plan.partition(run.step), return_index=True, return_inverse=True)
    return state.index_select(0, torch.from_numpy(first[node]).to(state.device))
