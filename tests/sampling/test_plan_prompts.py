"""A plan made without the denoiser is the plan that the sampler carries out, at the same cost."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny import RECIPES, tiny

from sagediff.denoiser.scheduler import SCHEDULERS
from sagediff.errors import InputError
from sagediff.pipelines.loading import load_for_planning, load_pipeline
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.prompts.requests import ImageRequest
from sagediff.sampling.context import shared_sampling
from sagediff.sampling.plan_prompts import cost_basis, default_guidance, plan_prompts
from sagediff.sampling.sampler import SharedSampler

CAPTIONS = [
    f"a {size} {thing} at the top on a {color} background"
    for size in ("small", "large")
    for thing in ("cat", "rocket")
    for color in ("red", "blue", "black")
]
POLICY = Sharing(threshold=0.45, share_ratio=0.3)


def letters(texts: list[str]) -> list[list[int]]:
    return [[1 + text.count(letter) for letter in "abcdefgh"] for text in texts]


@pytest.mark.parametrize("scheduler", [None, "ddim", "heun", "pndm"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_plan_without_a_denoiser_is_the_samplers(
    small_demo: Any, scheduler: str | None, guidance: float
) -> None:
    light, denoiser = load_for_planning("demo", scheduler=scheduler)
    assert getattr(light, "unet", None) is None and denoiser == "UNet2DConditionModel"
    plan = plan_prompts(CAPTIONS, POLICY, light, denoiser, 7, guidance)
    pipe = small_demo if scheduler is None else diffusers.StableDiffusionPipeline(**small_demo.components)
    if scheduler is not None:
        pipe.scheduler = light.scheduler
    sampler = SharedSampler(pipe, POLICY)
    assert sampler.plan(CAPTIONS, 7, guidance) == plan
    assert 1 < len(plan.groups) < len(CAPTIONS)


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_prompts_alone_cost_the_same_as_independent_sampling(
    small_demo: Any, steps: int, guidance: float
) -> None:
    plan = SharedSampler(small_demo, threshold=1.0).plan(CAPTIONS, steps, guidance)
    assert plan.unguided_steps == 0
    assert plan.rows_per_prompt == (1 if guidance == 1.0 else 2)
    assert plan.evaluations == plan.evaluations_independent == len(CAPTIONS) * steps * plan.rows_per_prompt


def test_guidance_of_two_call_pipelines_is_their_true_scale() -> None:
    """FLUX: `guidance_scale` is an input of the model, and costs nothing."""
    pipe = tiny("flux").pipe
    rows = [
        plan_prompts(
            ["a", "b"], POLICY, pipe, "FluxTransformer2DModel", 4, 3.5, true, letters
        ).rows_per_prompt
        for true in (1.0, 4.0)
    ]
    assert rows == [1, 2]


def test_unguided_steps_round_half_up_and_cost_one_row() -> None:
    for steps, unguided in ((3, 2), (5, 3)):
        policy = Sharing(threshold=1.0, unguided=0.5)
        plan = plan_prompts(
            ["a", "b"], policy, tiny("sd").pipe, "UNet2DConditionModel", steps, 4.0, encoder=letters
        )
        assert plan.unguided_steps == unguided
        assert plan.evaluations == 2 * (2 * steps - unguided)


def test_defaults() -> None:
    assert Sharing() == Sharing(0.8, 0.4, 8, 1.0, 0.0)
    assert default_guidance(diffusers.StableDiffusionPipeline) == 7.5
    assert default_guidance(diffusers.FluxPipeline) == 3.5
    assert default_guidance(object) == 1.0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"threshold": 1.01}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"share_ratio": -0.1}, "share_ratio"),
        ({"share_ratio": float("nan")}, "share_ratio"),
        ({"unguided": 1.1}, "unguided"),
        ({"unguided": float("nan")}, "unguided"),
        ({"max_group_size": 0}, "max_group_size"),
        ({"shared_guidance": -1.0}, "shared_guidance"),
        ({"shared_guidance": float("inf")}, "shared_guidance"),
    ],
)
def test_a_policy_out_of_range_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Sharing(**options)


@pytest.mark.parametrize(
    "prompts, steps, guidance, words",
    [
        (["a", " "], 4, 4.0, "prompt 1 is empty"),
        (["a", None], 4, 4.0, "prompt 1 is empty or not a string"),
        ([], 4, 4.0, "no prompts"),
        ("a cat", 4, 4.0, "got one string"),
        (["a"], 0, 4.0, "num_inference_steps"),
        (["a"], True, 4.0, "num_inference_steps"),
        (["a"], 4, float("nan"), "guidance_scale"),
    ],
)
def test_bad_input_is_refused_before_anything_is_encoded(
    prompts: Any, steps: int, guidance: float, words: str
) -> None:
    asked: list[str] = []

    def encoder(texts: list[str]) -> list[list[int]]:
        asked.extend(texts)
        return letters(texts)

    with pytest.raises(InputError, match=words):
        plan_prompts(prompts, POLICY, None, "UNet2DConditionModel", steps, guidance, encoder=encoder)
    assert not asked


def test_a_model_made_for_flow_gets_solvers_that_know_flow(tmp_path: Path) -> None:
    tiny("sana", "dpmpp_flow").pipe.save_pretrained(tmp_path)
    absent: dict[str, Any] = {"vae": None, "text_encoder": None, "tokenizer": None}
    for name in ("unipc", "dpm++-sde", "flow-euler"):
        scheduler = load_pipeline(tmp_path, scheduler=name, **absent).scheduler
        assert type(scheduler).__name__ == SCHEDULERS[name][0]
        assert scheduler.config.get("shift", scheduler.config.get("flow_shift")) == 2.0
        assert name == "flow-euler" or scheduler.config.use_flow_sigmas
    for name in ("euler", "ddim", "heun", "dpm++-beta"):
        with pytest.raises(InputError, match=r"with flow: one of them"):
            load_pipeline(tmp_path, scheduler=name, **absent)


def test_a_scheduler_that_does_not_fit_the_model_is_refused() -> None:
    for name in ("flow-euler", "nonsense"):
        with pytest.raises(InputError, match="scheduler"):
            load_for_planning("demo", scheduler=name)
    for name in sorted(SCHEDULERS.keys() - {"flow-euler"}):
        pipe = load_pipeline("demo", scheduler=name, unet=None, vae=None, text_encoder=None)
        assert type(pipe.scheduler).__name__ == SCHEDULERS[name][0]
        assert pipe.scheduler.config.prediction_type == "v_prediction"


# -- the pipelines' own defaults -------------------------------------------------------------------


@pytest.mark.parametrize("negative", [False, True], ids=["alone", "with a negative prompt"])
@pytest.mark.parametrize("family", sorted(RECIPES))
def test_the_planned_cost_is_the_cost_run_with_the_pipelines_own_scales(family: str, negative: bool) -> None:
    """Nobody names a scale: the plan must know what the pipeline then does."""
    case = tiny(family)
    takes = inspect.signature(type(case.pipe).__call__).parameters
    # all but those guide by an empty prompt too, which the recipes have no embedding of
    scales = ("guidance_scale", "true_cfg_scale")
    inputs = case.recipe.inputs([7, 8], negative or "true_cfg_scale" not in takes)
    inputs = {name: value for name, value in inputs.items() if name not in scales}
    basis = cost_basis(
        case.pipe, type(case.denoiser).__name__, 4, default_guidance(type(case.pipe)), has_negative=negative
    )
    plan = SharePlan.from_groups([[0], [1]], 4, 0.0)
    with shared_sampling(case.pipe, plan) as run:
        case.pipe(
            **{"height": 16, "width": 16, "output_type": "latent", **inputs},
            num_inference_steps=4, generator=plan.generators(0),
        )  # fmt: skip
    assert basis.of(plan).evaluations == run.evaluations


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_unet_that_takes_the_scale_as_an_input_has_no_second_row(tmp_path: Path, scale: float) -> None:
    """LCM's; also where only its configuration is there."""
    case = tiny("sd")
    parts = {name: part for name, part in case.pipe.components.items() if name != "unet"}
    config = {name: value for name, value in case.denoiser.config.items() if not name.startswith("_")}
    unet = diffusers.UNet2DConditionModel(**config | {"time_cond_proj_dim": 8}).eval()
    case.pipe = diffusers.StableDiffusionPipeline(**parts, unet=unet, requires_safety_checker=False)
    plan = SharePlan.from_groups([[0, 1]], 4, 0.5, shared_guidance=1.0)
    with shared_sampling(case.pipe, plan) as run:
        case([7, 8], 4, plan.generators(0), guidance_scale=scale)
    assert (
        cost_basis(case.pipe, "UNet2DConditionModel", 4, scale).of(plan).evaluations == run.evaluations == 6
    )
    unet.save_config(tmp_path / "unet")
    light = diffusers.StableDiffusionPipeline(**parts, unet=None, requires_safety_checker=False)
    light.register_to_config(_name_or_path=str(tmp_path))
    assert cost_basis(light, "UNet2DConditionModel", 4, scale).of(plan).evaluations == 6


def test_a_negative_prompt_is_what_guides_by_a_true_scale() -> None:
    pipe = tiny("qwen-image").pipe
    for given, rows in (
        ({}, 1),
        ({"has_negative": True}, 2),
        ({"true_cfg_scale": 1.0, "has_negative": True}, 1),
    ):
        plan = plan_prompts(
            ["a", "b"], POLICY, pipe, "QwenImageTransformer2DModel", 4, 1.0, encoder=letters, **given
        )
        assert plan.rows_per_prompt == rows
    asked = [ImageRequest("a", negative_prompt="c"), ImageRequest("b", negative_prompt="c")]
    assert (
        plan_prompts(
            asked, POLICY, pipe, "QwenImageTransformer2DModel", 4, 1.0, encoder=letters
        ).rows_per_prompt
        == 2
    )


@pytest.mark.parametrize("given", ["negative_prompt", "negative_prompt_2", "negative_prompt_embeds", "both"])
def test_the_sampler_counts_as_negative_what_the_pipeline_does(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """FLUX guides by a negative prompt, or by both of its embeddings; else the scale is of no use."""
    pipe = tiny("flux").pipe
    embeds = {
        "negative_prompt_embeds": torch.zeros(1, 3, 16),
        "negative_pooled_prompt_embeds": torch.zeros(1, 16),
    }
    keywords = embeds if given == "both" else {given: embeds.get(given, "blurry")}
    sampler = SharedSampler(pipe, POLICY, encoder=letters)
    rows: list[int] = []

    def look(prompts: Any, plan: SharePlan, *more: Any) -> None:
        rows.append(plan.rows_per_prompt)
        raise InputError("enough")

    monkeypatch.setattr(sampler, "check", look)
    with pytest.raises(InputError, match="enough"):
        sampler(["a", "b"], 4, 3.5, true_cfg_scale=4.0, **keywords)
    assert rows == [2 if given in ("negative_prompt", "both") else 1]
