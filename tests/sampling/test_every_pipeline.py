"""Every pipeline class that shares: nothing shared, and equal prompts, change no image; and the cost is the plan's."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny.every_pipeline import EVERY, pipe_of
from tiny.parts import Recipe

from sagediff.denoiser.guiders import guiders_of, is_modular
from sagediff.denoiser.lookup import denoisers_of
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling

STEPS = 4
GROUPS = [[0, 2, 3], [1]]
EQUAL = [7, 8, 7, 7]  # the members of each group have the same prompt
DIFFERENT = [3, 4, 5, 6]
TOLERANCE = 1e-5
CASES = [
    pytest.param(name, guided, id=f"{name}-{'guided' if guided else 'unguided'}")
    for name, recipe in EVERY.items()
    for guided in (False, True)
    if recipe.rows[guided] is not None
]


def make_plan(ratio: float) -> SharePlan:
    return SharePlan.from_groups(GROUPS, num_steps=STEPS, share_ratio=ratio)


def final_latents(pipe: Any, recipe: Recipe, prompts: Sequence[int], guided: bool) -> torch.Tensor:
    inputs: dict[str, Any] = {"num_inference_steps": STEPS, "generator": make_plan(0.5).generators(0)}
    if is_modular(pipe):
        set_guidance(pipe, guided)
        latents: Any = pipe(output="latents", **inputs, **recipe.inputs(prompts, guided))
    else:
        taken = inspect.signature(pipe.__call__).parameters
        inputs |= {side: 16 for side in ("height", "width") if side in taken}  # edits have their image's
        out = pipe(**(inputs | {"output_type": "latent"} | recipe.inputs(prompts, guided)))
        latents = next(iter(out.values()))
    if isinstance(latents, list):  # one for each prompt, or all of them for each section of a video
        return torch.stack(latents) if len(latents) == len(prompts) else torch.as_tensor(latents[-1])
    return torch.as_tensor(latents)


def set_guidance(pipe: Any, guided: bool) -> None:
    """The guiders of a modular pipeline guide, or leave the conditional prediction as it is."""
    for name, guider in pipe.components.items():
        if any(guider is each for each in guiders_of(pipe)):
            off = 0.0 if guider.use_original_formulation else 1.0
            setattr(pipe, name, guider.new(guidance_scale=4.0 if guided else off, enabled=True))


@contextmanager
def rows_counted(pipe: Any, recipe: Recipe) -> Iterator[list[int]]:
    """The rows of every call of the denoisers, as a submodule sees them."""
    seen: list[int] = []
    handles = [
        recipe.counted(denoiser).register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(len(args[0] if args else next(iter(kwargs.values())))),
            with_kwargs=True,
        )
        for denoiser in denoisers_of(pipe)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("name", "guided"), CASES)
def test_sharing_is_exact_and_costs_what_is_planned(name: str, guided: bool) -> None:
    recipe = EVERY[name]
    pipe = pipe_of(name)
    assert type(pipe).__name__ == name.partition(",")[0]
    expected = final_latents(pipe, recipe, EQUAL, guided)
    for ratio, prompts in ((0.0, EQUAL), (0.5, EQUAL), (0.5, DIFFERENT)):
        plan = make_plan(ratio)
        with rows_counted(pipe, recipe) as seen, shared_sampling(pipe, plan) as run:
            images = final_latents(pipe, recipe, prompts, guided)
        assert run.evaluations == run.plan.evaluations == sum(seen)
        assert run.plan.rows_per_prompt == recipe.rows[guided]
        assert (run.evaluations < run.plan.evaluations_independent) == (ratio > 0)
        if prompts == EQUAL:
            torch.testing.assert_close(images, expected, rtol=0, atol=TOLERANCE)
        else:  # members part past the branch point: the prompt is heard
            assert not torch.allclose(images[0], images[2], atol=1e-4)
