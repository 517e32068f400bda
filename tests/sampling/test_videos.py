"""`SharedSampler` on pipelines that make videos: as exact as on images, a list of frames per prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny import prompted
from tiny.parts import spoiled

from sagediff import ImageRequest, InputError, ModelError, SharedSampler
from sagediff.sampling import decoding

STEPS, GUIDANCE = 3, 4.0
ROUNDING = 1  # of 255
TEXTS = ["a red cat", "a blue dog", "a small green bird", "a large blue bird"]
SIZES: dict[str, dict[str, Any]] = {
    "wan": {"width": 32, "height": 16, "num_frames": 5, "max_sequence_length": 8},
    "ltx": {"width": 64, "height": 32, "num_frames": 9, "max_sequence_length": 8},
}
COPIES: dict[str, Any] = {"threshold": 0.9999, "repeats": "share", "fresh_noise": 0.0}


@pytest.fixture(scope="module", params=SIZES)
def case(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    return getattr(prompted, request.param)(), SIZES[request.param]


def arrays(clips: Any) -> npt.NDArray[np.int16]:
    """(prompts, frames, height, width, 3), that can be subtracted."""
    return np.stack([[np.asarray(frame, dtype=np.int16) for frame in clip] for clip in clips])


def of_the_pipeline(pipe: Any, prompts: list[str], seeds: list[int], **options: Any) -> npt.NDArray[np.int16]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return arrays(
        pipe(
            prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators,
            output_type="pil", **options,
        ).frames
    )  # fmt: skip


def close(one: npt.NDArray[np.int16], two: npt.NDArray[np.int16]) -> bool:
    return one.shape == two.shape and int(np.abs(one - two).max()) <= ROUNDING


def test_equal_prompts_and_nothing_shared_equal_the_untouched_pipeline(case: Any) -> None:
    pipe, size = case
    prompts = TEXTS * 3
    for options, saved in (
        (COPIES | {"share_ratio": 0.67, "shared_guidance": None}, True),
        ({"share_ratio": 0.0}, False),
    ):
        sampler = SharedSampler(pipe, **options)
        result = sampler(prompts, STEPS, GUIDANCE, seed=3, **size)
        assert result.images == [] and sampler.makes == "videos"
        clips = arrays(result.videos)
        assert clips.shape == (12, size["num_frames"], size["height"], size["width"], 3)
        assert result.report["evaluations_run"] == result.plan.evaluations
        assert (result.plan.evaluations < 12 * STEPS * 2) == saved
        assert close(clips, of_the_pipeline(pipe, prompts, result.seeds, **size))
    assert not close(clips[:1], clips[1:2])


def test_waves_and_requests_change_no_clip(case: Any) -> None:
    pipe, size = case
    options = {"threshold": -1.0, "share_ratio": 0.34, "max_group_size": 2}
    frame = {name: size[name] for name in ("width", "height")}
    whole = SharedSampler(pipe, **options)(TEXTS, STEPS, GUIDANCE, **size)
    assert [len(group) for group in whole.plan.groups] == [2, 2]
    requests = [ImageRequest(text, **frame) for text in TEXTS]
    clips = SharedSampler(pipe, wave_size=2, **options)(
        requests, STEPS, GUIDANCE, **{name: size[name] for name in size if name not in frame}
    ).videos
    assert close(arrays(clips), arrays(whole.videos))


def test_large_clips_are_decoded_one_by_one(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, size = case
    sampler = SharedSampler(pipe, share_ratio=0.0)
    together = arrays(sampler(TEXTS, STEPS, GUIDANCE, **size).videos)
    rows: list[int] = []
    handle = pipe.vae.decoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    monkeypatch.setattr(decoding, "LATENTS_AT_ONCE", 1)
    try:
        assert close(arrays(sampler(TEXTS, STEPS, GUIDANCE, **size).videos), together)
    finally:
        handle.remove()
    assert set(rows) == {1}
    assert "decode" not in vars(pipe.vae)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_a_clip_that_is_not_finite_is_named_and_the_others_are_there(case: Any) -> None:
    pipe, size = case
    sampler = SharedSampler(pipe, share_ratio=0.0)
    expected = arrays(sampler(TEXTS[:3], 1, 1.0, **size).videos)
    with (
        spoiled(pipe.transformer, [1], float("nan")),
        pytest.raises(ModelError, match=r"prompt 1 \('a blue") as caught,
    ):
        sampler(TEXTS[:3], 1, 1.0, **size)
    assert caught.value.bad == (1,) and caught.value.images is not None and caught.value.images[1] is None
    assert close(arrays([caught.value.images[i] for i in (0, 2)]), expected[[0, 2]])


def test_a_decoder_that_draws_noise_draws_the_same_for_the_same_seeds() -> None:
    pipe = prompted.ltx(noisy=True)
    torch.nn.init.ones_(pipe.vae.decoder.mid_block.resnets[0].per_channel_scale1)
    sampler = SharedSampler(pipe, share_ratio=0.0)
    state = torch.get_rng_state()
    one = arrays(sampler(TEXTS[:2], 1, 1.0, **SIZES["ltx"]).videos)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    assert np.array_equal(arrays(sampler(TEXTS[:2], 1, 1.0, **SIZES["ltx"]).videos), one)
    assert not np.array_equal(arrays(sampler(TEXTS[:2], 1, 1.0, 1, **SIZES["ltx"]).videos), one)


def test_a_number_of_frames_that_would_be_changed_is_refused(case: Any) -> None:
    pipe, size = case
    frames = size["num_frames"]
    with pytest.raises(
        InputError, match=f"no video of {frames + 1} frames: take {frames} or {2 * frames - 1} "
    ):
        SharedSampler(pipe)(TEXTS, STEPS, **size | {"num_frames": frames + 1})


def test_several_clips_per_prompt_are_refused() -> None:
    with pytest.raises(InputError, match="num_videos_per_prompt"):
        SharedSampler(prompted.ltx())(TEXTS, STEPS, num_videos_per_prompt=2)
