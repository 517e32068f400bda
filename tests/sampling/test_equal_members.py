"""Members of a group hold the same rows at every step that they share; what changes them apart is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TOKENS, Tiny, embeddings, tiny

from sagediff.errors import InputError, PlanError, UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling

STEPS = 5
TOLERANCE = 1e-5
PROMPTS = [7, 7, 8]


def make_plan(ratio: float = 0.6, steps: int = STEPS, **options: Any) -> SharePlan:
    return SharePlan.from_groups([[0, 1], [2]], num_steps=steps, share_ratio=ratio, **options)


def random_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8))


def with_class(case: Tiny, pipeline: Any, **options: Any) -> Any:
    names = ("vae", "unet", "scheduler", "text_encoder", "tokenizer")
    pipe = pipeline(
        **{name: getattr(case.pipe, name) for name in names},
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, **options,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "scheduler"), [("sd", "ddim"), ("sd3", "flow"), ("flux", "flow")])
@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_an_edit_of_one_members_latents_is_refused_or_obeyed(family: str, scheduler: str, step: int) -> None:
    """Three steps are shared: an edit after one of them, but for the last, would be lost."""
    case, plan = tiny(family, scheduler), make_plan()

    def edit(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents = values["latents"].clone()
        if index == step:
            latents[1] += 0.5
        return {"latents": latents}

    def run() -> torch.Tensor:
        return case(PROMPTS, STEPS, plan.generators(0), callback_on_step_end=edit)

    expected = run()
    if step < 2:
        with (
            pytest.raises(InputError, match=rf"\[0, 1\] share step {step + 1}.*callback"),
            shared_sampling(case.pipe, plan),
        ):
            run()
        return
    with shared_sampling(case.pipe, plan):
        torch.testing.assert_close(run(), expected, rtol=0, atol=TOLERANCE)


def test_an_edit_of_all_members_alike_is_obeyed() -> None:
    case, plan = tiny("sd", "ddim"), make_plan()

    def edit(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] * 0.9}

    images = []
    for shared in (False, True):
        generators = plan.generators(0)
        if shared:
            with shared_sampling(case.pipe, plan):
                images.append(case(PROMPTS, STEPS, generators, callback_on_step_end=edit))
        else:
            images.append(case(PROMPTS, STEPS, generators, callback_on_step_end=edit))
    torch.testing.assert_close(*images, rtol=0, atol=TOLERANCE)


def test_members_with_images_of_their_own_cannot_be_filled_in_together() -> None:
    """At strength 1 they start from equal noise; each step then blends in each one's own image."""
    case = tiny("sd", "ddim")
    pipe = with_class(case, diffusers.StableDiffusionInpaintPipeline)
    half = Image.fromarray(np.repeat(np.array([[0] * 8 + [255] * 8], dtype=np.uint8), 16, 0))

    def run(images: list[Image.Image], plan: SharePlan) -> torch.Tensor:
        return pipe(
            prompt_embeds=embeddings(PROMPTS, TOKENS), negative_prompt_embeds=embeddings([-1] * 3, TOKENS),
            image=images, mask_image=[half] * 3, strength=1.0, num_inference_steps=STEPS,
            generator=plan.generators(0), guidance_scale=4.0, height=16, width=16, output_type="latent",
        ).images  # fmt: skip

    plan = make_plan()
    one, other = random_image(1), random_image(2)
    with (
        pytest.raises(InputError, match=r"\[0, 1\] share step 1.*images or masks"),
        shared_sampling(pipe, plan),
    ):
        run([one, other, other], plan)
    expected = run([one, one, other], plan)
    with shared_sampling(pipe, plan):
        torch.testing.assert_close(run([one, one, other], plan), expected, rtol=0, atol=TOLERANCE)


def test_what_differs_is_named() -> None:
    """Sizes are not noise."""
    case, plan = tiny("sdxl", "euler"), make_plan()

    def sizes(denoiser: Any, args: Any, kwargs: Any) -> Any:
        added = kwargs["added_cond_kwargs"]
        ids = added["time_ids"].clone()
        ids[:: len(PROMPTS)] += 1
        return args, kwargs | {"added_cond_kwargs": added | {"time_ids": ids}}

    handle = case.denoiser.register_forward_pre_hook(sizes, with_kwargs=True)
    try:
        with (
            pytest.raises(InputError, match=r"time_ids` differs.*sizes") as caught,
            shared_sampling(case.pipe, plan),
        ):
            case(PROMPTS, STEPS, plan.generators(0))
    finally:
        handle.remove()
    assert "same noise" not in str(caught.value)


def test_conditions_written_to_unseen_are_merged_anew() -> None:
    case, plan = tiny("sd", "ddim"), make_plan(1.0)

    def edit(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 2:
            values["prompt_embeds"].data.mul_(0.2)
        return values

    def run() -> torch.Tensor:
        return case(
            PROMPTS, STEPS, plan.generators(0), callback_on_step_end=edit,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )  # fmt: skip

    expected = run()
    with shared_sampling(case.pipe, plan):
        torch.testing.assert_close(run(), expected, rtol=0, atol=TOLERANCE)


# -- rows per prompt -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["pixart-sigma", "auraflow"])
@pytest.mark.parametrize("ratio", [0.0, 0.4])
@pytest.mark.parametrize("equal_noise", [False, True])
def test_two_images_per_prompt_are_not_taken_for_guidance(
    family: str, ratio: float, equal_noise: bool
) -> None:
    """These pipelines do not tell whether they guide."""
    case, plan = tiny(family), make_plan(ratio)
    generators = [torch.Generator().manual_seed(0 if equal_noise else i) for i in range(6)]
    with (
        pytest.raises(UnsupportedPipelineError, match="num_images_per_prompt=1"),
        shared_sampling(case.pipe, plan),
    ):
        case(PROMPTS, STEPS, generators, False, num_images_per_prompt=2)


def test_a_third_row_per_prompt_is_named() -> None:
    case, plan = tiny("sd", "ddim"), make_plan()
    case.pipe._guidance_scale = 4.0
    case.pipe.scheduler.set_timesteps(STEPS)
    with pytest.raises(UnsupportedPipelineError, match="3 rows per prompt"), shared_sampling(case.pipe, plan):
        case.denoiser(torch.randn(9, 4, 8, 8), 981, encoder_hidden_states=embeddings(PROMPTS * 3, TOKENS))


# -- steps that are skipped ------------------------------------------------------------------------


@pytest.mark.parametrize(("scheduler", "left"), [("ddim", 3), ("ddpm", 3), ("pndm", 4), ("euler", 3)])
def test_image_to_image_takes_the_steps_that_the_strength_leaves(scheduler: str, left: int) -> None:
    """Also with solvers that are not told where it begins; another plan is refused with the number to plan."""
    case = tiny("sd", scheduler)
    pipe = with_class(case, diffusers.StableDiffusionImg2ImgPipeline)

    def run(plan: SharePlan) -> torch.Tensor:
        return pipe(
            prompt_embeds=embeddings(PROMPTS, TOKENS), negative_prompt_embeds=embeddings([-1] * 3, TOKENS),
            image=[random_image(1)] * 3, strength=0.5, num_inference_steps=6, generator=plan.generators(0),
            output_type="latent",
        ).images  # fmt: skip

    plan = make_plan(0.5, left)
    expected = run(plan)
    with shared_sampling(pipe, plan) as shared:
        torch.testing.assert_close(run(plan), expected, rtol=0, atol=TOLERANCE)
    assert shared.evaluations == shared.plan.evaluations
    words = "plan only the steps" if scheduler == "euler" else f"plan {left} steps"
    for steps in {2, 6} - {left}:
        wrong = make_plan(0.5, steps)
        with pytest.raises(PlanError, match=words), shared_sampling(pipe, wrong):
            run(wrong)


def test_fresh_noise_has_the_levels_of_the_steps_that_are_left() -> None:
    """DDIM, which is not told where image to image begins: replacing no noise in words changes nothing, and a first
    member keeps its image."""
    case = tiny("sd", "ddim")
    pipe = with_class(case, diffusers.StableDiffusionImg2ImgPipeline)
    plan = make_plan(0.5, 4)
    images = []
    for noise in (0.0, 0.5):
        with shared_sampling(
            pipe, plan, fresh_noise=noise, fresh_noise_rows=[False, True, False], member_noise=[1, 2, 3]
        ):
            images.append(
                pipe(
                    prompt_embeds=embeddings(PROMPTS, TOKENS), negative_prompt_embeds=embeddings([-1] * 3, TOKENS),
                    image=[random_image(1)] * 3, strength=0.4, num_inference_steps=10,
                    generator=plan.generators(0), output_type="latent",
                ).images
            )  # fmt: skip
    plain, fresh = images
    assert torch.equal(plain[[0, 2]], fresh[[0, 2]])
    # at the low noise that is left, as much as DDIM's own levels there say
    change = (plain[1] - fresh[1]).abs().mean()
    timestep = pipe.scheduler.timesteps[-2]
    sigma = float((1 - pipe.scheduler.alphas_cumprod[timestep]) ** 0.5)
    assert 0.1 * sigma < change < 2 * sigma


# -- copies of the scheduler -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flow", "unipc_flow"])
def test_a_deep_copy_of_the_scheduler_is_one_of_its_own(name: str) -> None:
    case, plan = tiny("sana" if name == "unipc_flow" else "sd3", name), make_plan()
    own: Callable[[Any], Any] = copy.deepcopy
    with shared_sampling(case.pipe, plan) as run:
        case.pipe.scheduler.set_timesteps(STEPS)
        other = own(case.pipe.scheduler)
        twice = own(other)
        for each in (other, twice):
            each.set_timesteps(3)
            each.step(torch.zeros(2, 4, 2, 2), each.timesteps[0], torch.zeros(2, 4, 2, 2))
            assert each.step_index == 1 and len(each.timesteps) == 3
        assert case.pipe.scheduler.step_index is None and len(case.pipe.scheduler.timesteps) == STEPS
        assert run.solver_call == 0
    assert not {"step", "set_timesteps"} & set(vars(case.pipe.scheduler))
