"""`shared_sampling`: a share plan carried out by any supported diffusers pipeline, which stays in charge of
its own loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from sagediff.denoiser.attention import attention_kept
from sagediff.denoiser.condition import GroupCondition, mean_condition
from sagediff.denoiser.guiders import guiders_told
from sagediff.denoiser.lookup import denoisers_of, family_of
from sagediff.denoiser.micro_batch import MicroBatch, micro_batches
from sagediff.denoiser.private_names import unwrapped
from sagediff.denoiser.scheduler import check_noise_source
from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.hook import Answers, DenoiserHook, hook_installed
from sagediff.sampling.noise import MemberNoise, start_seen
from sagediff.sampling.record_replay import Record, RecordReplay, steps_to_record
from sagediff.sampling.run import SharedRun
from sagediff.sampling.trajectory import Trajectory
from sagediff.sampling.wrapped_scheduler import wrapped_scheduler


@contextmanager
def shared_sampling(
    pipe: Any,
    plan: SharePlan,
    *,
    group_condition: GroupCondition = mean_condition,
    micro_batch_size: MicroBatch = None,
    fresh_noise: float = 0.0,
    fresh_noise_rows: Sequence[bool] | None = None,
    member_noise: Sequence[int] | None = None,
    handover_noise: float = 0.0,
    record: Record = (),
    replay: Mapping[int, Trajectory] | None = None,
) -> Iterator[SharedRun]:
    """Inside the context, a pipeline called with the plan's prompts in order shares steps as planned.

    Call it with `num_inference_steps=plan.num_steps` and equal noise within groups
    (`generator=plan.generators(seed)`). Afterwards the pipeline is as it was found, also after an error.

    Args:
        pipe: a diffusers pipeline whose denoiser class `denoiser.table.FAMILIES` knows.
        plan: which prompts share which steps.
        group_condition: makes the members' conditions into one (`condition.py`); the default is their mean.
        micro_batch_size: most denoiser rows run at once, None (default) for all.  Smaller takes less memory
            and changes no image beyond rounding.  "auto" measures, in the first steps, which size is fastest and
            fits the memory; give a `MeasuredSize` to several runs to measure once.
        fresh_noise: part, in [0, 1], of the state's noise that is replaced at a prompt's branch point,
            variance kept.  Higher sets members of a group further apart, which equal prompts need; 0
            (default) hands the state over as it is.
        fresh_noise_rows: for which prompts, one flag each; None (default) for all.
        handover_noise: part, in [0, 1], of what is not yet the member's own image that is drawn anew after its
            first step past the branch point.  1 lets nothing of the group's image but what that step made of it
            go on; for weights trained to share, few steps and no guidance.  0 (default) leaves the state.
        member_noise: a seed for each prompt.  Past its branch point a prompt's stochastic solver, and its
            fresh noise, draw from a generator of its own.  None (default): solvers go on with the pipeline's
            generators, fresh noise is torch's.
        record: whose shared steps are kept for later: prompts, or groups of them, each until its members part; or
            {prompt: number of first steps}, which also records a prompt that shares nothing.  They are in
            `run.recorded`, by the (first) prompt, as soon as the last of those steps is finished.
        replay: for each prompt of which the plan says `replayed_steps`, the trajectory that its first steps take
            instead of running.  With the noise that the recorded group started from, a prompt's image is the one
            that it gets as a member of that group.

    Yields:
        The run: `evaluations`, `plan` as costed for this pipeline, `step`, `recorded`; and `drop(prompts)`, which
        takes prompts out while it runs.

    Raises:
        UnsupportedPipelineError: a denoiser, scheduler or feature that sharing does not know.
        InputError: an option out of range; or the context is entered twice on a pipeline; or members start
            from different noise; or a trajectory does not fit the plan or the run.
        StoppedError: out of the pipeline's call, when every prompt was dropped.
        PlanError: the pipeline is run with another number of steps than planned.
    """
    if not isinstance(plan, SharePlan):
        raise InputError(
            f"plan should be a SharePlan, got {type(plan).__name__} (SharePlan.from_groups(groups, "
            f"num_steps))"
        )
    micro = micro_batches(micro_batch_size)
    modules = denoisers_of(pipe)
    scheduler = getattr(pipe, "scheduler", None)
    if not hasattr(scheduler, "step"):
        raise UnsupportedPipelineError(f"{type(pipe).__name__} has no scheduler whose steps could be counted")
    check_noise_source(scheduler)
    run = SharedRun(plan, steps_to_record(plan, record))
    family = family_of(modules[0], pipe)
    records = RecordReplay(run, replay or {}, family)
    noise = MemberNoise(scheduler, plan, fresh_noise, fresh_noise_rows, member_noise, handover_noise)
    answers = Answers()
    hooks = [DenoiserHook(pipe, module, run, records, group_condition, micro, answers) for module in modules]
    with ExitStack() as stack:
        for module, hook in zip(modules, hooks, strict=True):
            stack.enter_context(attention_kept(unwrapped(module)))
            stack.enter_context(hook_installed(module, hook))
        stack.enter_context(guiders_told(pipe, run.tell_parts))
        stack.enter_context(start_seen(pipe, noise))
        stack.enter_context(wrapped_scheduler(scheduler, run, noise))
        yield run
