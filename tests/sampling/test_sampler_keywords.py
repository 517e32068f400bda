"""`SharedSampler` and what is given for each prompt: every prompt gets its own, in whatever groups and waves."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny.columns import HOLDERS, Column

from sagediff import InputError, SharedSampler, SharePlan, UnsupportedPipelineError, embed_prompts

PROMPTS = [
    "a large ball at the top on a green background",
    "a small dog at the bottom left on a blue background",
    "a large cake at the top on a green background",
    "a small cat at the bottom left on a blue background",
]
NEGATIVE = ["a red heart", "", "a white star", "a large cat at the top on a pink background"]
STEPS, GUIDANCE = 3, 4.0
OPTIONS: dict[str, Any] = {"threshold": 0.45, "share_ratio": 0.34}
TOLERANCE = 1  # of 255


def arrays(result: Any) -> Any:
    return np.stack([np.asarray(image, dtype=int) for image in result.images])


def sample(pipe: Any, prompts: Any = PROMPTS, **options: Any) -> Any:
    wave_size = options.pop("wave_size", 64)
    return SharedSampler(pipe, **OPTIONS, wave_size=wave_size)(prompts, STEPS, GUIDANCE, **options)


@pytest.fixture(scope="module")
def with_negatives(small_demo: Any) -> Any:
    result = sample(small_demo, negative_prompt=NEGATIVE)
    assert result.plan.groups == [[0, 2], [1, 3]]  # so that waves hold the prompts in another order
    return arrays(result)


def embedded(small_demo: Any, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = small_demo.encode_prompt(texts, "cpu", 1, False)[0]
    return found


@pytest.mark.parametrize(
    ("holder", "wave_size"),
    [*((holder, 2) for holder in [*sorted(HOLDERS), "embeddings"]), ("list", 64), ("embeddings", 64)],
)
def test_negative_prompts_reach_their_prompts(
    small_demo: Any, with_negatives: Any, holder: str, wave_size: int
) -> None:
    if holder == "embeddings":
        given: dict[str, Any] = {"negative_prompt_embeds": embedded(small_demo, NEGATIVE)}
    else:
        given = {"negative_prompt": HOLDERS[holder](NEGATIVE)}
    found = arrays(sample(small_demo, wave_size=wave_size, **given))
    assert np.abs(found - with_negatives).max() <= TOLERANCE


def test_one_negative_prompt_is_for_all(small_demo: Any) -> None:
    one, each = (
        arrays(sample(small_demo, negative_prompt=given)) for given in ("a red heart", ["a red heart"] * 4)
    )
    assert np.array_equal(one, each)


@pytest.mark.parametrize("holder", sorted(HOLDERS))
def test_prompts_are_taken_by_position(small_demo: Any, holder: str) -> None:
    sampler = SharedSampler(small_demo, **OPTIONS)
    assert sampler.plan(HOLDERS[holder](PROMPTS), STEPS, GUIDANCE) == sampler.plan(PROMPTS, STEPS, GUIDANCE)
    vectors = embed_prompts(HOLDERS[holder](PROMPTS), small_demo).vectors
    assert np.array_equal(vectors, embed_prompts(PROMPTS, small_demo).vectors)


def test_a_column_gives_the_images_of_its_list(small_demo: Any) -> None:
    column = Column(PROMPTS, [1, 0, 3, 2])
    one, other = sample(small_demo, column), sample(small_demo)
    assert one.seeds == other.seeds and np.array_equal(arrays(one), arrays(other))


def test_seeds_and_ratios_are_taken_by_position_too() -> None:
    plan = SharePlan.from_groups([[0, 2], [1, 3]], 4, Column([0.25, 0.5], [1, 0]))  # type: ignore[arg-type]
    assert list(plan.branch_steps) == [1, 2, 1, 2]
    seeds = [generator.initial_seed() for generator in plan.generators(Column([5, 6, 7, 8], [3, 2, 1, 0]))]  # type: ignore[arg-type]
    assert seeds == [5, 6, 5, 6]
    assert plan.generators(np.int64(3))[0].initial_seed() == plan.generators(3)[0].initial_seed()  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one string"):
        embed_prompts("a cat", encoder=lambda texts: np.ones((len(texts), 2)))


def img2img(small_demo: Any) -> Any:
    parts = {
        name: getattr(small_demo, name) for name in ("vae", "unet", "scheduler", "text_encoder", "tokenizer")
    }
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_prompts_with_images_of_their_own_share_where_those_are_equal(small_demo: Any) -> None:
    pipe = img2img(small_demo)
    images = [Image.new("RGB", (64, 64), (200 * (i == 3), 90, 40)) for i in range(4)]
    result = sample(pipe, image=images, strength=1.0)
    assert result.plan.groups == [[0, 2], [1], [3]]
    assert result.report["evaluations_run"] == result.plan.evaluations
    alone = sample(pipe, PROMPTS[3:], image=images[3:], strength=1.0)
    assert np.abs(arrays(alone)[0] - arrays(result)[3]).max() <= TOLERANCE


def test_what_the_sampler_cannot_carry_out_is_refused_before_anything_runs(small_demo: Any) -> None:
    pipe = img2img(small_demo)
    calls: list[int] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args: calls.append(1))
        for module in (small_demo.unet, small_demo.text_encoder)
    ]
    pag = diffusers.StableDiffusionPAGPipeline(
        **{name: getattr(small_demo, name) for name in ("vae", "unet", "scheduler", "text_encoder", "tokenizer")},
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, pag_applied_layers="mid",
    )  # fmt: skip
    try:
        for where, options, words in (
            (pipe, {"image": Image.new("RGB", (64, 64)), "strength": 0.3}, "strength 0.3 leaves none of 3"),
            (pipe, {"image": [Image.new("RGB", (64, 64))] * 3, "strength": 1.0}, "`image` holds 3"),
            (small_demo, {"negative_prompt": ["a"] * 3}, "`negative_prompt` holds 3 entries for 4 prompts"),
            (
                small_demo,
                {"negative_prompt_embeds": torch.zeros(8, 24, 8)},
                "`negative_prompt_embeds` holds 8",
            ),
            (small_demo, {"prompt_embeds": torch.zeros(4, 24, 8)}, "prompt_embeds cannot be given"),
            (small_demo, {"strenght": 1.0}, "takes no strenght"),
            (pag, {}, "pag_scale=0"),
        ):
            with pytest.raises((InputError, UnsupportedPipelineError), match=words):
                sample(where, **options)
    finally:
        for handle in handles:
            handle.remove()
    assert not calls
