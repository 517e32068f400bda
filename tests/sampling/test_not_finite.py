"""Numbers that are not finite make no image: it is said whose, and the others are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny.parts import spoiled

from sagediff.errors import ModelError
from sagediff.sampling.sampler import SharedSampler

PROMPTS = [
    "a large heart at the top on a red background",
    "a small lion at the left on a blue background",
    "a large cat at the bottom on a black background",
]
ALONE: dict[str, Any] = {"threshold": 1.0, "share_ratio": 0.5}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["unet", "decoder"])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_whose_images_are_none_is_named_and_the_others_are_there(
    small_demo: Any, part: str, value: float
) -> None:
    sampler = SharedSampler(small_demo, **ALONE)
    expected = sampler(PROMPTS, 2, 1.0).images
    module = small_demo.unet if part == "unet" else small_demo.vae.decoder
    with spoiled(module, [1], value), pytest.raises(ModelError, match=r"prompt 1 \('a small lion") as caught:
        sampler(PROMPTS, 2, 1.0)
    assert caught.value.bad == (1,)
    assert caught.value.images is not None and caught.value.images[1] is None
    for i in (0, 2):
        assert np.array_equal(np.asarray(caught.value.images[i]), np.asarray(expected[i]))
    assert "decode" not in vars(small_demo.vae)
    again = sampler(PROMPTS, 2, 1.0).images
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(again, expected, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_waves_give_what_is_finite_and_then_say_what_was_not(small_demo: Any) -> None:
    sampler = SharedSampler(small_demo, **ALONE)
    plan = sampler.plan(PROMPTS, 2, 1.0)
    waves = sampler.waves(PROMPTS, plan, 1.0)
    with spoiled(small_demo.unet, [0, 2], float("nan")):
        wave = next(waves)
        assert wave.prompts == [1] and len(wave.images) == 1 and wave.images[0] is not None
        with pytest.raises(ModelError, match=r"prompt 0 .*, 2 "):
            next(waves)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_two_waves_without_any_image_end_the_run(small_demo: Any) -> None:
    """Most likely no weights of it are numbers, and a night of work would be none."""
    calls: list[int] = []
    sampler = SharedSampler(small_demo, **ALONE, wave_size=1)
    handle = small_demo.unet.register_forward_pre_hook(lambda module, args: calls.append(1))
    try:
        with spoiled(small_demo.unet, [0, 1, 2], float("nan")), pytest.raises(ModelError) as caught:
            sampler(PROMPTS, 2, 1.0)
    finally:
        handle.remove()
    assert len(calls) == 2 * 2  # steps
    assert caught.value.images == [None] * 3 and len(caught.value.bad) == 2


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_large_waves_are_told_apart_too(small_demo: Any) -> None:
    """They are decoded image by image."""
    prompts = PROMPTS * 6
    sampler = SharedSampler(small_demo, share_ratio=0.0)
    with spoiled(small_demo.unet, [1], float("nan")), pytest.raises(ModelError) as caught:
        sampler(prompts, 1, 1.0)
    assert caught.value.bad == tuple(range(1, 18, 3))


def test_the_error_names_a_few(small_demo: Any) -> None:
    prompts = [f"{text} {'very ' * 30}" for text in PROMPTS * 2]
    with (
        spoiled(small_demo.unet, [0, 1, 2], float("nan")),
        pytest.raises(ModelError) as caught,
        np.errstate(all="ignore"),
    ):
        SharedSampler(small_demo, **ALONE)(prompts, 1, 1.0)
    words = str(caught.value)
    assert "and 3 more" in words and "\n" not in words and len(words) < 500
