"""Where a shared run stands: which step of the plan it is in, and what it has cost.

The hook (`hook.py`) reports denoiser calls, the wrapped scheduler (`wrapped_scheduler.py`) reports the solver's calls;
neither knows the other. Steps are counted by the solver's calls, never read from timesteps: pipelines scale those each
in its own way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sagediff.denoiser.call import DenoiserCall
from sagediff.denoiser.guidance import CONDITIONAL, Guiding, Part, Way
from sagediff.denoiser.scheduler import calls_per_step, first_call, timesteps_of
from sagediff.errors import InputError, PlanError, StoppedError, UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.trajectory import Recording, Trajectory


@dataclass(frozen=True)
class Schedule:
    """The solver's calls in a run of the pipeline, in order.

    Attributes:
        steps: the plan's step that each belongs to.
        timesteps: the scheduler's timestep of each.
        first: the scheduler's number of the first of them.
    """

    steps: tuple[int, ...]
    timesteps: tuple[float, ...]
    first: int = 0

    def begins_step(self, call: int) -> bool:
        """Whether a call is the first one of a step, or would be, after the last step."""
        return call in (0, len(self.steps)) or self.steps[call - 1] != self.steps[call]


class SharedRun:
    """What `shared_sampling` yields; describes the pipeline's latest run inside the context.

    A run waits until the pipeline calls its denoiser, and is under way from there on: only then the solver's schedule
    and the rows of a prompt are known.

    Attributes:
        solver_call: number of the solver's call that is being worked on, from 0.
        plan: the share plan, costed as the pipeline runs it (rows per prompt, denoiser calls per step) once a run
            has begun; so `evaluations == plan.evaluations` at the end of every run in which no prompt was dropped.
            Where guidance stops or begins on the way, steps to come count as the latest one.
        evaluations: denoiser rows really run so far, guidance rows included; less than planned after a `drop`.
        dropped: prompts whose rows are not run any more.
        not_finite: prompts whose final latents are not finite; known after the last step.
        recordings: for each prompt that is recorded, what there is of its trajectory.
        latest_call: the denoiser call that was entered last; None before a run's first.
    """

    def __init__(self, plan: SharePlan, record: Mapping[int, int] | None = None) -> None:
        self.plan = plan
        self.recordings = {prompt: Recording(steps) for prompt, steps in (record or {}).items()}
        self.dropped: frozenset[int] = frozenset()
        self._leaving: frozenset[int] = frozenset()  # asked to be dropped
        self._lock = threading.Lock()
        self._number = 0  # of the pipeline's run
        self.begin()

    def begin(self) -> None:
        """The pipeline sets its scheduler for a new run, which waits for the first denoiser call. Who was dropped
        stays so."""
        self._number += 1
        self.evaluations = 0
        self.not_finite: frozenset[int] = frozenset()
        self._schedule: Schedule | None = None  # None: waiting
        self._end = 0  # of the solver's calls that the pipeline takes
        self.solver_call = 0
        self.latest_call: DenoiserCall | None = None
        self._calls: list[tuple[Part, ...]] = []  # finished for this call of the solver
        self._told: tuple[Part, ...] | None = None
        for recording in self.recordings.values():
            recording.begin()

    # -- for the caller ----------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The plan's step that is being worked on; `plan.num_steps` when all are done."""
        if self._schedule is None:
            return 0
        steps = self._schedule.steps
        return steps[self.solver_call] if self.solver_call < len(steps) else self.plan.num_steps

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
        if self._schedule is None:
            return {}
        calls, timesteps = self.plan.calls_per_step or (), self._schedule.timesteps
        found = {
            prompt: recording.trajectory(self.solver_call, calls, timesteps, self.plan.rows_of_calls()[0])
            for prompt, recording in self.recordings.items()
        }
        return {prompt: trajectory for prompt, trajectory in found.items() if trajectory is not None}

    # -- for the hook ------------------------------------------------------------------------------

    def abandoned(self) -> frozenset[int]:
        """Prompts whose node at this step has no member left."""
        nodes = self.plan.partition(self.step).tolist()
        wanted = {node for prompt, node in enumerate(nodes) if prompt not in self.dropped}
        return frozenset(prompt for prompt, node in enumerate(nodes) if node not in wanted)

    @property
    def schedule(self) -> Schedule:
        """The solver's calls of the run under way."""
        assert self._schedule is not None, "the run is waiting for its first denoiser call"
        return self._schedule

    def enter_denoiser(
        self,
        rows: int,
        guiding: Guiding,
        guided: bool | None,
        scheduler: Any,
        may_skip: bool = False,
        last_timestep: float | None = None,
    ) -> DenoiserCall:
        """A denoiser call with so many rows is about to run.

        Args:
            guiding: tells the parts of the pipeline's calls, unless they were told for this run (`tell_parts`).
            guided: whether the pipeline says that it guides without a classifier; None when it does not say.
            may_skip: whether the pipeline may leave out first steps (`first_call`).
            last_timestep: below which the pipeline takes no more, where it ends early; None: it takes all.

        Raises:
            PlanError: the scheduler's steps are not the plan's, or it ends before prompts part that should.
            UnsupportedPipelineError: rows or calls that sharing cannot assign to prompts.
            StoppedError: every prompt was dropped.
        """
        if self._schedule is None:
            first = first_call(scheduler, self.plan.num_steps, may_skip)
            calls = calls_per_step(scheduler, self.plan.num_steps, first)
            self.plan = self.plan.recost(calls_per_step=calls)
            steps = tuple(step for step, count in enumerate(calls) for _ in range(count))
            self._schedule = Schedule(steps, timesteps_of(scheduler, first), first)
            if last_timestep is None:
                self._end = len(steps)
            else:
                self._end = sum(each >= last_timestep for each in self._schedule.timesteps)
                self._check_parts_before_end()
        if self.solver_call >= len(self._schedule.steps):
            raise PlanError(f"the pipeline goes on after the {self.plan.num_steps} steps of the share plan")
        if not self._calls and self._schedule.begins_step(self.solver_call):
            self._drop_who_left()
        number, begins = len(self._calls), self.solver_call == 0
        way = (
            guiding.way(self._calls, rows, self.plan.num_prompts, guided, begins)
            if self._told is None
            else self._told_way(self._told, rows)
        )
        so_far = sum(map(len, (*self._calls, way.calls[number])))
        if (begins and number == 0) or so_far > self.plan.rows_of_calls()[self.solver_call]:
            self.plan = self.plan.recost_from(self.solver_call, so_far, self._end)
        self.latest_call = DenoiserCall(
            self._number, self.step, self.solver_call, self.plan.num_prompts, way, number
        )
        return self.latest_call

    def _check_parts_before_end(self) -> None:
        """
        Raises:
            PlanError: prompts that the plan parts would be left with the image of their group.
        """
        taken = self.schedule.steps[self._end - 1] + 1
        late = [
            prompt
            for prompt, step in enumerate(self.plan.branch_steps)
            if taken <= step < self.plan.num_steps
        ]
        if late:
            raise PlanError(
                f"the pipeline ends after {taken} of {self.plan.num_steps} steps (denoising_end), before prompts "
                f"{late} part at step {self.plan.branch_steps[late[0]]}: all would get the image of their group; "
                f"plan a smaller share_ratio"
            )

    def tell_parts(self, parts: tuple[Part, ...] | None) -> None:
        """The solver's calls from here on, until told anew, have one denoiser call for each of these parts of guidance.

        For loops whose guidance the run decides (guiders), whatever the family says. The conditional part is first;
        None: the family says again.
        """
        self._told = parts

    def _told_way(self, parts: tuple[Part, ...], rows: int) -> Way:
        """
        Raises:
            UnsupportedPipelineError: a call or rows that were not told.
        """
        if not parts or parts[0] != CONDITIONAL or len(parts) <= len(self._calls):
            raise UnsupportedPipelineError(
                f"the pipeline called its denoiser {len(self._calls) + 1} times in one step, but its guidance has the "
                f"parts {', '.join(parts) or 'none'}, of which sharing needs the conditional one first"
            )
        if rows != self.plan.num_prompts:
            raise UnsupportedPipelineError(
                f"the pipeline calls its denoiser with {rows} rows, but the share plan has {self.plan.num_prompts} "
                f"prompts: give exactly the plan's prompts, with num_images_per_prompt=1 (repeat a prompt in the plan "
                f"instead)"
            )
        return Way(tuple((part,) for part in parts))

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
        assert self.latest_call is not None
        self.evaluations += rows_run
        self._calls.append(self.latest_call.parts)

    # -- for the wrapped scheduler -----------------------------------------------------------------

    @property
    def ends_step(self) -> bool:
        """Whether the solver's call that is being worked on is the last one of its step."""
        return self.schedule.begins_step(self.solver_call + 1)

    def enter_scheduler(self) -> None:
        """The solver is about to be called.

        Raises:
            UnsupportedPipelineError: the denoiser ran past the hook, or not as often as was told.
        """
        if not self._calls:
            raise UnsupportedPipelineError(
                "the scheduler was called without a denoiser call that shared sampling saw: something "
                "replaced the denoiser's forward inside the context (enable offloading and compile before "
                "entering, and enter once for each run)"
            )
        if self._told is not None and len(self._calls) != len(self._told):
            raise UnsupportedPipelineError(
                f"the pipeline called its denoiser {len(self._calls)} times in one step, but its guidance has the "
                f"parts {', '.join(self._told)}"
            )
        rows = sum(map(len, self._calls))
        if rows < self.plan.rows_of_calls()[self.solver_call]:
            self.plan = self.plan.recost_from(self.solver_call, rows, self._end)

    def leave_scheduler(self, state: Tensor) -> None:
        """The solver's call has ended, and gave the latents (N, ...)."""
        if self.solver_call + 1 == self._end:
            finite = state.detach().isfinite().flatten(1).all(dim=1).tolist()
            self.not_finite = frozenset(row for row, is_finite in enumerate(finite) if not is_finite)
        self.solver_call += 1
        self._calls = []
