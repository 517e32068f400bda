"""What pipelines of 2025 and later do otherwise than the older ones, as the sampler meets it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AdaptiveProjectedMixGuidance
from tiny.every_image import read, vae
from tiny.every_pipeline import EVERY, pipe_of
from tiny.parts import SCHEDULERS, embeddings

from sagediff.errors import InputError
from sagediff.plan.sharing import Sharing
from sagediff.sampling.plan_prompts import plan_prompts
from sagediff.sampling.sampler import SharedSampler

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
