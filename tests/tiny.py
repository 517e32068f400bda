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
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HeunDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)

WIDTH = 16  # of token and pooled embeddings
TOKENS = 3

# Milder than Stable Diffusion's: random weights predict no noise, so latents grow by 1 / alpha of the last
# timestep. At 14 (theirs) a bar of 1e-5 would lie below float32's rounding, at 1.7 it does not.
_BETAS: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.002, "beta_schedule": "linear"}
SCHEDULERS: dict[str, Any] = {
    "dpmpp_2m": lambda: DPMSolverMultistepScheduler(**_BETAS),
    "dpmpp_sde": lambda: DPMSolverMultistepScheduler(**_BETAS, algorithm_type="sde-dpmsolver++"),
    "ddim": lambda: DDIMScheduler(**_BETAS, clip_sample=False),
    "euler": lambda: EulerDiscreteScheduler(**_BETAS),
    "euler_a": lambda: EulerAncestralDiscreteScheduler(**_BETAS),
    "heun": lambda: HeunDiscreteScheduler(**_BETAS),
    "unipc": lambda: UniPCMultistepScheduler(**_BETAS),
    "pndm": lambda: PNDMScheduler(**_BETAS, skip_prk_steps=True),
    "pndm_prk": lambda: PNDMScheduler(**_BETAS),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(shift=2.0),
}


@dataclass
class Tiny:
    """A tiny pipeline and how to call it."""

    family: str
    pipe: Any

    @property
    def denoiser(self) -> Any:
        return self.pipe.unet if hasattr(self.pipe, "unet") else self.pipe.transformer

    @property
    def counted(self) -> Any:
        """A submodule whose input has one row for each denoiser row."""
        return {
            "sd": lambda d: d.conv_in,
            "sdxl": lambda d: d.conv_in,
            "sd3": lambda d: d.pos_embed.proj,
            "flux": lambda d: d.x_embedder,
        }[self.family](self.denoiser)

    def __call__(
        self, prompts: Sequence[int], steps: int, generator: Any, guided: bool = True, **kwargs: Any
    ) -> torch.Tensor:
        """Final latents, (N, ...)."""
        inputs: dict[str, Any] = {"prompt_embeds": embeddings(prompts, TOKENS)}
        if self.family != "sd":
            inputs["pooled_prompt_embeds"] = embeddings(prompts)
        if guided:
            negative = [-1] * len(prompts)
            inputs["negative_prompt_embeds"] = embeddings(negative, TOKENS)
            if self.family != "sd":
                inputs["negative_pooled_prompt_embeds"] = embeddings(negative)
        if self.family == "flux":
            inputs |= {"guidance_scale": 3.5, "true_cfg_scale": 4.0 if guided else 1.0}
        else:
            inputs["guidance_scale"] = 4.0 if guided else 1.0
        inputs |= {"height": 16, "width": 16, "output_type": "latent"} | kwargs
        out = self.pipe(num_inference_steps=steps, generator=generator, **inputs)
        return out.images  # type: ignore[no-any-return]


def embeddings(prompts: Sequence[int], tokens: int | None = None) -> torch.Tensor:
    """(N, WIDTH), or (N, tokens, WIDTH): the same for the same number, always."""
    shape = (WIDTH,) if tokens is None else (tokens, WIDTH)
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(p + 1000)) for p in prompts]
    )


def tiny(family: str, scheduler: str | None = None) -> Tiny:
    """A tiny pipeline of "sd", "sdxl", "sd3" or "flux"."""
    torch.manual_seed(0)
    make = SCHEDULERS[scheduler or ("flow" if family in ("sd3", "flux") else "dpmpp_2m")]()
    pipe = {"sd": _sd, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}[family](make)
    pipe.set_progress_bar_config(disable=True)
    return Tiny(family, pipe)


def _vae(channels: int = 4) -> AutoencoderKL:
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
        vae=_vae(),
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
        vae=_vae(),
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
        vae=_vae(),
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
        vae=_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
