"""`RecordReplay`: keeps answers of the denoiser for later runs, and puts kept ones in place of computed ones.

It knows where a run stands and which row of a call is whose; not the module, nor how rows are run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from torch import Tensor

from sagediff.denoiser.call import DenoiserCall
from sagediff.denoiser.family import Family
from sagediff.errors import InputError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.run import SharedRun
from sagediff.sampling.trajectory import Trajectory, check_timesteps, start_of

Record: TypeAlias = Sequence[int | Sequence[int]] | Mapping[int, int]
"""Prompts, or groups of prompts, whose shared steps are recorded; or how many first steps of which prompt."""

_GUIDED = {1: "without classifier-free guidance", 2: "with classifier-free guidance"}  # by rows per prompt


class RecordReplay:
    """Records and replays; one for all denoisers of a pipeline.

    Args:
        run: told where it stands, and holds the recordings.
        replay: the trajectory of each prompt that the plan has replay.
        family: how the calls of the pipeline's denoisers are made up.

    Raises:
        InputError: trajectories for other prompts than planned, or too short, or unlike ones within a node.
    """

    def __init__(self, run: SharedRun, replay: Mapping[int, Trajectory], family: Family) -> None:
        _check_planned(run.plan, replay)
        self._run = run
        self._replay = dict(replay)
        self._family = family

    def check(self, call: DenoiserCall, sample: Tensor) -> None:
        """Before a call runs: what is replayed fits this run.

        Args:
            sample: (rows, ...) the noisy latents.

        Raises:
            InputError: other timesteps, size or noise, or only one of both runs is guided.
        """
        run, begins_run = self._run, call.begins_run and not call.number
        # a pipeline that calls twice per step does not show that it guides before its second call
        knows_guidance = self._family.guidance == "batched" or not begins_run
        first_rows = run.plan.rows_of_calls()[0]
        for prompt, trajectory in self._replay.items():
            where = f"prompt {prompt} cannot replay its trajectory"
            if begins_run:
                steps = (run.plan.replayed_steps or ())[prompt]
                check_timesteps(
                    trajectory, steps, run.plan.calls_per_step or (), run.schedule.timesteps, where
                )
                if tuple(sample.shape[1:]) != trajectory.sample_shape:
                    raise InputError(
                        f"{where}: it was recorded with latents of shape {trajectory.sample_shape}, this run has "
                        f"{tuple(sample.shape[1:])}; replay it at the size that it was recorded at"
                    )
                if not np.allclose(start_of(sample[prompt]), trajectory.start, rtol=1e-2, atol=1e-3):
                    raise InputError(
                        f"{where}: it starts from other noise than the recorded run; seed its generator with the "
                        f"noise seed that the recorded group had"
                    )
            if knows_guidance and first_rows != trajectory.rows_per_prompt:
                was, now = (
                    f"with {rows} rows per prompt" if rows > 2 else _GUIDED[rows]
                    for rows in (trajectory.rows_per_prompt, first_rows)
                )
                raise InputError(f"{where}: it was recorded {was}, this run is {now}; use the same guidance")

    def like(self) -> Tensor:
        """(1, ...) a prediction to take shape and dtype from, where none is computed."""
        trajectory = next(iter(self._replay.values()))
        return trajectory.row(0, 0)[None]

    def replay(self, call: DenoiserCall, prediction: Tensor) -> None:
        """Put what is replayed in this call into the prediction (rows, ...), in place.

        Raises:
            InputError: it is of another shape or dtype than what this run's denoiser makes.
        """
        for prompt in self._run.plan.replays(call.step).nonzero()[0].tolist():
            for first_row, part in call.first_rows():
                row = self._replay[prompt].row(call.solver_call, call.place(part))
                if row.shape != prediction.shape[1:] or row.dtype != prediction.dtype:
                    raise InputError(
                        f"prompt {prompt} cannot replay its trajectory: it holds {row.dtype} of shape "
                        f"{tuple(row.shape)}, this run's denoiser makes {prediction.dtype} of shape "
                        f"{tuple(prediction.shape[1:])}"
                    )
                prediction[first_row + prompt] = row.to(prediction.device)

    def record(self, call: DenoiserCall, prediction: Tensor, sample: Tensor) -> None:
        """Keep what the pipeline is about to see, of the prompts that are recorded.

        Args:
            prediction: (rows, ...) as the pipeline will see it.
            sample: (rows, ...) the noisy latents.
        """
        run = self._run
        replays = run.plan.replays(call.step)
        for prompt, recording in run.recordings.items():
            if call.step >= recording.num_steps:
                continue
            if prompt in run.abandoned() and not replays[prompt]:
                recording.give_up()
                continue
            rows = {call.place(part): prediction[first_row + prompt] for first_row, part in call.first_rows()}
            recording.note(call.solver_call, rows, sample[prompt])


def steps_to_record(plan: SharePlan, record: Record) -> dict[int, int]:
    """For each prompt to record (the first of a group) how many first steps.

    Raises:
        InputError: prompts that the plan does not have, that are no node, or that share nothing.
    """
    if isinstance(record, Mapping):
        steps = dict(record)
    else:
        steps = {}
        for entry in record:
            prompts = [entry] if isinstance(entry, int) else list(entry)
            _check_prompts(plan, prompts)
            if not prompts:
                raise InputError("a group to record is empty; name its prompts")
            steps[prompts[0]] = _together(plan, prompts)
    _check_prompts(plan, list(steps))
    for prompt, count in steps.items():
        if not 1 <= count <= plan.num_steps:
            raise InputError(
                f"prompt {prompt} should record {count} steps, which is not in [1, {plan.num_steps}]; prompts that "
                f"do not share are recorded by saying how many steps: record={{{prompt}: steps}}"
            )
    return steps


def _together(plan: SharePlan, prompts: Sequence[int]) -> int:
    """For how many first steps the prompts are one node; of one prompt, for how many it shares."""
    if len(prompts) == 1:
        return plan.branch_steps[prompts[0]]
    apart = [start for start, nodes in plan.levels if len({nodes[prompt] for prompt in prompts}) > 1]
    if 0 in apart:
        raise InputError(
            f"prompts {list(prompts)} are to be recorded as a group, but do not share their first step"
        )
    return min(apart, default=plan.num_steps)


def _check_prompts(plan: SharePlan, prompts: Sequence[int]) -> None:
    if wrong := [prompt for prompt in prompts if not 0 <= prompt < plan.num_prompts]:
        raise InputError(f"there is no prompt {wrong[0]} to record; the plan has {plan.num_prompts}")


def _check_planned(plan: SharePlan, replay: Mapping[int, Trajectory]) -> None:
    steps = plan.replayed_steps or (0,) * plan.num_prompts
    planned = {prompt for prompt, count in enumerate(steps) if count}
    if missing := sorted(planned - set(replay)):
        raise InputError(
            f"the plan has prompt {missing[0]} replay {steps[missing[0]]} steps, but replay= holds no trajectory for it"
        )
    if unplanned := sorted(set(replay) - planned):
        raise InputError(
            f"there is a trajectory for prompt {unplanned[0]}, which the plan does not have replay any step; set the "
            f"plan's replayed_steps"
        )
    for prompt, trajectory in replay.items():
        if trajectory.num_steps < steps[prompt]:
            raise InputError(
                f"the plan has prompt {prompt} replay {steps[prompt]} steps, but its trajectory holds "
                f"{trajectory.num_steps}; plan at most those"
            )
    first: dict[int, int] = {}
    for prompt, node in enumerate(plan.levels[0][1]):
        other = first.setdefault(node, prompt)
        if steps[prompt] and not replay[prompt].equals(replay[other]):
            raise InputError(
                f"prompts {other} and {prompt} begin as one node, but replay unlike trajectories; give both the same"
            )
