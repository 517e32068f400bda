"""Requests that begin from images: forty prompts of one image share, prompts of different images never do, and each
gets the image that the pipeline makes of its prompt, image, mask and seed alone."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny import prompted
from tiny.prompted import half_mask, random_image

from sagediff import ImageRequest, InputError, SharedSampler, SharePlan, UnsupportedPipelineError
from sagediff.plan.waves import own_seeds
from sagediff.sampling.input_images import WAYS, ImageKeywords
from sagediff.sampling.per_prompt import PerPrompt

STEPS, GUIDANCE = 4, 4.0
ROUNDING = 1  # of 255
CAT, DOG = "a red cat", "a blue dog"
ONE, OTHER = random_image(1), random_image(2)
COPIES: dict[str, Any] = {
    "threshold": 0.9999,
    "repeats": "share",
    "fresh_noise": 0.0,
    "shared_guidance": None,
}

MAKERS: dict[
    str, tuple[Any, dict[str, Any], dict[str, Any]]
] = {  # pipeline, fields of a request, keywords of the call
    "img2img": (lambda: prompted.sd(diffusers.StableDiffusionImg2ImgPipeline), {}, {}),
    "inpaint": (
        lambda: prompted.sd(diffusers.StableDiffusionInpaintPipeline),
        {"mask_image": half_mask()},
        {},
    ),
    "kontext": (
        lambda: prompted.flux(diffusers.FluxKontextPipeline),
        {"width": 16, "height": 16},
        {"_auto_resize": False, "max_sequence_length": 8},
    ),
    "wan": (
        lambda: prompted.wan(from_image=True),
        {"width": 16, "height": 16},
        {"num_frames": 5, "max_sequence_length": 8},
    ),
    "ltx": (
        lambda: prompted.ltx(from_image=True),
        {"width": 32, "height": 32},
        {"num_frames": 9, "max_sequence_length": 8},
    ),
}


@pytest.fixture(scope="module", params=MAKERS)
def case(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    make, fields, keywords = MAKERS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        # diffusers' Wan from an image needs a package that repairs texts, and does not say so
        cleaned = SimpleNamespace(fix_text=str)
        patch.setattr("diffusers.pipelines.wan.pipeline_wan_i2v.ftfy", cleaned, raising=False)
        yield make(), fields, keywords


def by_text(texts: list[str]) -> npt.NDArray[np.float64]:
    """Only equal texts are alike."""
    every = sorted({CAT, DOG, *texts})
    return np.eye(len(every))[[every.index(text) for text in texts]]


def sampler(pipe: Any, **options: Any) -> SharedSampler:
    return SharedSampler(pipe, encoder=by_text, **options)


def made(result: Any) -> npt.NDArray[np.int16]:
    """(prompts, frames, height, width, 3)."""
    clips = result.videos or [[image] for image in result.images]
    return np.stack([[np.asarray(frame, dtype=np.int16) for frame in clip] for clip in clips])


def alone(pipe: Any, request: ImageRequest, seed: int, **keywords: Any) -> npt.NDArray[np.int16]:
    """What the untouched pipeline makes of one request."""
    given = {name: getattr(request, name) for name in ("width", "height", "strength")}
    given = {name: value for name, value in given.items() if value is not None}
    if request.mask is not None:
        given["mask_image"] = request.mask.open()
    if "max_area" in inspect.signature(type(pipe).__call__).parameters:
        given["max_area"] = given["width"] * given["height"]
    output = pipe(
        prompt=request.prompt, image=request.images[0].open(), num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(seed), output_type="pil", **given, **keywords,
    )  # fmt: skip
    frames = output.frames[0] if hasattr(output, "frames") else [output.images[0]]
    return np.stack([np.asarray(frame, dtype=np.int16) for frame in frames])


def test_each_request_gets_what_its_image_gives_alone(case: Any) -> None:
    pipe, fields, keywords = case
    one, other, dog = (
        ImageRequest(text, image=image, **fields) for text, image in ((CAT, ONE), (CAT, OTHER), (DOG, ONE))
    )
    for options, requests in (
        ({"share_ratio": 0.0}, [one, other, dog]),
        (COPIES | {"share_ratio": 0.5}, [one, other, one]),
    ):
        result = sampler(pipe, wave_size=2, **options)(requests, STEPS, GUIDANCE, **keywords)
        assert result.report["evaluations_run"] == result.plan.evaluations
        expected = [
            alone(pipe, each, seed, **keywords) for each, seed in zip(requests, result.seeds, strict=True)
        ]
        assert np.abs(made(result) - np.stack(expected)).max() <= ROUNDING
    assert result.plan.groups == [[0, 2], [1]]


def test_forty_prompts_of_one_image_share_and_those_of_two_do_not(case: Any) -> None:
    pipe, fields, _ = case
    texts = [f"{text} {number}" for number in range(20) for text in (CAT, DOG)]
    options = {"threshold": -1.0, "max_group_size": 40, "wave_size": 7}
    of_one = [ImageRequest(text, image=ONE.copy(), **fields) for text in texts]
    assert sampler(pipe, **options).plan(of_one, STEPS, GUIDANCE).groups == [list(range(40))]
    of_two = [ImageRequest(text, image=ONE if i % 2 else OTHER, **fields) for i, text in enumerate(texts)]
    plan = sampler(pipe, **options).plan(of_two, STEPS, GUIDANCE)
    assert plan.groups == [list(range(0, 40, 2)), list(range(1, 40, 2))]


def test_a_forty_fold_call_runs_what_it_plans() -> None:
    """Wave boundaries lie between groups; a pipeline that takes one image a call has it in one wave."""
    texts = [f"{text} {number}" for number in range(20) for text in (CAT, DOG)]
    pipe = prompted.flux(diffusers.FluxKontextPipeline)
    requests = [
        ImageRequest(text, image=ONE if i % 4 else OTHER, width=16, height=16) for i, text in enumerate(texts)
    ]
    found = sampler(pipe, threshold=-1.0, max_group_size=6, share_ratio=0.5, wave_size=9)
    result = found(requests, 2, GUIDANCE, _auto_resize=False, max_sequence_length=8)
    assert result.report["evaluations_run"] == result.plan.evaluations < 2 * 40
    for group in result.plan.groups:
        assert len({requests[i].images for i in group}) == 1
    waves = found.waves_of(requests, result.plan, 0)
    assert sorted(i for wave in waves.members for i in wave) == list(range(40))
    assert max(map(len, waves.members)) <= 9


def test_images_of_other_sizes_run_apart_where_a_call_scales_them_alike() -> None:
    pipe = prompted.sd(diffusers.StableDiffusionImg2ImgPipeline)
    small = random_image(3, (32, 16))
    requests = [ImageRequest(CAT, image=image) for image in (ONE, small, OTHER, small)]
    result = sampler(pipe, share_ratio=0.0)(requests, STEPS, GUIDANCE)
    assert [image.size for image in result.images] == [(16, 16), (32, 16), (16, 16), (32, 16)]
    for image, request, seed in zip(result.images, requests, result.seeds, strict=True):
        assert np.abs(np.asarray(image, dtype=np.int16) - alone(pipe, request, seed)[0]).max() <= ROUNDING


def test_one_image_given_for_all_is_as_one_for_each() -> None:
    """Pipelines draw for it from the first prompt's generator alone, which would set members apart."""
    pipe = prompted.sd(diffusers.StableDiffusionInpaintPipeline)
    options: dict[str, Any] = {"threshold": -1.0, "share_ratio": 0.5}
    given = sampler(pipe, **options)([CAT, DOG], STEPS, GUIDANCE, image=ONE, mask_image=half_mask())
    requests = [ImageRequest(text, image=ONE, mask_image=half_mask()) for text in (CAT, DOG)]
    by_request = sampler(pipe, **options)(requests, STEPS, GUIDANCE)
    assert given.plan.groups == by_request.plan.groups == [[0, 1]]
    for image in (
        np.asarray(ONE, dtype=np.float32)[None] / 255,
        torch.rand(3, 16, 16),
        torch.rand(1, 3, 16, 16),
    ):
        sampler(pipe, **options)([CAT, DOG], STEPS, GUIDANCE, image=image, mask_image=half_mask())


def test_seeds_do_not_depend_on_the_order_of_images() -> None:
    one, other, plain = (ImageRequest(CAT, image=image) for image in (ONE, OTHER, None))
    seeds = own_seeds([one, other, plain, one], 0)
    assert len(set(seeds)) == 4
    assert own_seeds([plain, other, one, one], 0) == [seeds[i] for i in (2, 1, 0, 3)]
    assert own_seeds([ImageRequest(CAT)], 0) == [seeds[2]]


# -- strength --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "strength"),
    [("ddim", None), ("pndm", 0.35), ("pndm_prk", 0.35), ("heun", 0.35), ("dpmpp_2m", 1.0)],
)
def test_the_plan_has_the_steps_that_the_strength_leaves(solver: str, strength: float | None) -> None:
    pipe = prompted.sd(diffusers.StableDiffusionImg2ImgPipeline, solver)
    requests = [ImageRequest(text, image=ONE, strength=strength) for text in (CAT, DOG, CAT)]
    found = sampler(pipe, **COPIES, share_ratio=0.5)
    result = found(requests, 6, GUIDANCE)
    assert result.report["evaluations_run"] == result.plan.evaluations
    assert result.plan.groups == [[0, 2], [1]]
    expected = pipe(
        [CAT, DOG, CAT], image=[ONE] * 3, num_inference_steps=6, guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(seed) for seed in result.seeds],
        **{} if strength is None else {"strength": strength},
    ).images  # fmt: skip
    for one, two in zip(result.images, expected, strict=True):
        assert np.abs(np.asarray(one, dtype=np.int16) - np.asarray(two)).max() <= ROUNDING
    as_keyword = found.plan([CAT, DOG, CAT], 6, GUIDANCE, strength=strength)
    assert as_keyword.num_steps == result.plan.num_steps


@pytest.mark.parametrize(("strength", "steps"), [(0.55, 4), (0.5, 3), (0.1, 1)])
def test_a_fraction_of_a_step_is_counted_as_the_pipeline_counts_it(strength: float, steps: int) -> None:
    """FLUX begins at the step before, Stable Diffusion at the one after."""
    request = ImageRequest(CAT, image=ONE, strength=strength)
    flux = prompted.flux(diffusers.FluxImg2ImgPipeline)
    assert sampler(flux).plan([request], 6).num_steps == steps
    stable = prompted.sd(diffusers.StableDiffusionImg2ImgPipeline)
    assert sampler(stable).plan([ImageRequest(CAT, image=ONE, strength=0.55)], 6).num_steps == 3


def test_what_leaves_no_step_or_several_numbers_of_them_is_refused() -> None:
    pipe = prompted.sd(diffusers.StableDiffusionImg2ImgPipeline)

    def plan(*strengths: float) -> Any:
        return sampler(pipe).plan([ImageRequest(CAT, image=ONE, strength=each) for each in strengths], 6)

    with pytest.raises(InputError, match="leaves none of 6 steps"):
        plan(0.1)
    with pytest.raises(InputError, match="leave 3 and 6 of 6 steps"):
        plan(1.0, 0.5)
    found, requests = sampler(pipe), [ImageRequest(CAT, image=ONE, strength=0.5)]
    with pytest.raises(InputError, match=r"3 steps, but a call of 3 takes 1.*num_inference_steps"):
        next(found.waves(requests, plan(0.5), GUIDANCE))
    wave = next(found.waves(requests, plan(0.5), GUIDANCE, num_inference_steps=6))
    whole = found(requests, 6, GUIDANCE)
    assert np.array_equal(np.asarray(wave.images[0]), np.asarray(whole.images[0]))


def test_a_pipeline_that_is_not_asked_where_to_begin_takes_no_strength() -> None:
    class Latent(diffusers.StableDiffusionImg2ImgPipeline):  # type: ignore[misc]
        def __call__(self, prompt: Any, image: Any = None, strength: float = 0.8, **more: Any) -> Any: ...

    pipe = prompted.sd(Latent)
    with pytest.raises(InputError, match=r"not known which steps Latent leaves out.*strength=1"):
        sampler(pipe).plan([CAT], 6)
    assert sampler(pipe).plan([CAT], 6, strength=1.0).num_steps == 6


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pipeline", "fields", "keywords", "words"),
    [
        ("StableDiffusionPipeline", {"image": ONE}, {}, "takes none.*AutoPipelineForImage2Image"),
        ("StableDiffusionImg2ImgPipeline", {}, {}, "prompt 1: there is no image"),
        ("StableDiffusionImg2ImgPipeline", {"image": [ONE, OTHER]}, {}, "there are 2 images"),
        ("StableDiffusionImg2ImgPipeline", {"image": ONE, "mask_image": ONE}, {}, "mask_image.*takes none"),
        ("StableDiffusionInpaintPipeline", {"image": ONE}, {}, "there is no mask_image"),
        ("StableDiffusionPipeline", {"strength": 0.5}, {}, "strength.*takes none"),
        ("StableDiffusionImg2ImgPipeline", {"image": ONE}, {"image": ONE}, "`image` is given for all"),
        (
            "StableDiffusionImg2ImgPipeline",
            {"image": ONE, "strength": 1},
            {"strength": 1},
            "`strength` is given",
        ),
        (
            "StableDiffusionInpaintPipeline",
            {"image": ONE, "mask_image": half_mask()},
            {"padding_mask_crop": 4},
            "padding_mask_crop",
        ),
    ],
)
def test_what_a_pipeline_cannot_take_is_refused(
    pipeline: str, fields: dict[str, Any], keywords: dict[str, Any], words: str
) -> None:
    pipe = prompted.sd(getattr(diffusers, pipeline))
    first = fields if "no image" not in words else {"image": ONE}
    with pytest.raises(InputError, match=words):
        sampler(pipe)([ImageRequest(CAT, **first), ImageRequest(DOG, **fields)], STEPS, **keywords)


def test_groups_made_elsewhere_must_agree_in_their_images() -> None:
    pipe = prompted.flux(diffusers.FluxKontextPipeline)
    plan = SharePlan.from_groups([[0, 1]], STEPS, rows_per_prompt=1)
    for fields in ({"image": OTHER}, {"image": ONE, "guidance_scale": 2.0}, {}):
        requests = [ImageRequest(CAT, image=ONE), ImageRequest(DOG, **fields)]
        with pytest.raises(InputError, match="prompts 0 and 1 are in one group, but differ"):
            next(sampler(pipe).waves(requests, plan, GUIDANCE))


def test_a_package_that_a_pipeline_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("diffusers.pipelines.wan.pipeline_wan_i2v.ftfy", raising=False)
    with pytest.raises(InputError, match=r"ftfy: pip install 'sagediff\[video\]'"):
        SharedSampler(empty("WanImageToVideoPipeline"))


def test_a_pipeline_of_one_prompt_per_call_is_refused() -> None:
    with pytest.raises(UnsupportedPipelineError, match=r"one prompt per call.*QwenImageEditPipeline"):
        SharedSampler(type("QwenImageEditPlusPipeline", (), {})())


# -- the table -------------------------------------------------------------------------------------


def test_ways_name_pipelines_that_take_images() -> None:
    for name, way in WAYS.items():
        pipe = empty(name)
        keywords = ImageKeywords.of(pipe)
        # some stand-ins take the place of classes whose packages are not installed, and take anything
        assert keywords.way == way and (keywords.image is not None or hasattr(pipe, "_backends")), name


def empty(name: str) -> Any:
    """An empty instance of a pipeline's class."""
    return object.__new__(getattr(diffusers, name))


@pytest.mark.parametrize(
    ("name", "images", "found"),
    [
        ("FluxControlPipeline", [ONE], {"control_image": [ONE, ONE]}),
        ("QwenImageEditPipeline", [ONE], {"image": [ONE, ONE]}),
        ("Flux2Pipeline", [ONE, OTHER], {"image": [ONE, OTHER]}),
        ("WanImageToVideoPipeline", [ONE], {"image": ONE}),
    ],
)
def test_images_reach_the_keyword_that_takes_them(name: str, images: Any, found: dict[str, Any]) -> None:
    requests = [ImageRequest(text, image=images) for text in (CAT, DOG)]
    assert ImageKeywords.of(empty(name)).of_wave(requests) == found


def test_a_pipeline_that_is_not_in_the_table_gets_no_requests_image() -> None:
    several = empty("StableDiffusionControlNetPipeline")
    several.controlnet = SimpleNamespace(nets=[0, 1])  # to which a list of images goes by net
    for pipe in (several, empty("StableDiffusionUpscalePipeline")):
        with pytest.raises(
            UnsupportedPipelineError, match=f"not known whether {type(pipe).__name__} takes one"
        ):
            ImageKeywords.of(pipe).check([ImageRequest(CAT, image=ONE)], {})


def test_one_image_stays_one_where_it_is_cropped_or_not_taken_each() -> None:
    inpaint, wan = (empty(f"{name}Pipeline") for name in ("StableDiffusionInpaint", "WanImageToVideo"))
    assert PerPrompt(inpaint, {"image": ONE}, 2).of([1, 0])["image"] == [ONE, ONE]
    assert PerPrompt(inpaint, {"image": ONE, "padding_mask_crop": 4}, 2).of([1, 0])["image"] is ONE
    assert PerPrompt(wan, {"image": ONE}, 2).of([1, 0])["image"] is ONE
