"""Noise of each member's own after the branch point."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from tiny import tiny

from sagediff.errors import UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling
from sagediff.sampling.noise import MemberNoise

STEPS = 5


def make_plan(ratio: float) -> SharePlan:
    return SharePlan.from_groups([[0, 2, 3], [1]], num_steps=STEPS, share_ratio=ratio)


FRESH = [("sd", name) for name in ("dpmpp_2m", "dpmpp_sde", "ddim", "euler", "euler_a", "heun", "unipc")]
FRESH += [("sd3", "flow"), ("flux", "flow")]
FRESH += [("pixart-sigma", "dpmpp_2m"), ("sana", "dpmpp_flow"), ("lumina2", "flow"), ("z-image", "flow")]
FRESH += [("qwen-image", "flow"), ("kandinsky2.2", "ddim"), ("wan2.2", "unipc_flow"), ("ltx", "flow")]


@pytest.mark.parametrize(("family", "scheduler"), FRESH)
def test_fresh_noise_sets_equal_prompts_apart(family: str, scheduler: str) -> None:
    case = tiny(family, scheduler)
    plan = make_plan(0.4)
    seen: dict[int, torch.Tensor] = {}

    def keep(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen[step] = values["latents"].clone()
        return values

    def sample(**options: Any) -> torch.Tensor:
        with shared_sampling(case.pipe, plan, **options):
            return case([7, 8, 7, 7], STEPS, plan.generators(0), callback_on_step_end=keep)

    plain = sample()
    options: dict[str, Any] = {
        "fresh_noise": 0.5,
        "fresh_noise_rows": [False, True, True, True],
        "member_noise": [1, 2, 3, 4],
    }
    fresh = sample(**options)
    if scheduler not in ("dpmpp_sde", "euler_a"):  # those draw per member after the branch point
        assert torch.equal(fresh[0], plain[0])  # not asked for
    assert torch.equal(fresh[1], plain[1])  # never shared
    differences = [(fresh[i] - fresh[j]).abs().max() for i, j in ((0, 2), (0, 3), (2, 3))]
    assert min(differences) > 1e-2
    assert torch.equal(sample(**options), fresh)  # the seeds decide
    assert torch.equal(sample(fresh_noise=0.0), plain)


# Heun's method calls back at half steps, PixArt's pipeline does not call back at all
@pytest.mark.parametrize(
    ("family", "scheduler"), [case for case in FRESH if case[0] != "pixart-sigma" and case[1] != "heun"]
)
def test_noise_at_the_hand_over_mixes_after_the_first_own_step(family: str, scheduler: str) -> None:
    """a' x0 + sqrt(1 - k^2) (x - a' x0) + k s' f: two strengths tell the same a' x0."""
    case = tiny(family, scheduler)
    plan = make_plan(0.4)

    def states(strength: float) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def keep(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            seen.append(values["latents"].clone())
            return values

        options: dict[str, Any] = {"member_noise": [1, 2, 3, 4], "handover_noise": strength}
        with shared_sampling(case.pipe, plan, **options):
            case([7, 8, 6, 7], STEPS, plan.generators(0), callback_on_step_end=keep)
        return seen

    plain, some, more, whole = (states(k) for k in (0.0, 0.6, 0.8, 1.0))
    for step in (0, 1):  # shared: as ever
        assert torch.equal(plain[step], whole[step])
    first = 2
    assert torch.equal(whole[first][1], plain[first][1])  # never shared
    for prompt in (0, 2, 3):
        a, b, c, d = (s[first][prompt] for s in (plain, some, more, whole))
        assert (d - a).abs().max() > 1e-2
        torch.testing.assert_close(b - 0.8 * a - 0.6 * d, c - 0.6 * a - 0.8 * d, rtol=1e-3, atol=1e-3)
    assert torch.equal(whole[-1], states(1.0)[-1])  # the seeds decide


def test_noise_at_the_hand_over_needs_a_step_of_ones_own_and_one_to_follow() -> None:
    case = tiny("sd", "ddim")
    for ratio in (0.0, 0.8, 1.0):
        plan = make_plan(ratio)
        images = []
        for strength in (0.0, 1.0):
            with shared_sampling(case.pipe, plan, member_noise=[1, 2, 3, 4], handover_noise=strength):
                images.append(case([7, 8, 6, 7], STEPS, plan.generators(0)))
        assert torch.equal(*images)


@pytest.mark.parametrize("scheduler", ["dpmpp_sde", "euler_a"])
@pytest.mark.parametrize("kind", ["list", "one", "none"])
def test_stochastic_solvers_draw_per_member_after_the_branch(scheduler: str, kind: str) -> None:
    case = tiny("sd", scheduler)
    plan = make_plan(0.4)
    latents = torch.randn(1, 4, 8, 8).repeat(4, 1, 1, 1)
    generators = {"list": plan.generators(0), "one": torch.Generator().manual_seed(0), "none": None}[kind]
    equal = []

    def look(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        equal.append(torch.equal(values["latents"][0], values["latents"][2]))
        return values

    with shared_sampling(case.pipe, plan, member_noise=[1, 2, 3, 4]):
        case([7, 8, 7, 7], STEPS, generators, latents=latents, callback_on_step_end=look)
    assert equal[:2] == [True, True]
    assert not any(equal[2:])


@pytest.mark.parametrize(("family", "scheduler"), [("sd", "dpmpp_2m"), ("sd", "unipc"), ("sd3", "flow")])
def test_noise_at_the_hand_over_of_a_tree_is_one_for_every_node(family: str, scheduler: str) -> None:
    """After the first parting each node gets noise of its own, which its members have in common."""
    case = tiny(family, scheduler)
    tree = SharePlan.from_tree([(0.2, [[0, 1, 2, 3]]), (0.6, [[0, 1], [2, 3]])], STEPS)

    def states(strength: float) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def keep(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            seen.append(values["latents"].clone())
            return values

        options: dict[str, Any] = {"member_noise": [1, 2, 3, 4], "handover_noise": strength}
        with shared_sampling(case.pipe, tree, **options) as run:
            case([7, 8, 6, 5], STEPS, tree.generators(0), callback_on_step_end=keep)
        assert run.evaluations == run.plan.evaluations
        return seen

    plain, noisy = states(0.0), states(1.0)
    assert torch.equal(plain[0], noisy[0])  # all together
    for step in (1, 2):  # two nodes, from the first step of their own on with noise of their own
        assert torch.equal(noisy[step][0], noisy[step][1]) and torch.equal(noisy[step][2], noisy[step][3])
        assert not torch.equal(noisy[step], plain[step])
    assert (noisy[1][0] - noisy[1][2]).abs().max() > 1e-2
    rows = noisy[-1].flatten(1)
    assert min(float((rows[i] - rows[j]).abs().max()) for i in range(4) for j in range(i)) > 1e-2


# -- noise that no pipeline hands on ---------------------------------------------------------------


class GlobalNoise(FlowMatchEulerDiscreteScheduler):
    """Draws noise that it was not handed."""

    def step(  # type: ignore[override]
        self, model_output: Any, timestep: Any, sample: Any, generator: Any = None, return_dict: bool = True
    ) -> Any:
        (state,) = super().step(model_output, timestep, sample, generator=generator, return_dict=False)
        return (state + torch.randn_like(state),)


class DPMSolverSDEScheduler(EulerDiscreteScheduler):
    """By its name alone: diffusers' own needs torchsde."""


@pytest.mark.parametrize("family", ["sd3", "flux", "qwen-image", "lumina2"])
@pytest.mark.parametrize(
    "scheduler",
    [FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), FlowMatchLCMScheduler()],
    ids=["euler", "lcm"],
)
def test_a_seed_decides_stochastic_solvers_that_are_handed_no_generator(family: str, scheduler: Any) -> None:
    """And each prompt's own: another wave around it changes nothing, members part with noise of their own."""
    case = tiny(family)
    case.pipe.scheduler = scheduler

    def sample(plan: SharePlan, prompts: list[int], seeds: list[int], noise: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with shared_sampling(case.pipe, plan, member_noise=noise):
            return case(prompts, STEPS, generators)

    plan = make_plan(0.4)
    one, two = (sample(plan, [7, 8, 7, 7], [5, 6, 5, 5], [1, 2, 3, 4]) for _ in range(2))
    assert torch.equal(one, two)
    assert min((one[i] - one[j]).abs().max() for i, j in ((0, 2), (0, 3), (2, 3))) > 1e-2
    alone = sample(SharePlan.from_groups([[0]], STEPS, 0.4), [8], [6], [2])
    torch.testing.assert_close(one[1:2], alone, rtol=0, atol=1e-5)
    assert "prepare_latents" not in vars(case.pipe)


def test_a_solver_does_not_draw_the_initial_noise_again() -> None:
    """A group starts from the noise of one member's seed, which then goes on with other numbers."""
    plan = make_plan(0.4)
    noise = MemberNoise(tiny("sd", "euler_a").pipe.scheduler, plan, member_noise=[5, 6, 7, 8])
    run = SimpleNamespace(plan=plan, step=3)
    start = [torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6, 7, 8)]
    drawn = [
        [torch.randn(4, generator=each) for each in noise.generators(run, plan.generators(0))]  # type: ignore[arg-type, union-attr]
        for _ in range(2)
    ]
    assert not any(torch.equal(row, initial) for rows in drawn for row in rows for initial in start)
    assert len({tuple(row.tolist()) for rows in drawn for row in (rows[0], rows[2], rows[3])}) == 6
    noise.begin()
    again = [torch.randn(4, generator=each) for each in noise.generators(run, plan.generators(0))]  # type: ignore[arg-type, union-attr]
    assert all(torch.equal(again[i], drawn[0][i]) for i in range(4))


def test_a_solver_that_draws_its_own_noise_is_refused() -> None:
    case = tiny("sd3")
    case.pipe.scheduler = GlobalNoise()
    plan = make_plan(0.4)
    with (
        pytest.raises(UnsupportedPipelineError, match="GlobalNoise draws noise"),
        shared_sampling(case.pipe, plan),
    ):
        case([7, 8, 7, 7], STEPS, plan.generators(0))
    with shared_sampling(case.pipe, plan):  # nobody asked for noise that can be had again
        case([7, 8, 7, 7], STEPS, None, latents=torch.zeros(4, 4, 2, 2))


def test_a_solver_with_one_seed_for_all_is_refused_before_anything_runs() -> None:
    case = tiny("sd")
    case.pipe.scheduler = DPMSolverSDEScheduler()
    with (
        pytest.raises(UnsupportedPipelineError, match=r"dpm\+\+-sde"),
        shared_sampling(case.pipe, make_plan(0.4)),
    ):
        pass
