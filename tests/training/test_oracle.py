"""The declared conventions, proven without weights: a pipeline's own loop, led by an oracle, must end at x0."""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from tiny import RECIPES, Recipe, tiny
from tiny.every_pipeline import EVERY, pipe_of

from sagediff.denoiser.convention import Time
from sagediff.denoiser.lookup import FAMILIES, denoiser_of, denoisers_of, family_of
from sagediff.errors import UnsupportedPipelineError
from sagediff.training.oracle import prove, run_oracle
from sagediff.training.trainable import TrainableDenoiser

EXACT, WHOLE = (
    1e-5,
    5e-3,
)  # some tell flow's timesteps in whole numbers, or noise levels that lie between the grid's


# what is given beside prompts, and is not trained with
_BESIDE_PROMPTS = {
    "image",
    "images",
    "video",
    "control_image",
    "control_video",
    "image_embeds",
    "reference_images",
}
_SEEN_BY_THE_ORACLE = {"LTXConditionPipeline, of texts", "LatentConsistencyModelPipeline"}


def recipe_of(name: str) -> tuple[Any, Recipe]:
    return (tiny(name).pipe, RECIPES[name]) if name in RECIPES else (pipe_of(name), EVERY[name])


def trainable(pipe: Any, recipe: Recipe) -> TrainableDenoiser:
    """Prompts are numbers in words; the tiny pipelines take embeddings."""

    def inputs(prompts: list[str], guided: bool) -> dict[str, Any]:
        return recipe.inputs([len(prompt) for prompt in prompts], guided or recipe.rows[0] is None)

    size = inputs(["an image"], False)
    return TrainableDenoiser(pipe, size.get("height", 16), size.get("width", 16), inputs)


def refusal(pipe: Any) -> str | None:
    """Why a pipeline cannot be trained, in the words of the error."""
    if len(denoisers_of(pipe)) > 1:
        return "changes to a second one|can be sampled only"
    if family_of(denoiser_of(pipe), pipe).convention is None:
        return "can be sampled only"
    if "strength" in inspect.signature(type(pipe).__call__).parameters:
        return "begins from an image"
    if pipe.scheduler.config.get("prediction_type") == "trigflow":
        return "no prediction type"
    if str(pipe.scheduler.config.get("variance_type", "")).startswith("learned"):
        return "takes the variance"
    return None


# runs that are told to end before the image do not reach it
_REACHING = [name for name in [*RECIPES, *EVERY] if "ends early" not in name]


@pytest.mark.parametrize("name", _REACHING)
def test_the_loop_ends_where_a_perfect_denoiser_leads_it_and_no_other_convention_does(name: str) -> None:
    pipe, recipe = recipe_of(name)
    why = refusal(pipe)
    if why is not None:
        with pytest.raises(UnsupportedPipelineError, match=why):
            trainable(pipe, recipe)
        return
    if name in _SEEN_BY_THE_ORACLE:
        with pytest.raises(UnsupportedPipelineError):
            prove(trainable(pipe, recipe))
        return
    if "Edit" in name or _BESIDE_PROMPTS & set(recipe.inputs([1], recipe.rows[0] is None)):
        with suppress(UnsupportedPipelineError):  # no other error
            prove(trainable(pipe, recipe))
        return
    denoiser = trainable(pipe, recipe)
    bar = EXACT if denoiser.process.sigmas is None and not denoiser.process.told_whole else WHOLE
    for guided in (False, True):
        if recipe.rows[guided] is not None:
            run = run_oracle(denoiser, guided)
            assert run.end < bar and run.as_declared
            assert run.noise_change < 10 * bar or denoiser.process.kind != "flow"
    if "distilled" in name:
        with pytest.raises(UnsupportedPipelineError, match="another `timestep_r` at each step"):
            prove(denoiser)
        return
    prove(denoiser)
    declared, config = denoiser.convention, denoiser.module.config
    denoiser.convention = replace(declared, negated=not declared.negated)
    with pytest.raises(UnsupportedPipelineError, match="not trained"):
        prove(denoiser)
    # another time is seen at the first call already
    timestep = torch.as_tensor(pipe.scheduler.timesteps[:1]).float()
    told = declared.told(timestep, denoiser.train_timesteps, config)
    for time in get_args(Time):
        other = replace(declared, time=time)
        if time == "t - 1" or ("scale" in time and "timestep_scale" not in config):
            continue
        if torch.allclose(other.told(timestep, denoiser.train_timesteps, config), told, rtol=1e-2, atol=1e-2):
            continue
        denoiser.convention = other
        with pytest.raises(UnsupportedPipelineError, match="as declared for that class"):
            denoiser._check(told, timestep[0])


@pytest.mark.parametrize(
    "solver", ["dpmpp_2m", "dpmpp_sde", "ddim", "ddpm", "euler", "euler_a", "heun", "unipc", "pndm"]
)
def test_every_solver_of_a_pipeline_ends_there(solver: str) -> None:
    pipe = tiny("sd", solver).pipe
    run = run_oracle(trainable(pipe, RECIPES["sd"]))
    assert run.end < 0.05 and run.as_declared


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "euler", "dpmpp_2m"])
def test_another_prediction_than_the_scheduler_takes_is_seen(solver: str) -> None:
    pipe = tiny("sd", solver).pipe
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # Stable Diffusion's
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **betas)
    denoiser = trainable(pipe, RECIPES["sd"])
    prove(denoiser)
    for kind in ("v_prediction", "sample"):
        denoiser.process = replace(denoiser.process, kind=kind)
        with pytest.raises(UnsupportedPipelineError, match="not trained"):
            prove(denoiser)


def test_a_solver_that_takes_the_variance_can_be_replaced() -> None:
    case = tiny("kandinsky2.2", "ddim")
    assert run_oracle(trainable(case.pipe, case.recipe)).as_declared
    denoiser = trainable(case.pipe, case.recipe)
    states = torch.randn(2, *denoiser.sample_shape)
    with torch.no_grad():
        read = denoiser(states, torch.tensor([10, 700]), denoiser.conditions(["ab", "abc"]))
    assert read.shape == states.shape  # half of what the denoiser answers


def test_a_family_without_a_convention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        FAMILIES, "SD3Transformer2DModel", replace(FAMILIES["SD3Transformer2DModel"], convention=None)
    )
    with pytest.raises(UnsupportedPipelineError, match="SD3Transformer2DModel can be sampled only"):
        trainable(tiny("sd3").pipe, RECIPES["sd3"])


def test_few_steps_are_trained_on_their_own_timesteps() -> None:
    """What a distilled model was made for: the timesteps of its own short schedule, and no others."""
    pipe = tiny("flux2-klein").pipe
    recipe = RECIPES["flux2-klein"]
    denoiser = TrainableDenoiser(
        pipe, 16, 16, lambda prompts, guided: recipe.inputs([len(prompt) for prompt in prompts], guided), 4
    )
    own = torch.as_tensor(pipe.scheduler.timesteps).float()
    assert len(own) == 4
    drawn = denoiser.process.timesteps(torch.linspace(0, 0.999, 50))
    assert torch.equal(drawn.unique(), own.unique())
    assert run_oracle(denoiser, steps=4).end < EXACT


def test_negative_rows_are_found_where_guidance_has_them() -> None:
    for name in ("sd", "z-image", "qwen-image", "chroma", "wan", "lumina2"):
        case = tiny(name)
        empty = trainable(case.pipe, case.recipe).empty_condition()
        given = case.recipe.inputs([1], True)
        expected = given["negative_prompt_embeds"][0]
        assert empty is not None
        found = empty["cap_feats" if name == "z-image" else "encoder_hidden_states"][0]
        torch.testing.assert_close(found, expected.to(found))
    for name in ("flux", "flux2"):  # guidance is an input of the model
        assert trainable(tiny(name).pipe, RECIPES[name]).empty_condition() is None
