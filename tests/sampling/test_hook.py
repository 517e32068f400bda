"""Shared sampling on real pipelines: what it refuses, what it leaves behind, and the noise of each member's
own."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from tiny import SCHEDULERS, embeddings, tiny

from sagediff.denoiser.call import DenoiserCall
from sagediff.denoiser.condition import mean_condition
from sagediff.denoiser.guidance import Way
from sagediff.denoiser.private_names import REGISTRY
from sagediff.errors import InputError, PlanError, UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling
from sagediff.sampling.layout import Layout

STEPS = 5
PROMPTS = [3, 4, 5, 6]


def make_plan(ratio: float = 0.4, **options: Any) -> SharePlan:
    return SharePlan.from_groups([[0, 2, 3], [1]], num_steps=STEPS, share_ratio=ratio, **options)


def attributes(pipe: Any, denoiser: Any) -> list[Any]:
    """Everything that sharing could leave behind on a pipeline."""
    names = [sorted(vars(thing)) for thing in (pipe, pipe.scheduler, denoiser)]
    return [names, type(denoiser), denoiser.forward]


# -- the pipeline is left as it was found ----------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "flux", "z-image"])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_left_as_found(family: str, error: type[BaseException] | None) -> None:
    case = tiny(family)
    plan = make_plan()
    before_images = case(PROMPTS, STEPS, plan.generators(0))
    before = attributes(case.pipe, case.denoiser)

    def stop(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if error is not None and step == 2:
            raise error("stopped")
        return values

    with nullcontext() if error is None else pytest.raises(error), shared_sampling(case.pipe, plan):
        assert attributes(case.pipe, case.denoiser) != before
        case(PROMPTS, STEPS, plan.generators(0), callback_on_step_end=stop)
    assert attributes(case.pipe, case.denoiser) == before
    assert torch.equal(case(PROMPTS, STEPS, plan.generators(0)), before_images)


def test_hooks_of_others_survive() -> None:
    class Other(ModelHook):
        calls = 0

        def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
            self.calls += 1
            return output

    case = tiny("sd")
    other = Other()
    HookRegistry.check_if_exists_or_initialize(case.denoiser).register_hook(other, "other")
    forward = case.denoiser.forward
    plan = make_plan()
    with shared_sampling(case.pipe, plan):
        case(PROMPTS, STEPS, plan.generators(0))
    assert other.calls == STEPS
    assert case.denoiser.forward is forward
    case(PROMPTS, STEPS, plan.generators(0))
    assert other.calls == 2 * STEPS


def test_scheduler_signatures_are_kept() -> None:
    for name, make in SCHEDULERS.items():
        case = tiny("sd", name)
        plain = make()
        with shared_sampling(case.pipe, make_plan()):
            assert inspect.signature(case.pipe.scheduler.step) == inspect.signature(plain.step)
            assert inspect.signature(case.pipe.scheduler.set_timesteps) == inspect.signature(
                plain.set_timesteps
            )


def test_a_compiled_denoiser() -> None:
    case = tiny("sd3")  # of one block: it is traced anew for every number of rows
    plan = make_plan(shared_guidance=1.0)
    with shared_sampling(case.pipe, plan):
        expected = case(PROMPTS, STEPS, plan.generators(0))
    inner = case.pipe.transformer
    case.pipe.transformer = torch.compile(inner, backend="eager")
    before = [sorted(vars(case.pipe.transformer)), sorted(vars(inner)), case.pipe.transformer.forward]
    with shared_sampling(case.pipe, plan) as run:
        images = case(PROMPTS, STEPS, plan.generators(0))
    assert run.evaluations == run.plan.evaluations
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert [sorted(vars(case.pipe.transformer)), sorted(vars(inner)), case.pipe.transformer.forward] == before


# -- while it runs ---------------------------------------------------------------------------------


def test_members_are_equal_until_the_branch_point() -> None:
    case = tiny("sd", "euler_a")
    plan = make_plan(0.4)
    equal = []

    def look(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents = values["latents"]
        equal.append(torch.equal(latents[0], latents[2]) and torch.equal(latents[0], latents[3]))
        assert not torch.equal(latents[0], latents[1])
        return values

    with shared_sampling(case.pipe, plan):
        images = case(PROMPTS, STEPS, plan.generators(0), callback_on_step_end=look)
    assert equal == [True, True, False, False, False]
    assert not torch.allclose(images[0], images[2], atol=1e-3)


def test_one_generator_for_all_rows_still_shares() -> None:
    """A stochastic solver then draws other noise for each row; while they share, members take their first
    one's."""
    case = tiny("sd", "euler_a")
    plan = make_plan(1.0)
    latents = torch.randn(1, 4, 8, 8).repeat(4, 1, 1, 1)
    with shared_sampling(case.pipe, plan) as run:
        images = case(PROMPTS, STEPS, torch.Generator().manual_seed(1), latents=latents)
    assert torch.equal(images[0], images[2])
    assert run.evaluations == run.plan.evaluations


def test_two_runs_in_one_context_count_each_for_itself() -> None:
    case = tiny("flux")
    plan = make_plan()
    with shared_sampling(case.pipe, plan) as run:
        for guided in (True, False, True):
            case(PROMPTS, STEPS, plan.generators(0), guided)
            assert run.evaluations == run.plan.evaluations
            assert run.plan.rows_per_prompt == (2 if guided else 1)


def test_outputs_in_dataclass_form() -> None:
    case = tiny("sd")
    plan = make_plan()
    case.pipe.scheduler.set_timesteps(STEPS)
    sample = torch.randn(1, 4, 8, 8).repeat(4, 1, 1, 1)
    case.pipe._guidance_scale = 1.0
    with shared_sampling(case.pipe, plan) as run:
        out = case.denoiser(sample, torch.tensor(981), encoder_hidden_states=embeddings(PROMPTS, 3))
    assert out.sample.shape == sample.shape
    assert torch.equal(out.sample[0], out.sample[3])
    assert run.evaluations == 2


def test_outsiders_are_not_affected_by_a_group() -> None:
    case = tiny("sd3")
    plan = make_plan(0.6, shared_guidance=1.0)
    images = []
    for prompts in ([3, 4, 5, 6], [9, 4, 10, 11]):
        with shared_sampling(case.pipe, plan):
            images.append(case(prompts, STEPS, plan.generators(0))[1])
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-5)


# -- refusals --------------------------------------------------------------------------------------


def test_unknown_denoiser_is_refused_with_words_on_how_to_add_it() -> None:
    case = tiny("sd")
    case.pipe.unet = torch.nn.Linear(1, 1)
    with (
        pytest.raises(UnsupportedPipelineError, match=r"Linear.*FAMILIES"),
        shared_sampling(case.pipe, make_plan()),
    ):
        pass


def test_no_denoiser_is_refused() -> None:
    with pytest.raises(UnsupportedPipelineError, match="unet"), shared_sampling(object(), make_plan()):
        pass


def test_nested_entry_is_refused_and_the_outer_one_lives_on() -> None:
    case = tiny("sd")
    plan = make_plan()
    with shared_sampling(case.pipe, plan) as run:
        with pytest.raises(InputError, match="already active"), shared_sampling(case.pipe, plan):
            pass
        case(PROMPTS, STEPS, plan.generators(0))
        assert run.evaluations == run.plan.evaluations > 0
    assert REGISTRY not in vars(case.denoiser)


@pytest.mark.parametrize("name", ["ddim", "heun", "pndm"])
def test_other_number_of_steps(name: str) -> None:
    case = tiny("sd", name)
    plan = make_plan()
    with pytest.raises(PlanError, match=r"5 steps"), shared_sampling(case.pipe, plan) as run:
        case(PROMPTS, 7, plan.generators(0))
    assert run.evaluations == 0


def test_other_number_of_images() -> None:
    case = tiny("sd")
    plan = make_plan()
    generators = [g for g in plan.generators(0) for _ in range(2)]
    with (
        pytest.raises(UnsupportedPipelineError, match="num_images_per_prompt=1"),
        shared_sampling(case.pipe, plan),
    ):
        case(PROMPTS, STEPS, generators, num_images_per_prompt=2)


def test_one_guided_prompt_is_not_taken_for_two() -> None:
    case = tiny("sd")
    plan = SharePlan.from_groups([[0, 1]], num_steps=STEPS, share_ratio=0.4)
    with pytest.raises(UnsupportedPipelineError, match="2 rows"), shared_sampling(case.pipe, plan):
        case([3], STEPS, plan.generators(0)[:1])


def test_members_must_start_from_equal_noise() -> None:
    case = tiny("sd")
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    with pytest.raises(InputError, match="same noise"), shared_sampling(case.pipe, make_plan()) as run:
        case(PROMPTS, STEPS, generators)
    assert run.evaluations == 0


def test_arguments_outside_the_table_are_refused() -> None:
    case = tiny("sd")
    case.pipe._guidance_scale = 1.0
    case.pipe.scheduler.set_timesteps(STEPS)
    for extra in (
        {"attention_mask": torch.zeros(4, 16)},
        {"cross_attention_kwargs": {"x": torch.zeros(4)}},
        {"cross_attention_kwargs": {"gligen": {"boxes": torch.zeros(4, 1, 4)}}},
        {"cross_attention_kwargs": {"x": [torch.zeros(4)]}},
        {"down_block_additional_residuals": [[torch.zeros(4)]]},
    ):
        with (
            pytest.raises(UnsupportedPipelineError, match="FAMILIES"),
            shared_sampling(case.pipe, make_plan()),
        ):
            case.denoiser(torch.randn(4, 4, 8, 8), 981, encoder_hidden_states=embeddings(PROMPTS, 3), **extra)


def test_two_call_pipelines_refuse_a_guidance_between() -> None:
    case = tiny("flux")
    plan = make_plan(shared_guidance=2.0)
    with pytest.raises(UnsupportedPipelineError, match="shared_guidance 2"), shared_sampling(case.pipe, plan):
        case(PROMPTS, STEPS, plan.generators(0))


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batch_size": 0},
        {"fresh_noise": 1.5},
        {"fresh_noise": float("nan")},
        {"handover_noise": 1.5},
        {"fresh_noise_rows": [True]},
        {"member_noise": [1, 2]},
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError), shared_sampling(tiny("sd").pipe, make_plan(), **options):
        pass


def test_fresh_noise_refuses_unknown_solvers() -> None:
    with (
        pytest.raises(UnsupportedPipelineError, match="PNDM"),
        shared_sampling(tiny("sd", "pndm").pipe, make_plan(), fresh_noise=0.5),
    ):
        pass


# -- layout and conditions -------------------------------------------------------------------------


def test_layout_of_every_kind_of_call() -> None:
    plan = SharePlan.from_groups([[0, 2], [1]], num_steps=2, share_ratio=0.5)
    off = SharePlan.from_groups([[0, 2], [1]], num_steps=2, share_ratio=0.5, shared_guidance=1.0)
    two_calls, batched = Way((("conditional",), ("negative",))), Way((("negative", "conditional"),))
    one, both = DenoiserCall(1, 0, 0, 3, two_calls), DenoiserCall(1, 0, 0, 3, batched)
    second, later = replace(one, number=1), replace(both, step=1, solver_call=1)
    assert Layout.of(plan, one) == Layout(((0, 2), (1,)), (0, 1, 0))
    assert Layout.of(plan, both) == Layout(((0, 2), (1,), (3, 5), (4,)), (0, 1, 0, 2, 3, 2))
    assert Layout.of(off, both) == Layout(((1,), (3, 5), (4,)), (1, 0, 1, 1, 2, 1))
    assert Layout.of(off, second) == Layout(((1,),), (-1, 0, -1))
    assert Layout.of(off, later).is_whole


def test_conditions() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    other = torch.tensor([[1.0], [2.0], [3.0]])
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    mean = mean_condition({"a": rows, "b": other}, {"m": mask}, {})
    assert mean["a"].tolist() == [[2.0, 0.0]]
    assert mean["m"].tolist() == [[True, True]]
    equal = torch.randn(1, 7).half().repeat(3, 1)
    assert torch.equal(mean_condition({"a": equal}, {}, {})["a"], equal[:1])
