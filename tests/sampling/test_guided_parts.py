"""Guidance of several parts while prompts share: what is left out, what must be whole, and what the run tells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny.every_pipeline import EVERY, pipe_of

from sagediff.denoiser.guidance import UNGUIDED, Guiding
from sagediff.denoiser.lookup import denoiser_of, family_of
from sagediff.denoiser.loops import check_loop
from sagediff.errors import PlanError, UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling
from sagediff.sampling.layout import batches_of, in_order
from sagediff.sampling.plan_prompts import cost_basis
from sagediff.sampling.run import SharedRun
from sagediff.sampling.sampler import SharedSampler

STEPS = 4
EQUAL = [7, 7, 7]


def latents(name: str, plan: SharePlan, guided: bool = True, **more: Any) -> torch.Tensor:
    inputs = EVERY[name].inputs(EQUAL, guided) | {"output_type": "latent"} | more
    out = pipe_of(name)(num_inference_steps=STEPS, generator=plan.generators(0), **inputs)
    return torch.as_tensor(out.images)


def all_of_them(**options: Any) -> SharePlan:
    return SharePlan.from_groups([[0, 1, 2]], STEPS, 1.0, **options)


@pytest.mark.parametrize(
    "name",
    ["StableDiffusionInstructPix2PixPipeline", "StableDiffusion3Pipeline, skip layers at some steps"],
)
def test_where_guidance_is_left_out_the_conditional_prediction_comes_out(name: str) -> None:
    plan = all_of_them(shared_guidance=1.0)
    expected = latents(name, plan, guided=False)
    with shared_sampling(pipe_of(name), plan) as run:
        images = latents(name, plan)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert run.evaluations == run.plan.evaluations == STEPS


def test_another_guidance_while_shared_beside_perturbed_attention() -> None:
    name, plan = "PixArtSigmaPAGPipeline", all_of_them()
    with (
        pytest.raises(UnsupportedPipelineError, match="shared_guidance 2 needs"),
        shared_sampling(pipe_of(name), all_of_them(shared_guidance=2.0)),
    ):
        latents(name, plan, height=64, width=64)
    with (
        pytest.raises(UnsupportedPipelineError, match="has the parts conditional, image, negative"),
        shared_sampling(pipe_of("StableDiffusionInstructPix2PixPipeline"), all_of_them(shared_guidance=2.0)),
    ):
        latents("StableDiffusionInstructPix2PixPipeline", plan)


@pytest.mark.parametrize("options", [{"shared_guidance": 1.0}, {"unguided_steps": 2}])
def test_perturbed_attention_is_run_whole_or_not_at_all(options: dict[str, Any]) -> None:
    name = "PixArtSigmaPAGPipeline"
    with (
        pytest.raises(UnsupportedPipelineError, match="none can be left out"),
        shared_sampling(pipe_of(name), all_of_them(**options)),
    ):
        latents(name, all_of_them(), height=64, width=64)
    sampler = SharedSampler(pipe_of(name), shared_guidance=1.0)
    with pytest.raises(UnsupportedPipelineError, match="none can be left out"):
        sampler(["a", "b"], num_inference_steps=STEPS)


@pytest.mark.parametrize("size", [1, 4])
def test_micro_batches_hold_rows_of_every_part(size: int) -> None:
    name = "PixArtSigmaPAGPipeline"
    plan = SharePlan.from_groups([[0, 1], [2]], STEPS, 0.5)
    expected = latents(name, plan, height=64, width=64)
    with shared_sampling(pipe_of(name), plan, micro_batch_size=size) as run:
        images = latents(name, plan, height=64, width=64)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert run.evaluations == run.plan.evaluations < run.plan.evaluations_independent


def test_batches() -> None:
    assert batches_of(5, 2) == [[0, 1], [2, 3], [4]]
    assert batches_of(6, 4, parts=3) == [[0, 2, 4], [1, 3, 5]]
    for rows, size, parts in ((5, 2, 1), (6, 4, 3), (12, 7, 3), (4, 1, 2)):
        batches = batches_of(rows, size, parts)
        flat = [row for batch in batches for row in batch]
        assert [flat[place] for place in in_order(batches)] == list(range(rows))


# -- told by the run -------------------------------------------------------------------------------


class Scheduler:
    """As far as a run asks."""

    order = 1
    timesteps = torch.arange(STEPS).flip(0)


def enter(run: SharedRun, rows: int = 3) -> tuple[str, ...]:
    return run.enter_denoiser(rows, Guiding((UNGUIDED,), lambda flag: False), None, Scheduler()).parts


def test_parts_that_the_run_tells_are_costed_step_by_step() -> None:
    """As a guider does that begins late, perturbs at one step, and stops early."""
    run = SharedRun(all_of_them())
    told = [
        ("conditional",),
        ("conditional", "negative"),
        ("conditional", "negative", "skip"),
        ("conditional",),
    ]
    for parts in told:
        run.tell_parts(parts)
        for part in parts:
            assert enter(run) == (part,)
            run.leave_denoiser(1)
        run.enter_scheduler()
        run.leave_scheduler(torch.zeros(3, 1))
    assert run.plan.rows_per_call == (1, 2, 3, 1)
    assert run.evaluations == run.plan.evaluations == 7
    assert run.plan.evaluations_independent == 3 * 7
    assert SharePlan.from_json(run.plan.to_json()) == run.plan


def test_calls_that_were_not_told_are_refused() -> None:
    run = SharedRun(all_of_them())
    run.tell_parts(("conditional", "negative"))
    with pytest.raises(UnsupportedPipelineError, match="6 rows"):
        enter(run, 6)
    enter(run)
    run.leave_denoiser(1)
    with pytest.raises(UnsupportedPipelineError, match=r"1 times in one step, but .* conditional, negative"):
        run.enter_scheduler()
    enter(run)
    run.leave_denoiser(1)
    with pytest.raises(UnsupportedPipelineError, match="3 times in one step"):
        enter(run)
    run.tell_parts(("negative", "conditional"))
    with pytest.raises(UnsupportedPipelineError, match="needs the conditional one first"):
        enter(run)


def test_a_run_that_ends_before_its_prompts_part_is_refused() -> None:
    name, plan = "StableDiffusionXLPipeline, ends early", SharePlan.from_groups([[0, 1, 2]], STEPS, 0.75)
    with (
        pytest.raises(
            PlanError, match=r"ends after 3 of 4 steps .* before prompts \[0, 1, 2\] part at step 3"
        ),
        shared_sampling(pipe_of(name), plan),
    ):
        latents(name, plan)


def test_iterations_of_free_init_are_refused() -> None:
    pipe = type("AnimateDiffPipeline", (), {"free_init_enabled": True, "_free_init_num_iters": 3})()
    with pytest.raises(UnsupportedPipelineError, match="disable_free_init"):
        check_loop(pipe)
    pipe._free_init_num_iters = 1
    check_loop(pipe)


# -- planned ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scale", "keywords", "rows"),
    [
        ("PixArtSigmaPAGPipeline", 4.0, {}, 3),
        ("PixArtSigmaPAGPipeline", 1.0, {}, 2),
        ("PixArtSigmaPAGPipeline", 4.0, {"pag_scale": 0.0}, 2),
        ("StableDiffusionInstructPix2PixPipeline", 4.0, {}, 3),
        ("StableDiffusionInstructPix2PixPipeline", 1.0, {}, 1),
        ("StableDiffusion3Pipeline, skip layers at some steps", 4.0, {}, 2),
        ("StableDiffusion3Pipeline, skip layers at some steps", 4.0, {"skip_guidance_layers": [1]}, 3),
    ],
)
def test_plans_count_all_parts(name: str, scale: float, keywords: dict[str, Any], rows: int) -> None:
    pipe = pipe_of(name)
    denoiser = type(denoiser_of(pipe)).__name__
    assert cost_basis(pipe, denoiser, STEPS, scale, keywords=keywords).rows_per_prompt == rows


@pytest.mark.parametrize("name", ["Kandinsky3Pipeline", "MochiPipeline", "ErnieImagePipeline"])
def test_another_shared_guidance_is_that_guidance_of_newer_pipelines(name: str) -> None:
    pipe, recipe = pipe_of(name), EVERY[name]
    scale = 2.0 + family_of(denoiser_of(pipe), pipe).unguided_scale  # what the pipeline calls a guidance of 3
    equal = recipe.inputs([7, 7], True)
    plan = SharePlan.from_groups([[0, 1]], num_steps=4, share_ratio=1.0, shared_guidance=3.0)
    options = {"num_inference_steps": 4, "output_type": "latent", "height": 16, "width": 16}
    with shared_sampling(pipe, plan):
        shared = next(iter(pipe(generator=plan.generators(0), **(options | equal)).values()))
    own = pipe(generator=plan.generators(0), **(options | equal | {"guidance_scale": scale}))
    torch.testing.assert_close(shared, next(iter(own.values())), rtol=0, atol=1e-4)


def test_no_shared_guidance_where_the_pipelines_own_may_change_from_step_to_step() -> None:
    pipe, recipe = pipe_of("CogVideoXPipeline"), EVERY["CogVideoXPipeline"]
    plan = SharePlan.from_groups([[0, 1]], num_steps=4, share_ratio=0.5, shared_guidance=2.0)
    options = {"num_inference_steps": 4, "output_type": "latent", "height": 16, "width": 16}
    with (
        pytest.raises(UnsupportedPipelineError, match=r"shared_guidance 2 .* CogVideoXPipeline"),
        shared_sampling(pipe, plan),
    ):
        pipe(generator=plan.generators(0), **(options | recipe.inputs([7, 7], True)))
