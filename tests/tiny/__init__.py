"""Tiny pipelines of real diffusers classes with random weights; no text encoder, so they take embeddings.

Nothing is downloaded.  `Tiny` knows how to call its pipeline for N prompts, each prompt a number: equal
numbers are equal prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from tiny.families import RECIPES as FURTHER
from tiny.more_families import RECIPES as MORE
from tiny.parts import SCHEDULERS, TOKENS, WIDTH, Recipe, embeddings

__all__ = ["RECIPES", "SCHEDULERS", "TOKENS", "WIDTH", "Recipe", "Tiny", "embeddings", "tiny"]


@dataclass
class Tiny:
    """A tiny pipeline and how to call it."""

    family: str
    pipe: Any
    recipe: Recipe

    @property
    def denoiser(self) -> Any:
        return self.denoisers[0]

    @property
    def denoisers(self) -> list[Any]:
        found = [getattr(self.pipe, name, None) for name in ("unet", "transformer", "transformer_2")]
        return [module for module in found if module is not None]

    @property
    def counted(self) -> list[Any]:
        """Submodules whose input has one row for each denoiser row."""
        return [self.recipe.counted(denoiser) for denoiser in self.denoisers]

    def __call__(
        self, prompts: Sequence[int], steps: int, generator: Any, guided: bool = True, **kwargs: Any
    ) -> torch.Tensor:
        """Final latents, (N, ...)."""
        inputs = {"height": 16, "width": 16, "output_type": "latent", **self.recipe.inputs(prompts, guided)}
        out = self.pipe(num_inference_steps=steps, generator=generator, **(inputs | kwargs))
        latents: torch.Tensor = out.images if hasattr(out, "images") else out.frames
        return latents


def tiny(family: str, scheduler: str | None = None) -> Tiny:
    """The tiny pipeline of a family in `RECIPES`."""
    torch.manual_seed(0)
    recipe = RECIPES[family]
    pipe = recipe.build(SCHEDULERS[scheduler or recipe.schedulers[0]]())
    pipe.set_progress_bar_config(disable=True)
    return Tiny(family, pipe, recipe)


def _inputs(prompts: Sequence[int], guided: bool, pooled: bool = True) -> dict[str, Any]:
    inputs: dict[str, Any] = {"prompt_embeds": embeddings(prompts, TOKENS)}
    negative = [-1] * len(prompts)
    if guided:
        inputs["negative_prompt_embeds"] = embeddings(negative, TOKENS)
    if pooled:
        inputs["pooled_prompt_embeds"] = embeddings(prompts)
    if pooled and guided:
        inputs["negative_pooled_prompt_embeds"] = embeddings(negative)
    return inputs | {"guidance_scale": 4.0 if guided else 1.0}


def _sd_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return _inputs(prompts, guided, pooled=False)


def _flux_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return _inputs(prompts, guided) | {"guidance_scale": 3.5, "true_cfg_scale": 4.0 if guided else 1.0}


def vae(channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        shift_factor=0.0,
    ).eval()


def _unet(**extra: Any) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **extra,
    )
    return unet.eval()


def _sd(scheduler: Any) -> Any:
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        unet=_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(scheduler: Any) -> Any:
    unet = _unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def _sd3(scheduler: Any) -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
        out_channels=4,
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=scheduler,
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _flux(scheduler: Any) -> Any:
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    return FluxPipeline(
        scheduler=scheduler,
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


RECIPES: dict[str, Recipe] = {
    "sd": Recipe(
        _sd,
        _sd_inputs,
        lambda unet: unet.conv_in,
        ("dpmpp_2m", "dpmpp_sde", "ddim", "ddpm", "euler", "euler_a", "heun", "unipc", "pndm", "pndm_prk"),
    ),
    "sdxl": Recipe(
        _sdxl, _inputs, lambda unet: unet.conv_in, ("dpmpp_2m", "euler", "heun", "euler_a", "unipc")
    ),
    "sd3": Recipe(_sd3, _inputs, lambda transformer: transformer.pos_embed.proj),
    "flux": Recipe(_flux, _flux_inputs, lambda transformer: transformer.x_embedder),
    **FURTHER,
    **MORE,
}
