"""Tiny pipelines called with one negative prompt for all: its embedding has one row, which the model broadcasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffusers import FluxPipeline

from tiny import families, more_families, prompted
from tiny.parts import Recipe


def _one_negative(inputs: Callable[[Sequence[int], bool], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def called(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
        found = inputs(prompts, guided)
        return {name: value[:1] if name.startswith("negative_") else value for name, value in found.items()}

    return called


def _flux_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return {"prompt": [str(prompt) for prompt in prompts], "negative_prompt": "dog", "true_cfg_scale": 4.0}


def _embedded(recipe: Recipe) -> Recipe:
    return Recipe(
        recipe.build, _one_negative(recipe.inputs), recipe.counted, recipe.schedulers[:1], rows=(None, 2)
    )


RECIPES: dict[str, Recipe] = {
    "FluxPipeline, one negative prompt": Recipe(
        lambda scheduler: prompted.flux(FluxPipeline),
        _flux_inputs,
        lambda transformer: transformer.x_embedder,
        rows=(None, 2),
    ),
    "Flux2KleinPipeline, one negative prompt": _embedded(families.RECIPES["flux2-klein"]),
    "QwenImagePipeline, one negative prompt": _embedded(more_families.RECIPES["qwen-image"]),
    "WanPipeline, one negative prompt": _embedded(more_families.RECIPES["wan"]),
}
