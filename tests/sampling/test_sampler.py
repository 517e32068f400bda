"""`SharedSampler` on the built-in model: an image depends on its prompt, its group and the seed, on nothing else."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sagediff.builtin.scenes.world import POSITIONS, parse_caption
from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.waves import Waves, noise_seeds, own_seeds, wave_members
from sagediff.prompts.requests import as_requests
from sagediff.sampling.sampler import SharedSampler

STEPS = 4
GUIDANCE = 4.0
ROUNDING = 2  # of 255
CAPTIONS = [
    "a large heart at the bottom left on a orange background",
    "a small lion at the top right on a red background",
    "a large cat at the bottom left on a orange background",
    "a small cactus at the top right on a red background",
    "a large guitar at the top on a black background",
    "a small cake at the top right on a red background",
]


def by_place(texts: list[str]) -> npt.NDArray[np.float64]:
    """Groups captions by their position, whatever the built-in text encoder thinks of them."""
    places = list(POSITIONS)
    return np.eye(len(places))[[places.index(parse_caption(text).position) for text in texts]]


OPTIONS: dict[str, Any] = {"threshold": 0.9, "share_ratio": 0.5, "encoder": by_place}


def arrays(images: list[Any]) -> npt.NDArray[np.int16]:
    """Images as numbers that can be subtracted, (N, H, W, 3)."""
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def seeds_of(prompts: list[str], seed: int = 0) -> list[int]:
    return own_seeds(as_requests(prompts), seed)


def close(one: Any, two: Any) -> bool:
    return int(np.abs(np.asarray(one) - np.asarray(two)).max()) <= ROUNDING


def sample(small_demo: Any, prompts: list[str], seed: int = 0, **options: Any) -> Any:
    return SharedSampler(small_demo, **OPTIONS | options)(prompts, STEPS, GUIDANCE, seed)


@pytest.fixture(scope="module")
def whole(small_demo: Any) -> Any:
    """All captions in one wave: what the other tests compare with."""
    return sample(small_demo, CAPTIONS)


def test_the_captions_make_groups_of_several_sizes(whole: Any) -> None:
    """What the tests below rest on."""
    assert whole.plan.groups == [[0, 2], [1, 3, 5], [4]]
    assert not close(*arrays(whole.images)[[0, 2]])


def test_the_counted_cost_is_the_plans(whole: Any) -> None:
    report = whole.report
    assert report["evaluations_run"] == report["evaluations"] == whole.plan.evaluations
    # 2 shared steps of 2 nodes without their negative rows and one prompt with it, 2 steps of 6 prompts
    assert whole.plan.evaluations == 2 * (1 + 1 + 2) + 2 * 12
    assert whole.report["cost_saving"] == pytest.approx(1 - 32 / 48)
    assert len(whole.images) == report["num_prompts"] == 6
    assert report["seconds"] > 0
    assert report["images_per_second"] == pytest.approx(6 / report["seconds"])
    assert whole.seeds == noise_seeds(as_requests(CAPTIONS), seeds_of(CAPTIONS), whole.plan.groups)


@pytest.mark.parametrize("shared_guidance", [None, 2.0])
def test_the_cost_is_counted_right_with_guidance_while_shared(
    small_demo: Any, shared_guidance: float | None
) -> None:
    result = sample(small_demo, CAPTIONS[:4], shared_guidance=shared_guidance)
    assert result.report["evaluations_run"] == result.plan.evaluations == 2 * 2 * 2 + 2 * 8


@pytest.mark.parametrize("options", [{"share_ratio": 0.0}, {"max_group_size": 1}], ids=["ratio", "size"])
def test_nothing_shared_equals_the_untouched_pipeline(small_demo: Any, options: dict[str, Any]) -> None:
    result = sample(small_demo, CAPTIONS[:4], seed=3, **options)
    expected = small_demo(
        CAPTIONS[:4],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(seed) for seed in result.seeds],
    ).images
    assert np.array_equal(arrays(result.images), arrays(expected))
    assert result.report["cost_saving"] == 0
    assert len(set(result.seeds)) == 4


def test_the_order_of_prompts_changes_no_image(small_demo: Any, whole: Any) -> None:
    order = [4, 2, 5, 0, 3, 1]
    result = sample(small_demo, [CAPTIONS[i] for i in order])
    assert close(arrays(result.images), arrays(whole.images)[order])
    assert result.seeds == [whole.seeds[i] for i in order]


def test_equal_prompts_keep_their_images_in_any_order(small_demo: Any) -> None:
    """The first of equal prompts gets the first one's image, wherever they stand."""
    one, two, three = CAPTIONS[0], CAPTIONS[2], CAPTIONS[4]
    first = arrays(sample(small_demo, [one, two, one, three]).images)
    second = arrays(sample(small_demo, [three, one, one, two]).images)
    assert close(first[[3, 0, 2, 1]], second)


def test_another_seed_gives_other_images_and_the_same_seed_the_same(small_demo: Any, whole: Any) -> None:
    again = arrays(sample(small_demo, CAPTIONS[:1], seed=0).images)
    assert np.array_equal(arrays(sample(small_demo, CAPTIONS[:1], seed=0).images), again)
    assert not close(arrays(sample(small_demo, CAPTIONS[:1], seed=1).images), again)


@pytest.mark.parametrize("options", [{"wave_size": 1}, {"wave_size": 4}, {"micro_batch_size": 5}])
def test_waves_and_micro_batches_change_no_image(
    small_demo: Any, whole: Any, options: dict[str, Any]
) -> None:
    result = sample(small_demo, CAPTIONS, **options)
    assert close(arrays(result.images), arrays(whole.images))
    assert result.report["evaluations_run"] == whole.report["evaluations_run"]
    assert result.plan == whole.plan


def test_an_outsider_changes_no_image_of_a_group(small_demo: Any, whole: Any) -> None:
    without = sample(small_demo, CAPTIONS[:4])
    assert close(arrays(without.images)[[0, 2]], arrays(whole.images)[[0, 2]])


def test_copies_that_share_come_out_different_unless_told_otherwise(small_demo: Any) -> None:
    prompts = [CAPTIONS[0], CAPTIONS[0], CAPTIONS[4]]
    apart, same = (
        arrays(sample(small_demo, prompts, repeats="share", **options).images)
        for options in ({}, {"fresh_noise": 0.0})
    )
    assert np.abs(same[0] - same[1]).max() <= 1  # rows of one batch may round differently
    assert np.abs(apart[0] - apart[1]).mean() > 1
    assert close(apart[0], same[0]) and close(apart[2], same[2])  # the first of them, and others, keep theirs


def test_copies_share_with_copies_of_other_prompts_and_not_with_one_another(small_demo: Any) -> None:
    """The second copies of similar prompts make a group as the first ones do, from noise of its own."""
    one, two = CAPTIONS[0], CAPTIONS[2]
    whole = sample(small_demo, [one, two, one, f" {two}", one], fresh_noise=0.0)  # which reads the same
    assert whole.plan.groups == [[0, 1], [2, 3], [4]]
    assert whole.seeds[0] == whole.seeds[1] and len(set(whole.seeds)) == 3
    images = arrays(whole.images)
    assert all(np.abs(images[i] - images[k]).mean() > 1 for i, k in ((0, 2), (0, 4), (2, 4), (1, 3)))
    first = arrays(sample(small_demo, [one, two], fresh_noise=0.0).images)
    assert close(images[:2], first)  # further copies change nothing for the first ones
    alone = small_demo(
        one, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(whole.seeds[4]),
    ).images  # fmt: skip
    assert close(images[4:], arrays(alone))


def test_a_list_of_one_entry_a_prompt_is_cut_to_its_wave(small_demo: Any) -> None:
    negative = ["", "red", "blue", "", "a cat", "top"]
    images = [
        arrays(
            SharedSampler(small_demo, **OPTIONS, wave_size=size)(
                CAPTIONS, STEPS, GUIDANCE, negative_prompt=negative
            ).images
        )
        for size in (1, 64)
    ]
    assert close(*images)


# -- waves


def test_waves_are_whole_groups_within_the_size_and_together_everything(small_demo: Any) -> None:
    sampler = SharedSampler(small_demo, **OPTIONS, wave_size=3)
    plan = sampler.plan(CAPTIONS, 2, GUIDANCE)
    steps: list[int] = []
    waves = list(sampler.waves(CAPTIONS, plan, GUIDANCE, on_step=steps.append))
    assert sorted(i for wave in waves for i in wave.prompts) == list(range(6))
    for wave in waves:
        assert len(wave.images) == len(wave.prompts) <= 3
        for group in plan.groups:
            assert set(group) <= set(wave.prompts) or not set(group) & set(wave.prompts)
        assert wave.evaluations == plan.subset(wave.prompts).evaluations
    assert steps == [len(wave.prompts) for wave in waves for _ in range(2)]


def test_finished_waves_are_skipped_and_half_finished_ones_run_again_the_same(
    small_demo: Any, whole: Any
) -> None:
    sampler, plan = SharedSampler(small_demo, **OPTIONS, wave_size=4), whole.plan
    first, second = sampler.waves(CAPTIONS, plan, GUIDANCE)
    again = list(sampler.waves(CAPTIONS, plan, GUIDANCE, skip=[*first.prompts, *second.prompts[:1]]))
    assert [wave.prompts for wave in again] == [second.prompts]
    assert np.array_equal(
        arrays(again[0].images), arrays(second.images)
    )  # to the last bit: the batch is the same
    assert again[0].evaluations == second.evaluations
    assert list(sampler.waves(CAPTIONS, plan, GUIDANCE, skip=range(6))) == []


@pytest.mark.parametrize("done", [[], [0], [5], [1, 4, 6], range(9)])
def test_what_is_left_runs_in_the_waves_that_it_would_have_run_in(done: Any) -> None:
    plan = SharePlan.from_groups([[0, 3], [1], [2, 4, 5, 6], [7], [8]], num_steps=2)
    waves = Waves(as_requests([f"prompt {i}" for i in range(9)]), plan, 0, 3)
    left = waves.without(done)
    assert left.members == [wave for wave in waves.members if not set(wave) <= set(done)]


def test_waves_are_packed_in_order() -> None:
    groups = [[0, 3], [1], [2, 4, 5, 6], [7], [8]]
    assert list(wave_members(groups, 3)) == [[0, 3, 1], [2, 4, 5, 6], [7, 8]]
    assert list(wave_members(groups, 1)) == groups
    assert list(wave_members([], 3)) == []


def test_seeds_depend_on_text_and_repetition_only() -> None:
    one = seeds_of(["a", "b", "a"], 0)
    assert len(set(one)) == 3
    assert Counter(seeds_of(["a", "a", "b"], 0)) == Counter(one)
    assert one[:2] == seeds_of(["a", "b"], 0)
    assert not set(one) & set(seeds_of(["a", "b", "a"], 1))
    assert all(0 <= seed < 2**63 for seed in one)


# -- refusals


class _Calls:
    """Counts the denoiser's calls."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.count = 0
        self._module = module

    def __enter__(self) -> _Calls:
        self._handle = self._module.register_forward_pre_hook(self._seen)
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.remove()

    def _seen(self, module: torch.nn.Module, args: Any) -> None:
        self.count += 1


@pytest.mark.parametrize(
    "prompts, options, words",
    [
        (["a cat", ""], {}, "prompt 1 is empty"),
        (["a cat", 3], {}, "prompt 1 is empty or not a string"),
        ([], {}, "no prompts"),
        ("a cat", {}, "one string"),
        (["a cat"], {"num_inference_steps": 0}, "num_inference_steps"),
        (["a cat"], {"guidance_scale": float("nan")}, "guidance_scale"),
        (["a cat"], {"generator": torch.Generator()}, "generator cannot be given"),
        (["a cat"], {"prompt": "a dog"}, "prompt cannot be given"),
        (["a cat"], {"output_type": "pt", "num_images_per_prompt": 2}, "num_images_per_prompt, output_type"),
        (["a cat"], {"callback_on_step_end": print}, "callback_on_step_end"),
    ],
)
def test_bad_input_is_refused_before_the_denoiser_runs(
    small_demo: Any, prompts: Any, options: dict[str, Any], words: str
) -> None:
    with _Calls(small_demo.unet) as calls, pytest.raises(InputError, match=words):
        SharedSampler(small_demo)(prompts, **{"num_inference_steps": 2} | options)
    assert calls.count == 0


def test_a_plan_for_other_prompts_is_refused_before_the_denoiser_runs(small_demo: Any) -> None:
    sampler = SharedSampler(small_demo)
    plan = sampler.plan(CAPTIONS[:2], 2)
    for prompts in (CAPTIONS[:1], CAPTIONS[:3]):
        with _Calls(small_demo.unet) as calls, pytest.raises(InputError, match="plan is for 2 prompts"):
            list(sampler.waves(prompts, plan))
        assert calls.count == 0


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 1.5},
        {"share_ratio": -0.1},
        {"max_group_size": 0},
        {"wave_size": 0},
        {"micro_batch_size": 0},
        {"fresh_noise": 1.1},
        {"fresh_noise": float("nan")},
        {"handover_noise": -0.1},
        {"shared_guidance": -1.0},
        {"group_condition": "mean"},
    ],
)
def test_options_out_of_range_are_refused_and_named(small_demo: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        SharedSampler(small_demo, **options)


def test_a_pipeline_without_a_known_denoiser_is_refused() -> None:
    with pytest.raises(UnsupportedPipelineError):
        SharedSampler(object())


def test_the_pipeline_is_left_as_it_was_found(small_demo: Any) -> None:
    before = [sorted(vars(small_demo.unet)), sorted(vars(small_demo.scheduler)), small_demo.unet.forward]
    sample(small_demo, CAPTIONS[:2])
    with pytest.raises(RuntimeError, match="stop"):
        list(
            SharedSampler(small_demo).waves(
                CAPTIONS[:2], SharedSampler(small_demo).plan(CAPTIONS[:2], 2), on_step=_stop
            )
        )
    assert [
        sorted(vars(small_demo.unet)),
        sorted(vars(small_demo.scheduler)),
        small_demo.unet.forward,
    ] == before


def _stop(count: int) -> None:
    raise RuntimeError("stop")


@pytest.mark.parametrize("on_already", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_large_waves_are_decoded_one_by_one_and_the_autoencoder_is_left_as_found(
    small_demo: Any, on_already: bool, fails: bool
) -> None:
    rows: list[int] = []

    def look(module: Any, args: Any) -> None:
        rows.append(len(args[0]))
        if fails:
            raise RuntimeError("broken")

    if on_already:
        small_demo.vae.enable_slicing()
    handle = small_demo.vae.decoder.register_forward_pre_hook(look)
    try:
        with pytest.raises(RuntimeError, match="broken") if fails else nullcontext():
            SharedSampler(small_demo, **OPTIONS)(CAPTIONS * 3, 1, GUIDANCE)
        assert rows == [1] * (1 if fails else len(CAPTIONS) * 3)
        assert small_demo.vae.use_slicing is on_already
    finally:
        handle.remove()
        small_demo.vae.disable_slicing()


def test_a_wave_that_the_pipeline_can_take_is_decoded_at_once(small_demo: Any) -> None:
    """So that images equal the untouched pipeline's to the last bit, whatever the number of threads."""
    rows: list[int] = []
    handle = small_demo.vae.decoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        sample(small_demo, CAPTIONS)
    finally:
        handle.remove()
    assert rows == [len(CAPTIONS)]


def test_large_images_are_decoded_one_by_one(small_demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of them need more memory than many small ones."""
    at_once = sample(small_demo, CAPTIONS)
    rows: list[int] = []
    handle = small_demo.vae.decoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    monkeypatch.setattr("sagediff.sampling.decoding.LATENTS_AT_ONCE", 100)
    try:
        one_by_one = sample(small_demo, CAPTIONS)
    finally:
        handle.remove()
    assert rows == [1] * len(CAPTIONS)
    assert not small_demo.vae.use_slicing and "decode" not in vars(small_demo.vae)
    for one, other in zip(one_by_one.images, at_once.images, strict=True):
        assert np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() <= 1
