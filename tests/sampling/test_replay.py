"""Replay: a prompt that takes over a group's recorded steps gets exactly the image that it gets in that group.

Rows are run one at a time here, since batches of unlike size round unlike: what is left is exact to the last bit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import RECIPES, tiny

from sagediff.errors import InputError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling
from sagediff.sampling.trajectory import Trajectory

STEPS = 5
SHARED = 2
GROUP = [3, 4, 5]  # as prompts of `tiny`
SEED = 11  # of the group's noise
OWN = [21, 22, 23]  # of each member's noise past the branch point
CASES = [
    ("sd", "dpmpp_2m"),  # multistep
    ("sd", "euler_a"),  # stochastic
    ("sd", "dpmpp_sde"),
    ("sd", "heun"),  # two calls per step
    ("sd", "pndm"),  # two calls for the first step only
    ("sd", "unipc"),
    ("sd", "ddpm"),
    ("sd3", "flow"),
    ("flux", "flow"),  # guidance by a second call
    ("z-image", "flow"),  # lists of rows
    ("wan2.2", "unipc_flow"),  # two denoisers
]
NOISY = [(f, s) for f, s in CASES if s in ("dpmpp_2m", "euler_a", "heun", "unipc", "flow")]


def generators(count: int, seed: int = SEED) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for _ in range(count)]


def group_plan(shared_guidance: float | None = None, shared: int = SHARED, **options: Any) -> SharePlan:
    return SharePlan.from_groups([[0, 1, 2]], STEPS, shared / STEPS, shared_guidance, **options)


def lone_plan(count: int = 1, replayed: int = SHARED, **options: Any) -> SharePlan:
    plan = SharePlan.from_groups([[i] for i in range(count)], STEPS, 0.0, **options)
    return replace(plan, replayed_steps=(replayed,) * count)


def recorded(
    case: Any, plan: SharePlan, guided: bool = True, **options: Any
) -> tuple[torch.Tensor, Trajectory]:
    """The group's images, and its trajectory."""
    with shared_sampling(case.pipe, plan, record=[[0, 1, 2]], micro_batch_size=1, **options) as run:
        images = case(GROUP, STEPS, generators(3), guided)
    assert list(run.recorded) == [0]
    return images, run.recorded[0]


def replayed(
    case: Any,
    prompts: list[int],
    plan: SharePlan,
    trajectory: Trajectory,
    guided: bool = True,
    **options: Any,
) -> torch.Tensor:
    """Images of prompts that all replay; the cost is the plan's, and what the denoiser has seen."""
    seen = 0

    def count(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal seen
        seen += len(args[0])

    handles = [module.register_forward_pre_hook(count) for module in case.counted]
    try:
        with shared_sampling(
            case.pipe,
            plan,
            replay=dict.fromkeys(range(len(prompts)), trajectory),
            micro_batch_size=1,
            **options,
        ) as run:
            images = case(prompts, STEPS, generators(len(prompts)), guided)
    finally:
        for handle in handles:
            handle.remove()
    assert run.evaluations == run.plan.evaluations == seen
    return images


# -- exactness


@pytest.mark.parametrize(("shared_guidance", "guided"), [(None, True), (1.0, True), (None, False)])
@pytest.mark.parametrize(("family", "scheduler"), CASES)
def test_a_replay_is_the_members_own_image(
    family: str, scheduler: str, shared_guidance: float | None, guided: bool
) -> None:
    case = tiny(family, scheduler)
    images, trajectory = recorded(case, group_plan(shared_guidance), guided, member_noise=OWN)
    alone = replayed(case, [GROUP[1]], lone_plan(), trajectory, guided, member_noise=OWN[1:2])
    assert torch.equal(alone, images[1:2])
    together = replayed(case, GROUP[1:], lone_plan(2), trajectory, guided, member_noise=OWN[1:])
    torch.testing.assert_close(
        together, images[1:], rtol=0, atol=1e-5
    )  # other sizes of batch round otherwise


@pytest.mark.parametrize(("family", "scheduler"), NOISY)
def test_also_with_noise_at_the_hand_over(family: str, scheduler: str) -> None:
    case = tiny(family, scheduler)
    noise = {"handover_noise": 1.0, "fresh_noise": 0.5}
    plan = group_plan(1.0, unguided_steps=1)
    images, trajectory = recorded(case, plan, member_noise=OWN, **noise)
    alone = replayed(case, [GROUP[2]], lone_plan(unguided_steps=1), trajectory, member_noise=OWN[2:], **noise)
    assert torch.equal(alone, images[2:])


def test_a_guidance_between_is_replayed_too() -> None:
    case = tiny("sd")
    images, trajectory = recorded(case, group_plan(2.0))
    assert torch.equal(replayed(case, [GROUP[1]], lone_plan(), trajectory), images[1:2])


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_replays_stand_beside_groups_and_change_nobody(family: str) -> None:
    """One run: a group, a prompt alone, one that replays, and two that replay and go on sharing."""
    case = tiny(family, "dpmpp_2m" if family == "sd" else "flow")
    images, trajectory = recorded(case, group_plan(shared=3))
    prompts = [8, 9, 6, GROUP[1], *GROUP[1:]]
    plan = SharePlan.from_groups([[0, 1], [2], [3], [4, 5]], STEPS, [0.4, 0.0, 0.0, 0.8])
    plain = replace(plan)
    plan = replace(plan, replayed_steps=(0, 0, 0, 3, 2, 2))
    seeds = [1, 1, 2, SEED, SEED, SEED]
    runs = []
    for this, replay in ((plain, {}), (plan, dict.fromkeys((3, 4, 5), trajectory))):
        with shared_sampling(case.pipe, this, replay=replay, micro_batch_size=1) as run:
            runs.append(case(prompts, STEPS, [torch.Generator().manual_seed(seed) for seed in seeds]))
        assert run.evaluations == run.plan.evaluations
    torch.testing.assert_close(runs[1][:3], runs[0][:3], rtol=0, atol=1e-5)
    torch.testing.assert_close(runs[1][3], images[1], rtol=0, atol=1e-5)
    assert not torch.allclose(runs[1][4], runs[1][5], atol=1e-3)


def test_fewer_steps_than_recorded_are_the_earlier_branch_point() -> None:
    case = tiny("sd3")
    _, trajectory = recorded(case, group_plan(shared=4))
    images, _ = recorded(case, group_plan(shared=2))
    assert torch.equal(replayed(case, [GROUP[0]], lone_plan(), trajectory), images[:1])


def test_all_steps_can_be_replayed_without_running_anything() -> None:
    case = tiny("sd")
    images, trajectory = recorded(case, group_plan(shared=STEPS))
    plan = lone_plan(replayed=STEPS)
    assert plan.evaluations == 0
    assert torch.equal(replayed(case, [GROUP[0]], plan, trajectory), images[:1])


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_prompt_alone_is_recorded_when_asked(family: str) -> None:
    case = tiny(family)
    plan = SharePlan.from_groups([[0], [1]], STEPS, 0.0)
    with shared_sampling(case.pipe, plan, record={1: 3}, micro_batch_size=1) as run:
        images = case([3, 4], STEPS, generators(2))
    again = replayed(case, [4], lone_plan(replayed=3), run.recorded[1])
    assert torch.equal(again, images[1:])


def test_a_recording_is_there_after_its_last_step_and_a_second_run_makes_another() -> None:
    case = tiny("sd")
    there = []

    def look(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        there.append(bool(run.recorded))
        return values

    with shared_sampling(case.pipe, group_plan(), record=[0]) as run:
        case(GROUP, STEPS, generators(3), callback_on_step_end=look)
        first = run.recorded[0]
        case(GROUP, STEPS, generators(3, seed=5))
        second = run.recorded[0]
    assert there == [False, True, True, True, True]
    assert not first.equals(second)


def test_what_is_stored_follows_from_the_guidance() -> None:
    case = tiny("sd")
    _, both = recorded(case, group_plan(None))
    _, one = recorded(case, group_plan(1.0))
    _, unguided = recorded(case, group_plan(None), guided=False)
    assert [len(output) for output in both.outputs] == [2, 2]
    assert [len(output) for output in one.outputs] == [1, 1]  # the negative half is the conditional one
    assert (both.rows_per_prompt, one.rows_per_prompt, unguided.rows_per_prompt) == (2, 2, 1)
    assert both.nbytes == 2 * one.nbytes == 2 * 2 * 4 * 8 * 8 * 4


# -- refusals


def test_what_does_not_fit_is_refused_in_words() -> None:
    case = tiny("sd")
    _, trajectory = recorded(case, group_plan())
    plan = lone_plan()

    def must_not_run(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        raise AssertionError("the denoiser was run")

    def refused(words: str, plan: SharePlan, replay: dict[int, Trajectory], **call: Any) -> None:
        guided = call.pop("guided", True)
        pipe, seed = call.pop("case", case), call.pop("seed", SEED)
        pipe.counted[0].register_forward_pre_hook(must_not_run)
        steps = plan.num_steps
        with pytest.raises(InputError, match=words), shared_sampling(pipe.pipe, plan, replay=replay):
            pipe([4] * plan.num_prompts, steps, generators(plan.num_prompts, seed), guided, **call)

    refused("no trajectory for it", plan, {})
    refused("does not have replay any step", SharePlan.from_groups([[0]], STEPS), {0: trajectory})
    refused("holds 2; plan at most those", lone_plan(replayed=3), {0: trajectory})
    refused("recorded at timesteps", replace(plan, num_steps=6), {0: trajectory})
    refused("recorded at timesteps", plan, {0: trajectory}, case=tiny("sd", "heun"))
    refused("latents of shape", plan, {0: trajectory}, height=32)
    refused("recorded with classifier-free guidance", plan, {0: trajectory}, guided=False)
    refused("other noise", plan, {0: trajectory}, seed=SEED + 1)
    half = replace(trajectory, outputs=tuple(output.half() for output in trajectory.outputs))
    other = replace(trajectory, outputs=tuple(-output for output in trajectory.outputs))
    pair = replace(SharePlan.from_groups([[0, 1]], STEPS, 0.8), replayed_steps=(2, 2))
    refused("unlike trajectories", pair, {0: trajectory, 1: other})
    mixed = replace(SharePlan.from_groups([[0], [1]], STEPS), replayed_steps=(2, 2))
    refused("torch.float16", mixed, {0: trajectory, 1: half})


def test_guidance_by_two_calls_is_compared_as_soon_as_it_shows() -> None:
    case = tiny("flux")
    _, guided = recorded(case, group_plan())
    _, unguided = recorded(case, group_plan(), guided=False)
    for trajectory, now in ((guided, False), (unguided, True)):
        with (
            pytest.raises(InputError, match="use the same guidance"),
            shared_sampling(case.pipe, lone_plan(), replay={0: trajectory}) as run,
        ):
            case([4], STEPS, generators(1), now)
        assert run.evaluations == 0


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([3], "no prompt 3"),
        ({5: 2}, "no prompt 5"),
        ([[]], "empty"),
        ([[0, 2]], "do not share"),
        ([2], "record={2: steps}"),
        ({0: 6}, "not in"),
        ({0: 0}, "not in"),
    ],
)
def test_what_cannot_be_recorded(record: Any, words: str) -> None:
    plan = SharePlan.from_groups([[0, 1], [2]], STEPS, 0.4)
    with (
        pytest.raises(InputError) as raised,
        shared_sampling(tiny("sd").pipe, plan, record=record),
    ):
        pass
    assert words in str(raised.value)


# -- files


def test_a_trajectory_is_the_same_from_its_file(tmp_path: Path) -> None:
    case = tiny("sd", "heun")
    images, trajectory = recorded(case, group_plan())
    trajectory.save(tmp_path / "one.safetensors")
    again = Trajectory.load(tmp_path / "one.safetensors")
    assert again.equals(trajectory) and again.nbytes == trajectory.nbytes
    assert torch.equal(replayed(case, [GROUP[1]], lone_plan(), again), images[1:2])


def test_files_that_hold_no_trajectory_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="not a safetensors file"):
        Trajectory.load(path)
    path.write_bytes(b"broken")
    with pytest.raises(InputError, match="not a safetensors file"):
        Trajectory.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a trajectory"):
        Trajectory.load(path)
    save_file(
        {"a": torch.zeros(1)}, path, {"format": "sagediff.Trajectory", "version": "1", "trajectory": "{}"}
    )
    with pytest.raises(InputError, match="not a trajectory"):
        Trajectory.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": ()},
        {"calls": (1,)},
        {"timesteps": (1.0,)},
        {"rows_per_prompt": 9},
        {"outputs": (torch.zeros(3, 4), torch.zeros(3, 4))},
        {"outputs": (torch.zeros(1, 4), torch.zeros(1, 5))},
        {"outputs": (torch.zeros(1, 4), torch.zeros(1, 4).half())},
    ],
)
def test_a_trajectory_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    good = Trajectory((torch.zeros(1, 4), torch.zeros(2, 4)), (1, 1), (2.0, 1.0), (4,), 2, ())
    with pytest.raises(InputError):
        replace(good, **changes)


def test_the_cases_are_real_families() -> None:
    assert all(scheduler in RECIPES[family].schedulers for family, scheduler in CASES)
