"""Tiny pipelines that make images with a U-Net and are no Stable Diffusion: by the name of the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    IFPipeline,
    KandinskyPipeline,
    LatentConsistencyModelPipeline,
    LDMTextToImagePipeline,
    UNet2DConditionModel,
    VQModel,
)

from tiny.every_image import read, texts
from tiny.parts import NO_TEXT, TOKENS, WIDTH, Recipe, embeddings, plain_inputs
from tiny.prompted import t5


def _unet(**options: Any) -> Any:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(**(settings | options)).eval()


def _if(scheduler: Any) -> Any:
    return IFPipeline(
        unet=_unet(in_channels=3, out_channels=6),  # noise and variance
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
        **NO_TEXT,
    )


def _kandinsky21(scheduler: Any) -> Any:
    unet = _unet(
        out_channels=8,  # noise and variance
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_image_proj",
        addition_embed_type="text_image",
    )
    movq = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, num_vq_embeddings=4).eval()
    pipe: Any = KandinskyPipeline(unet=unet, scheduler=scheduler, movq=movq, **NO_TEXT)

    def encode(
        prompt: Any, device: Any, images_per_prompt: int, guided: bool, negative_prompt: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        both = [*negative_prompt, *prompt] if guided else prompt
        return read(both)[:, 0], read(both), None

    pipe._encode_prompt = encode
    return pipe


def _kandinsky21_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    images = {"image_embeds": embeddings(prompts), "negative_image_embeds": embeddings([-1] * len(prompts))}
    return texts(prompts, guided) | images | {"output_type": "pt"}


def _lcm(scheduler: Any) -> Any:
    return LatentConsistencyModelPipeline(
        unet=_unet(time_cond_proj_dim=8),
        scheduler=scheduler,
        vae=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **NO_TEXT,
    )


def _lcm_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Never guided by negative rows: the scale is an input of the model."""
    return {"prompt_embeds": embeddings(prompts, TOKENS), "guidance_scale": 8.5, "height": 64, "width": 64}


def _ldm(scheduler: Any) -> Any:
    vae = AutoencoderKL(
        block_out_channels=(4, 4),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    text = t5()
    return LDMTextToImagePipeline(
        vqvae=vae, bert=text["text_encoder"], tokenizer=text["tokenizer"], unet=_unet(), scheduler=scheduler
    )


def _ldm_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return texts(prompts, False) | {
        "guidance_scale": 4.0 if guided else 1.0,
        "height": 64,
        "width": 64,
        "output_type": "pt",
    }


UNETS: dict[str, Recipe] = {
    "IFPipeline": Recipe(
        _if,
        lambda prompts, guided: plain_inputs(prompts, guided, output_type="pt"),
        lambda unet: unet.conv_in,
        ("ddpm_learned",),
    ),
    "KandinskyPipeline": Recipe(
        _kandinsky21, _kandinsky21_inputs, lambda unet: unet.conv_in, ("ddpm_learned",), rows=(None, 2)
    ),
    "LDMTextToImagePipeline": Recipe(_ldm, _ldm_inputs, lambda unet: unet.conv_in, ("ddim",)),
    "LatentConsistencyModelPipeline": Recipe(
        _lcm, _lcm_inputs, lambda unet: unet.conv_in, ("lcm",), rows=(1, None)
    ),
}
