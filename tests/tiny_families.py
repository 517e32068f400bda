"""Tiny pipelines of further families (`tiny.py` has the first four), without autoencoders where they can do so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)
from tiny_parts import TOKENS, WIDTH, Recipe, embeddings, masked

NO_TEXT: dict[str, Any] = {"text_encoder": None, "tokenizer": None}


def _plain(prompts: Sequence[int], guided: bool, **options: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"prompt_embeds": embeddings(prompts, TOKENS)}
    if guided:
        inputs["negative_prompt_embeds"] = embeddings([-1] * len(prompts), TOKENS)
    return inputs | {"guidance_scale": 4.0 if guided else 1.0} | options


def _masked(prompts: Sequence[int], guided: bool, **options: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = masked(prompts)
    if guided:
        inputs |= masked([-1] * len(prompts), "negative_")
    return inputs | {"guidance_scale": 4.0 if guided else 1.0} | options


# -- FLUX.2 ----------------------------------------------------------------------------------------


def _flux2_transformer(guidance_embeds: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    ).eval()


def _flux2(scheduler: Any) -> Any:
    return Flux2Pipeline(scheduler=scheduler, vae=None, transformer=_flux2_transformer(True), **NO_TEXT)


def _flux2_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Never guided by negative rows: the scale is an input of the model."""
    return {"prompt_embeds": embeddings(prompts, TOKENS), "guidance_scale": 3.5, "height": 32, "width": 32}


def _flux2_klein(scheduler: Any) -> Any:
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    return Flux2KleinPipeline(scheduler=scheduler, vae=vae, transformer=_flux2_transformer(False), **NO_TEXT)


# -- PixArt and Sana -------------------------------------------------------------------------------


def _pixart_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return _masked(prompts, guided, negative_prompt=None, use_resolution_binning=False)


def _pixart(pipeline: Any, scheduler: Any, sample_size: int) -> Any:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,  # the pipeline throws the second half away: a predicted variance
        num_layers=1,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        sample_size=sample_size,
    ).eval()
    return pipeline(scheduler=scheduler, vae=None, transformer=transformer, **NO_TEXT)


def _pixart_alpha(scheduler: Any) -> Any:
    return _pixart(PixArtAlphaPipeline, scheduler, 128)  # 128 is the size that is told resolutions


def _pixart_sigma(scheduler: Any) -> Any:
    return _pixart(PixArtSigmaPipeline, scheduler, 8)


def _sana(scheduler: Any) -> Any:
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
    ).eval()
    return SanaPipeline(scheduler=scheduler, vae=None, transformer=transformer, **NO_TEXT)


def _sana_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return _masked(prompts, guided, negative_prompt=None, use_resolution_binning=False, height=64, width=64)


RECIPES: dict[str, Recipe] = {
    "flux2": Recipe(_flux2, _flux2_inputs, lambda transformer: transformer.x_embedder),
    "flux2-klein": Recipe(_flux2_klein, _plain, lambda transformer: transformer.x_embedder),
    "pixart-alpha": Recipe(
        _pixart_alpha,
        _pixart_inputs,
        lambda transformer: transformer.pos_embed.proj,
        ("dpmpp_2m",),
        words=("encoder_hidden_states",),
    ),
    "pixart-sigma": Recipe(
        _pixart_sigma,
        _pixart_inputs,
        lambda transformer: transformer.pos_embed.proj,
        ("dpmpp_2m", "euler_a"),
        words=("encoder_hidden_states",),
    ),
    "sana": Recipe(
        _sana,
        _sana_inputs,
        lambda transformer: transformer.patch_embed.proj,
        ("dpmpp_flow", "flow"),
        words=("encoder_hidden_states",),
    ),
}
