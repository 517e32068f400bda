"""`wrapped_scheduler`: the pipeline's scheduler while prompts share; its steps are counted and members kept equal.

diffusers' solvers keep their history for the whole batch, so it branches by itself.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagediff.denoiser.scheduler import check_first_timestep
from sagediff.errors import UnsupportedPipelineError
from sagediff.sampling.noise import MemberNoise, global_noise
from sagediff.sampling.run import SharedRun

_MISSING = object()


class _Method:
    """A scheduler's method with something around it, which a copy of the scheduler does not have.

    Args:
        of: the scheduler.
        method: as it was found.
        around: what is called in its place.
    """

    def __init__(self, of: Any, method: Callable[..., Any], around: Callable[..., Any]) -> None:
        functools.update_wrapper(
            self, method
        )  # pipelines look for `generator`, `eta`, `timesteps` in its signature
        self._of, self._method, self._around = of, method, around

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._around(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """The method of the scheduler's copy: pipelines step a copy beside the original (LTX-2's audio)."""
        own = copy.deepcopy(self._of, memo)  # under way, so that the memo has it
        found = getattr(self._method, "__func__", None)
        return copy.deepcopy(self._method, memo) if found is None else found.__get__(own)


@contextmanager
def wrapped_scheduler(scheduler: Any, run: SharedRun, noise: MemberNoise) -> Iterator[None]:
    """Inside the context `step` and `set_timesteps` of one scheduler are wrapped; then it is as it was found.

    Around every step it counts; copies the state of a node's first member to the others while they share (a
    solver that was given one generator for all rows would else draw different noise for members); and gives
    prompts noise of their own past their branch point, as `MemberNoise` says.
    """
    found = {name: vars(scheduler).get(name, _MISSING) for name in ("step", "set_timesteps")}
    step, set_timesteps = scheduler.step, scheduler.set_timesteps
    signature = inspect.signature(step)

    def counted_step(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        run.enter_scheduler()
        _check_rows(given.get("sample"), run)
        if run.solver_call == 0:
            check_first_timestep(scheduler, given.get("timestep"), run.schedule.first)
        generators = noise.generators(run, given.get("generator"))
        if "generator" in signature.parameters:
            given["generator"] = generators
        before = global_noise(given.get("sample"))
        output = step(*bound.args, **bound.kwargs)
        if generators is not None and global_noise(given.get("sample")) != before:
            raise UnsupportedPipelineError(
                f"{type(scheduler).__name__} draws noise from torch's own generator, so that the same seed would give "
                f"other images; take a solver that draws from generators that it is handed, or none"
            )
        state = output[0] if isinstance(output, tuple) else output.prev_sample
        changed = noise.added(run, _with_equal_members(state, run), given)
        run.leave_scheduler(changed)
        if changed is state:
            return output
        if isinstance(output, tuple):
            return (changed, *output[1:])
        output.prev_sample = changed
        return output

    def begin(*args: Any, **kwargs: Any) -> Any:
        run.begin()
        noise.begin()
        return set_timesteps(*args, **kwargs)

    scheduler.step = _Method(scheduler, step, counted_step)
    scheduler.set_timesteps = _Method(scheduler, set_timesteps, begin)
    try:
        yield
    finally:
        for name, value in found.items():
            if value is _MISSING:
                vars(scheduler).pop(name, None)
            else:
                setattr(scheduler, name, value)


def _check_rows(sample: Any, run: SharedRun) -> None:
    """The solver works on one row for each prompt.

    Raises:
        UnsupportedPipelineError: it has more, of which sharing would have taken some for negative ones.
    """
    prompts = run.plan.num_prompts
    if isinstance(sample, Tensor) and sample.ndim and len(sample) != prompts:
        raise UnsupportedPipelineError(
            f"the pipeline has {len(sample)} latents, but the share plan has {prompts} prompts: give exactly the "
            f"plan's prompts, with num_images_per_prompt=1 (repeat a prompt in the plan instead)"
        )


def _with_equal_members(state: Tensor, run: SharedRun) -> Tensor:
    """The state (N, ...) with each member's row that of its node's first member."""
    if not run.plan.shared(run.step).any():
        return state
    _, first, node = np.unique(run.plan.partition(run.step), return_index=True, return_inverse=True)
    return state.index_select(0, torch.from_numpy(first[node]).to(state.device))
