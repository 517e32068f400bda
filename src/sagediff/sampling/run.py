"""Where a shared run stands: which step of the plan it is in, and what it has cost.

The hook (`hook.py`) reports denoiser calls, the wrapped scheduler (`solver.py`) reports scheduler calls;
neither knows the other. Steps are counted by scheduler calls, never read from timesteps: pipelines scale
those each in its own way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from sagediff.denoiser.lookup import GuidanceKind
from sagediff.errors import InputError, PlanError, StoppedError, UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.trajectory import Recording, Trajectory


class SharedRun:
    """What `shared_sampling` yields; describes the pipeline's latest run inside the context.

    Attributes:
        plan: the share plan, costed as the pipeline runs it (rows per prompt, denoiser calls per step) once a run
            has begun; so `evaluations == plan.evaluations` at the end of every run in which no prompt was dropped.
        evaluations: denoiser rows really run so far, guidance rows included; less than planned after a `drop`.
        dropped: prompts whose rows are not run any more.
        recordings: for each prompt that is recorded, what there is of its trajectory.
        timesteps: the scheduler's timestep of every solver call; empty until the first denoiser call.
    """

    def __init__(self, plan: SharePlan, record: Mapping[int, int] | None = None) -> None:
        self.plan = plan
        self.number = 0  # of the pipeline's run
        self.recordings = {prompt: Recording(steps) for prompt, steps in (record or {}).items()}
        self.dropped: frozenset[int] = frozenset()
        self._leaving: frozenset[int] = frozenset()  # asked to be dropped
        self._lock = threading.Lock()
        self.begin()

    @property
    def step(self) -> int:
        """The plan's step that is being worked on; `plan.num_steps` when all are done."""
        return (
            self._steps[self._call]
            if self._call < len(self._steps)
            else (self.plan.num_steps if self._steps else 0)
        )

    def begin(self) -> None:
        """A new run of the pipeline: all counts at zero. Who was dropped stays so."""
        self.number += 1
        self.evaluations = 0
        self._call = 0  # scheduler calls finished
        self._denoiser_calls = 0  # denoiser calls since the last scheduler call
        self._steps: list[int] = []  # plan step of every scheduler call
        self._rows_per_prompt = 0  # 0 until seen
        self.timesteps: tuple[float, ...] = ()
        for recording in self.recordings.values():
            recording.begin()

    # -- for the caller ----------------------------------------------------------------------------

    def drop(self, prompts: Iterable[int]) -> None:
        """From the next step on, and until the context is left, those prompts' rows are not run.

        May be called from a step callback, another thread, or before the run. The group condition stays the mean
        over all members, so nobody else's image changes; a node is run while one member is left. What comes out
        for a dropped prompt is no image. When all are dropped the next step raises StoppedError.

        Raises:
            InputError: a prompt that the plan does not have.
        """
        wanted = frozenset(prompts)
        for prompt in wanted:
            if not 0 <= prompt < self.plan.num_prompts:
                raise InputError(f"there is no prompt {prompt} to drop; the plan has {self.plan.num_prompts}")
        with self._lock:
            self._leaving |= wanted

    @property
    def recorded(self) -> dict[int, Trajectory]:
        """Trajectories that are finished, by prompt (a group's by its first member); on the denoiser's device."""
        calls = self.plan.calls_per_step or ()
        found = {
            prompt: recording.trajectory(self._call, calls, self.timesteps, self.plan.rows_per_prompt)
            for prompt, recording in self.recordings.items()
        }
        return {prompt: trajectory for prompt, trajectory in found.items() if trajectory is not None}

    def abandoned(self) -> frozenset[int]:
        """Prompts whose node at this step has no member left."""
        nodes = self.plan.partition(self.step).tolist()
        wanted = {node for prompt, node in enumerate(nodes) if prompt not in self.dropped}
        return frozenset(prompt for prompt, node in enumerate(nodes) if node not in wanted)

    # -- reported by the hook ----------------------------------------------------------------------

    def enter_denoiser(self, rows: int, guidance: GuidanceKind, guided: bool | None, scheduler: Any) -> bool:
        """A denoiser call with so many rows is about to run.  Returns True for the negative call of a
        two-call step.

        Args:
            guided: whether the pipeline says that it guides without a classifier; None when it does not say.

        Raises:
            PlanError: the scheduler's steps are not the plan's.
            UnsupportedPipelineError: rows or calls that sharing cannot assign to prompts.
            StoppedError: every prompt was dropped.
        """
        prompts = self.plan.num_prompts
        if not self._steps:
            calls = calls_per_step(scheduler, self.plan.num_steps)
            self.plan = self.plan.recost(calls_per_step=calls)
            self._steps = [step for step, count in enumerate(calls) for _ in range(count)]
            begin = getattr(scheduler, "begin_index", None) or 0
            self.timesteps = tuple(float(t) for t in scheduler.timesteps[begin:])
        if self._call >= len(self._steps):
            raise PlanError(f"the pipeline goes on after the {self.plan.num_steps} steps of the share plan")
        if self._denoiser_calls == 0 and self._begins_step:
            self._drop_who_left()
        second = self._denoiser_calls == 1
        if (second and guidance == "batched") or self._denoiser_calls > 1:
            raise UnsupportedPipelineError(
                f"the pipeline called its denoiser {self._denoiser_calls + 1} times in one step, which "
                f"sharing cannot assign: switch off the guidance that makes the further call (skip-layer, "
                f"perturbed attention)"
            )
        if guidance == "batched" and self._rows_per_prompt and rows != self._rows_per_prompt * prompts:
            raise _guidance_changed(
                self._rows_per_prompt, rows / prompts, self.step, "denoiser rows per prompt"
            )
        per_prompt = self._count_rows(rows, prompts, guidance, guided, second)
        if self._rows_per_prompt == 0 or (second and self._call == 0):
            self._rows_per_prompt = per_prompt
            self.plan = self.plan.recost(rows_per_prompt=per_prompt)
        elif second and self._rows_per_prompt != 2:
            raise _guidance_changed(1, 2, self.step, "denoiser calls per step")
        return second

    @property
    def _begins_step(self) -> bool:
        return self._call == 0 or self._steps[self._call] != self._steps[self._call - 1]

    def _drop_who_left(self) -> None:
        """Only between steps: within one, a solver's or a guidance's calls belong together."""
        with self._lock:
            self.dropped = self._leaving
        if self.dropped and len(self.dropped) == self.plan.num_prompts:
            raise StoppedError(
                f"all {len(self.dropped)} prompts of the run were dropped; stopped before step {self.step} of "
                f"{self.plan.num_steps}"
            )

    def leave_denoiser(self, rows_run: int) -> None:
        """A denoiser call has ended, having run so many rows."""
        self.evaluations += rows_run
        self._denoiser_calls += 1

    # -- reported by the wrapped scheduler ---------------------------------------------------------

    @property
    def first_call(self) -> bool:
        """Whether the scheduler has not been called yet in this run."""
        return self._call == 0

    @property
    def scheduler_call(self) -> int:
        """Number of the scheduler call being worked on, from 0."""
        return self._call

    @property
    def ends_step(self) -> bool:
        """Whether the scheduler call being worked on is the last one of its step."""
        return self._call + 1 >= len(self._steps) or self._steps[self._call + 1] != self._steps[self._call]

    def enter_scheduler(self, guidance: GuidanceKind) -> None:
        """A scheduler call is about to run.

        Raises:
            UnsupportedPipelineError: the denoiser ran past the hook, or not as often as in the steps before.
        """
        if self._denoiser_calls == 0:
            raise UnsupportedPipelineError(
                "the scheduler was called without a denoiser call that shared sampling saw: something "
                "replaced the denoiser's forward inside the context (enable offloading and compile before "
                "entering, and enter once for each run)"
            )
        if guidance == "two calls" and self._denoiser_calls != self._rows_per_prompt:
            raise _guidance_changed(
                self._rows_per_prompt, self._denoiser_calls, self.step, "denoiser calls per step"
            )

    def leave_scheduler(self) -> None:
        """A scheduler call has ended."""
        self._call += 1
        self._denoiser_calls = 0

    @staticmethod
    def _count_rows(
        rows: int, prompts: int, guidance: GuidanceKind, guided: bool | None, second: bool
    ) -> int:
        """Denoiser rows per prompt: 1 without classifier-free guidance, 2 with it."""
        if guidance == "two calls":
            expected, per_prompt = prompts, 2 if second else 1
        else:
            # Ask the pipeline rather than the number: with 2 prompts planned, 2 rows may also be one guided
            # prompt
            per_prompt = (2 if rows == 2 * prompts else 1) if guided is None else (2 if guided else 1)
            expected = per_prompt * prompts
        if rows != expected:
            raise UnsupportedPipelineError(
                f"the pipeline calls its denoiser with {rows} rows, but the share plan has {prompts} "
                f"prompts ({expected} rows expected): give exactly the plan's prompts, with "
                f"num_images_per_prompt=1 (repeat a prompt in the plan instead)"
            )
        return per_prompt


def _guidance_changed(first: int, now: float, step: int, what: str) -> UnsupportedPipelineError:
    return UnsupportedPipelineError(
        f"guidance changed on the way: {first} {what} at first, {now:g} at step {step}. Let the pipeline guide at "
        f"all its steps or none (without truncation); to leave guidance out at first, use the plan's unguided_steps"
    )


def calls_per_step(scheduler: Any, num_steps: int) -> tuple[int, ...]:
    """Denoiser calls of every step, read from the scheduler's timesteps after `set_timesteps`.

    Raises:
        PlanError: the scheduler was set to another number of steps than the plan has.
    """
    begin = getattr(scheduler, "begin_index", None) or 0  # image-to-image pipelines begin later
    timesteps = len(scheduler.timesteps) - begin
    calls = planned_calls(scheduler, num_steps, from_start=begin == 0)
    if sum(calls) != timesteps:
        raise PlanError(
            f"the share plan has {num_steps} steps ({sum(calls)} calls of {type(scheduler).__name__}), but "
            f"the pipeline's scheduler is set to {timesteps} calls; make them equal, e.g. "
            f"num_inference_steps=plan.num_steps (with an image-to-image strength, plan only the steps that "
            f"it leaves)"
        )
    return calls


def planned_calls(scheduler: Any, num_steps: int, from_start: bool = True) -> tuple[int, ...]:
    """Denoiser calls that each step of this kind of solver takes, before any timesteps are set."""
    pndm = any(cls.__name__ == "PNDMScheduler" for cls in type(scheduler).__mro__)
    if pndm and from_start and scheduler.config.skip_prk_steps:
        return (2,) + (1,) * (num_steps - 1) if num_steps > 1 else (1,)  # the first step is taken twice
    if pndm and from_start:
        return (4, 4, 4) + (1,) * (num_steps - 3)  # three Runge-Kutta steps to start with
    if getattr(scheduler, "order", 1) == 2:
        return (2,) * (num_steps - 1) + (1,)  # the last step of Heun's method is Euler's
    return (1,) * num_steps


def check_first_timestep(scheduler: Any, timestep: Any) -> None:
    """The first scheduler call must be at the first timestep.

    Raises:
        PlanError: it is not; the pipeline skips steps in a way that the scheduler does not tell beforehand.
    """
    begin = getattr(scheduler, "begin_index", None) or 0
    first = scheduler.timesteps[begin]
    if isinstance(timestep, torch.Tensor) and timestep.numel() != 1:
        return
    if float(timestep) != float(first):
        raise PlanError(
            f"the pipeline begins at timestep {float(timestep):g}, not at the scheduler's first, "
            f"{float(first):g}: it skips steps that the share plan counts (image-to-image strength below 1 "
            f"with {type(scheduler).__name__})"
        )
