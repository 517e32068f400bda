"""Dropping prompts while they run: no rows for who has left, and no other image for who stays."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny

from sagediff.errors import InputError, SagediffError, StoppedError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling

STEPS = 5
PROMPTS = [3, 4, 5, 6]
FAMILIES = [("sd", "dpmpp_2m"), ("sd", "heun"), ("sd", "euler_a"), ("sd3", "flow"), ("flux", "flow")]


def make_plan(shared_guidance: float | None = None) -> SharePlan:
    return SharePlan.from_groups([[0, 2, 3], [1]], STEPS, 0.6, shared_guidance)


def run_with(case: Any, plan: SharePlan, leave: dict[int, int], **options: Any) -> tuple[torch.Tensor, Any]:
    """Images and run, where each prompt of `leave` goes after that step."""

    def look(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        run.drop([prompt for prompt, last in leave.items() if last < run.step])
        return values

    with shared_sampling(case.pipe, plan, **options) as run:
        run.drop([prompt for prompt, last in leave.items() if last < 0])
        images = case(PROMPTS, STEPS, plan.generators(0), callback_on_step_end=look)
    return images, run


def rows_wanted(plan: SharePlan, leave: dict[int, int]) -> int:
    """By the definition: a node's rows of a step count while one member is there."""
    total = 0
    for step in range(STEPS):
        nodes = plan.partition(step).tolist()
        calls = plan.calls_per_step[step] if plan.calls_per_step else 1
        for node in set(nodes):
            members = [prompt for prompt in range(len(nodes)) if nodes[prompt] == node]
            if any(leave.get(prompt, STEPS) >= step for prompt in members):
                total += calls * (2 if plan.runs_negative(step, len(members)) else 1)
    return total


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    leave=st.dictionaries(st.integers(0, 3), st.integers(-1, STEPS - 1), max_size=3),
    shared_guidance=st.sampled_from([None, 1.0]),
)
@pytest.mark.parametrize(("family", "scheduler"), FAMILIES)
def test_who_stays_is_not_changed_and_who_left_costs_nothing(
    family: str, scheduler: str, leave: dict[int, int], shared_guidance: float | None
) -> None:
    case = tiny(family, scheduler)
    plan = make_plan(shared_guidance)
    expected, whole = run_with(case, plan, {})
    assert whole.evaluations == whole.plan.evaluations
    images, run = run_with(case, plan, leave)
    staying = [prompt for prompt in range(4) if prompt not in leave]
    torch.testing.assert_close(images[staying], expected[staying], rtol=0, atol=1e-5)
    # a step that was begun is finished for all, so who leaves after step s had its rows
    assert run.evaluations == rows_wanted(run.plan, leave)
    assert images.isfinite().all()


def test_a_step_of_two_calls_is_finished_for_who_leaves_between_them() -> None:
    case = tiny("sd", "heun")
    plan = make_plan()

    def look(pipe: Any, call: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if call == 2:  # the first of step 1
            run.drop([1])
        return values

    with shared_sampling(case.pipe, plan) as run:
        case(PROMPTS, STEPS, plan.generators(0), callback_on_step_end=look)
    assert run.evaluations == rows_wanted(run.plan, {1: 1})


def test_row_by_row_it_is_the_same_to_the_last_bit() -> None:
    case = tiny("sd", "dpmpp_2m")
    expected, _ = run_with(case, make_plan(), {}, micro_batch_size=1)
    images, _ = run_with(case, make_plan(), {0: 0, 1: 3}, micro_batch_size=1)
    assert torch.equal(images[2:], expected[2:])


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_when_all_are_gone_the_call_ends_and_the_pipeline_is_as_it_was(family: str) -> None:
    case = tiny(family)
    plan = make_plan()
    before = case(PROMPTS, STEPS, plan.generators(0))
    names = [sorted(vars(thing)) for thing in (case.pipe, case.pipe.scheduler, case.denoiser)]
    forward = case.denoiser.forward
    with pytest.raises(StoppedError, match=r"all 4 prompts .* before step 3 of 5"):
        run_with(case, plan, {0: 1, 1: 1, 2: 2, 3: 0})
    assert [sorted(vars(thing)) for thing in (case.pipe, case.pipe.scheduler, case.denoiser)] == names
    assert case.denoiser.forward == forward
    assert torch.equal(case(PROMPTS, STEPS, plan.generators(0)), before)
    assert issubclass(StoppedError, SagediffError) and not issubclass(StoppedError, InputError)


def test_gone_before_the_run_begins() -> None:
    case = tiny("sd")
    with pytest.raises(StoppedError, match="before step 0"):
        run_with(case, make_plan(), dict.fromkeys(range(4), -1))


def test_another_thread_may_drop() -> None:
    case = tiny("sd")
    plan = make_plan()

    def look(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        threads = [threading.Thread(target=run.drop, args=([prompt],)) for prompt in (0, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return values

    with shared_sampling(case.pipe, plan) as run:
        images = case(PROMPTS, STEPS, plan.generators(0), callback_on_step_end=look)
    assert run.dropped == {0, 2, 3}
    assert run.evaluations == 4 + 2 * (STEPS - 1)
    torch.testing.assert_close(images[1], case(PROMPTS, STEPS, plan.generators(0))[1], rtol=0, atol=1e-5)


def test_a_shared_phase_is_recorded_while_one_member_is_left() -> None:
    case = tiny("sd")
    _, whole = run_with(case, make_plan(), {}, record=[[0, 2, 3]], micro_batch_size=1)
    _, one_left = run_with(case, make_plan(), {0: 0, 3: 1}, record=[[0, 2, 3]], micro_batch_size=1)
    _, broken_off = run_with(case, make_plan(), {0: 0, 2: 1, 3: 1}, record=[[0, 2, 3]])
    assert one_left.recorded[0].equals(whole.recorded[0])
    assert broken_off.recorded == {}


def test_a_prompt_that_is_not_there_is_not_dropped() -> None:
    with shared_sampling(tiny("sd").pipe, make_plan()) as run:
        for prompt in (-1, 4):
            with pytest.raises(InputError, match="the plan has 4"):
                run.drop([prompt])
