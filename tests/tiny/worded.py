"""Tiny pipelines to be trained: real classes with autoencoders, whose prompts are texts without a text encoder.

A text stands for the number that `number_of` makes of it, and is conditioned on as the recipes condition on numbers.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLQwenImage, AutoencoderKLWan

from tiny import tiny
from tiny.every_pipeline import EVERY
from tiny.parts import SCHEDULERS, Recipe, louder

_ASKED = {
    "height",
    "width",
    "num_frames",
    "guidance_scale",
    "true_cfg_scale",
    "negative_prompt",
    "use_resolution_binning",
}
_MEAN, _STD = [0.1, -0.2, 0.3, 0.0], [1.5, 0.5, 2.0, 1.0]


def number_of(text: str) -> int:
    return zlib.crc32(text.encode()) % 50


def _kl() -> Any:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.4,
        shift_factor=0.2,
    )


def _of_frames(kind: Any) -> Any:
    return kind(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=_MEAN, latents_std=_STD
    )


def _dc() -> Any:
    blocks: dict[str, Any] = {f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")} | {
        f"{side}_layers_per_block": (1, 1) for side in ("encoder", "decoder")
    }
    kinds: dict[str, Any] = {f"{side}_block_types": "ResBlock" for side in ("encoder", "decoder")}
    scales: dict[str, Any] = {f"{side}_qkv_multiscales": ((), ()) for side in ("encoder", "decoder")}
    return AutoencoderDC(
        latent_channels=4, attention_head_dim=4, scaling_factor=0.4, **blocks, **kinds, **scales
    )


def _flux2() -> Any:
    vae = tiny("flux2-klein").pipe.vae
    vae.bn.running_mean.uniform_(-0.5, 0.5)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


# the recipe, its autoencoder, the side of its images in pixels, its solver
_PIPELINES: dict[str, tuple[str, Any, int, str]] = {
    "qwen-image": ("qwen-image", lambda: _of_frames(AutoencoderKLQwenImage), 32, "flow"),
    "z-image": ("z-image", _kl, 16, "flow"),
    "flux2": ("flux2-klein", _flux2, 16, "flow"),
    "krea2": ("Krea2Pipeline", lambda: _of_frames(AutoencoderKLQwenImage), 32, "flow"),
    "wan": ("wan", lambda: _of_frames(AutoencoderKLWan), 16, "unipc_flow"),
    "sana": ("sana", _dc, 32, "dpmpp_flow"),
}
WORDED = tuple(_PIPELINES)


def worded(name: str) -> tuple[Any, int]:
    """A pipeline that takes texts, and the side of its images in pixels."""
    recipe_name, vae, side, solver = _PIPELINES[name]
    torch.manual_seed(0)
    if recipe_name in EVERY:
        recipe = EVERY[recipe_name]
        pipe = recipe.build(SCHEDULERS[solver]())
    else:
        case = tiny(recipe_name, solver)
        pipe, recipe = case.pipe, case.recipe
    parts = dict(pipe.components) | {"vae": vae().eval()}
    options = {
        key: value for key, value in pipe.config.items() if key not in parts and not key.startswith("_")
    }
    pipe = _taking_texts(type(pipe), recipe)(**parts, **options)
    pipe.set_progress_bar_config(disable=True)
    louder(pipe.transformer, 1.5)
    return pipe, side


def _taking_texts(kind: Any, recipe: Recipe) -> Any:
    """The pipeline's class, called with texts."""

    @functools.wraps(kind.__call__)
    def call(self: Any, prompt: Any = None, negative_prompt: Any = None, **options: Any) -> Any:
        inputs = recipe.inputs([number_of(text) for text in prompt], True)
        given = {key: value for key, value in inputs.items() if key not in _ASKED or value is None}
        return kind.__call__(self, **given, **options)

    return type(kind.__name__, (kind,), {"__call__": call})
