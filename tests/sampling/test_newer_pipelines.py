"""What pipelines of 2025 and later do otherwise than the older ones, as the sampler meets it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AdaptiveProjectedMixGuidance
from tiny.every_image import IMAGES, read, vae
from tiny.every_image_forms import IMAGE_FORMS
from tiny.every_pipeline import EVERY, pipe_of
from tiny.parts import SCHEDULERS, count_words, embeddings

from sagediff.denoiser.condition import mean_condition
from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.sampling.context import shared_sampling
from sagediff.sampling.plan_prompts import plan_prompts
from sagediff.sampling.sampler import SharedSampler

NEWER = {**IMAGES, **IMAGE_FORMS}
PROMPTS = ["1", "2", "3"]


def numbers(texts: list[str]) -> torch.Tensor:
    return embeddings([int(text) for text in texts])


def built(name: str) -> Any:
    """A pipeline of one's own, to be changed."""
    torch.manual_seed(0)
    pipe = EVERY[name].build(SCHEDULERS[EVERY[name].schedulers[0]]())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rows_planned(pipe: Any, guidance_scale: float) -> int:
    denoiser = type(pipe.transformer).__name__
    return plan_prompts(
        PROMPTS, Sharing(), pipe, denoiser, 3, guidance_scale, encoder=numbers
    ).rows_per_prompt


def test_krea_guides_from_zero_on_and_distilled_too_if_it_is_asked_to() -> None:
    pipe = built("Krea2Pipeline")
    for is_distilled in (False, True):
        pipe.register_to_config(is_distilled=is_distilled)
        assert [rows_planned(pipe, scale) for scale in (0.0, 0.5, 4.0)] == [1, 2, 2]


def test_a_guider_says_whether_a_pipeline_guides_and_a_scale_beside_it_is_refused() -> None:
    pipe = built("HunyuanImagePipeline")
    assert rows_planned(pipe, 1.0) == 2
    with pytest.raises(InputError, match=r"takes no guidance scale.*pipe\.guider"):
        rows_planned(pipe, 4.0)
    pipe.register_modules(guider=AdaptiveProjectedMixGuidance(guidance_scale=1.0))
    assert rows_planned(pipe, 1.0) == 1
    assert rows_planned(pipe_of("HunyuanImagePipeline, distilled"), 1.0) == 1


def test_omnigen_guides_whatever_its_scale() -> None:
    assert [rows_planned(pipe_of("OmniGenPipeline"), scale) for scale in (1.0, 2.5)] == [2, 2]


def test_prx_which_cannot_guide_more_than_one_prompt_is_refused_before_it_runs() -> None:
    sampler = SharedSampler(built("PRXPipeline"), encoder=numbers, threshold=-1.0)
    with pytest.raises(UnsupportedPipelineError, match=r"PRXPipeline can guide one prompt.*guidance_scale=1"):
        sampler(PROMPTS, 3)
    sampler.check(PROMPTS, sampler.plan(PROMPTS, 3, 1.0))
    sampler.check(PROMPTS[:1], sampler.plan(PROMPTS[:1], 3))


def test_images_come_whatever_the_pipeline_calls_them() -> None:
    pipe = built("Kandinsky5T2IPipeline")
    pipe.register_modules(vae=vae(4))

    def encode(prompt: list[str], **options: Any) -> tuple[torch.Tensor, ...]:
        texts = [text or "-1" for text in prompt]
        return read(texts), numbers(texts), torch.arange(len(texts) + 1) * 3

    pipe.encode_prompt = encode
    result = SharedSampler(pipe, encoder=numbers, threshold=-1.0)(PROMPTS, 3, 4.0)
    assert [image.size for image in result.images] == [(64, 64)] * 3
    assert result.report["evaluations_run"] == result.plan.evaluations


def test_longcat_is_given_a_negative_prompt_for_each() -> None:
    pipe = built("LongCatImagePipeline")
    pipe.register_modules(vae=vae(16))
    pipe._encode_prompt = lambda texts: read([text or "-1" for text in texts])
    sampler = SharedSampler(pipe, encoder=numbers, threshold=-1.0)
    options = {"enable_prompt_rewrite": False, "height": 64, "width": 64}
    images, other = (
        sampler(PROMPTS, 3, 4.0, **options, **negative).images for negative in ({}, {"negative_prompt": "7"})
    )
    assert len(images) == 3 and images[0].tobytes() != other[0].tobytes()


@pytest.mark.parametrize("name", [name for name, recipe in NEWER.items() if recipe.words])
def test_what_is_merged_tells_words_from_padding(name: str) -> None:
    recipe, prompts = NEWER[name], [3, 4, 5]  # 1, 2 and 3 words
    guided = recipe.rows[1] is not None
    lengths = [count_words(prompt) for prompt in prompts]
    seen: dict[str, list[list[int]]] = {}

    def spy(conditions: Any, masks: Any, words: Any) -> dict[str, torch.Tensor]:
        for name, rows in words.items():
            seen.setdefault(name, []).append(rows.sum(dim=1).tolist())
        return mean_condition(conditions, masks, words)

    plan = SharePlan.from_groups([[0, 1, 2]], num_steps=2, share_ratio=0.5)
    inputs = {"output_type": "latent", "height": 16, "width": 16, **recipe.inputs(prompts, guided)}
    with shared_sampling(pipe_of(name), plan, group_condition=spy):
        pipe_of(name)(num_inference_steps=2, generator=plan.generators(0), **inputs)
    assert seen.keys() == set(recipe.words)
    drawn = [length if prompt % 2 == 0 else 0 for length, prompt in zip(lengths, prompts, strict=True)]
    assert all(lengths in counts or drawn in counts for counts in seen.values())
