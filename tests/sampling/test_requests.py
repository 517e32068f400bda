"""Requests in place of texts: each gets its own seed, size, guidance, negative prompt, and shares where all agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sagediff import ImageRequest, InputError, SharedSampler, Sharing

CAT = "a large cat at the top on a red background"
DOG = "a large dog at the top on a red background"
ALIKE: dict[str, Any] = {"threshold": -1.0, "share_ratio": 0.5}
STEPS, GUIDANCE = 4, 4.0
ROUNDING = 1  # of 255


def close(one: Any, two: Any) -> bool:
    a, b = (np.asarray(image, dtype=int) for image in (one, two))
    return a.shape == b.shape and int(np.abs(a - b).max()) <= ROUNDING


def own(small_demo: Any, request: ImageRequest, guidance: float = GUIDANCE) -> Any:
    """What the untouched pipeline makes of a request with a seed."""
    assert request.seed is not None
    options: dict[str, Any] = {"negative_prompt": request.negative_prompt}
    if request.width is not None:
        options |= {"width": request.width, "height": request.height}
    return small_demo(
        request.prompt, num_inference_steps=STEPS, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(request.seed), **options,
    ).images[0]  # fmt: skip


def test_who_brings_a_seed_gets_the_image_that_it_gives(small_demo: Any) -> None:
    wanted = [
        ImageRequest(CAT, seed=7),
        DOG,
        ImageRequest(DOG, negative_prompt="blue", seed=8),
        ImageRequest(CAT, seed=9, width=32, height=64),
        ImageRequest(CAT, seed=7, guidance_scale=2.0),
        CAT,
    ]
    result = SharedSampler(small_demo, **ALIKE)(wanted, STEPS, GUIDANCE)
    assert sorted(map(sorted, result.plan.groups)) == [[0], [1, 5], [2], [3], [4]]
    assert [result.seeds[i] for i in (0, 2, 3, 4)] == [7, 8, 9, 7]
    for i in (0, 2, 3):
        assert close(result.images[i], own(small_demo, wanted[i]))  # type: ignore[arg-type]
    assert close(result.images[4], own(small_demo, wanted[4], 2.0))  # type: ignore[arg-type]
    assert result.images[3].size == (32, 64)


def test_requests_share_only_where_all_but_the_text_agrees(small_demo: Any) -> None:
    pairs = [
        {},
        {"negative_prompt": "a"},
        {"negative_prompt": "b"},
        {"width": 32, "height": 32},
        {"guidance_scale": 3.0},
    ]
    wanted = [ImageRequest(text, **options) for text in (CAT, DOG) for options in pairs]
    sampler = SharedSampler(small_demo, **ALIKE)
    plan = sampler.plan(wanted, STEPS, GUIDANCE)
    assert plan.groups == [[i, i + len(pairs)] for i in range(len(pairs))]
    result = sampler(wanted, STEPS, GUIDANCE)
    assert result.report["evaluations_run"] == plan.evaluations
    assert [image.size for image in result.images] == [
        (32, 32) if i % 5 == 3 else (64, 64) for i in range(10)
    ]


def test_guided_and_unguided_requests_run_in_one_call_each_at_its_own_cost(small_demo: Any) -> None:
    wanted = [
        ImageRequest(CAT, guidance_scale=1.0),
        CAT,
        ImageRequest(DOG, guidance_scale=1.0),
        DOG,
        ImageRequest(CAT, guidance_scale=1.0, seed=5),
        ImageRequest(CAT, seed=5),
    ]
    sampler = SharedSampler(small_demo, **ALIKE)
    plan = sampler.plan(wanted, STEPS, GUIDANCE)
    assert plan.groups == [[0, 2], [1, 3], [4], [5]]
    assert plan.prompt_evaluations.tolist() == [
        3.0,
        5.0,
        3.0,
        5.0,
        4.0,
        8.0,
    ]  # half of 4 steps, shared without guidance
    result = sampler(wanted, STEPS, GUIDANCE)
    assert result.report["evaluations_run"] == plan.evaluations == 28
    assert result.report["evaluations_independent"] == 36
    assert close(result.images[4], own(small_demo, wanted[4], 1.0))  # type: ignore[arg-type]
    assert close(result.images[5], own(small_demo, wanted[5]))  # type: ignore[arg-type]


def test_a_seed_shares_where_it_is_said(small_demo: Any) -> None:
    plan = SharedSampler(small_demo, **ALIKE).plan([ImageRequest(CAT, seed=1, share=True), DOG], STEPS)
    assert plan.groups == [[0, 1]]
    apart = SharedSampler(small_demo, **ALIKE).plan([ImageRequest(CAT, share=False), DOG], STEPS)
    assert apart.groups == [[0], [1]]


def test_texts_and_requests_of_them_are_the_same(small_demo: Any) -> None:
    sampler = SharedSampler(small_demo, **ALIKE)
    one, two = (
        sampler(each, STEPS, GUIDANCE) for each in ([CAT, DOG], [ImageRequest(CAT), ImageRequest(DOG)])
    )
    assert one.plan == two.plan and one.seeds == two.seeds
    assert all(close(a, b) for a, b in zip(one.images, two.images, strict=True))


@pytest.mark.parametrize(
    ("wanted", "options", "words"),
    [
        (
            [ImageRequest(CAT, negative_prompt="a")],
            {"negative_prompt": "b"},
            "negative_prompt: given for all",
        ),
        ([CAT, 7], {}, "prompt 1 is empty or not a string"),
        (CAT, {}, "got one string"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    small_demo: Any, wanted: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        SharedSampler(small_demo, **ALIKE)(wanted, STEPS, GUIDANCE, **options)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": " "}, "not empty"),
        ({"prompt": None}, "text"),
        ({"width": 64}, "together"),
        ({"width": 0, "height": 64}, "at least 1"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_a_request_that_cannot_be_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ImageRequest(**{"prompt": CAT} | fields)


@pytest.mark.parametrize("whole", [1, 1.0])
def test_whole_numbers_of_noise_are_noise(whole: float) -> None:
    plan = Sharing(-1, 0.5).plan(np.eye(2, dtype=np.float32), STEPS)
    noise = Sharing(fresh_noise=whole, handover_noise=whole).noise(plan, [True, False])
    assert all(
        isinstance(noise[name], float) and noise[name] == 1.0 for name in ("fresh_noise", "handover_noise")
    )
