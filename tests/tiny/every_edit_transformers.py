"""Tiny pipelines that begin from an image, or are steered by one, on transformers (`every_edit.py` has the U-Nets)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import diffusers
import torch

import tiny
from tiny.every_edit import HALF, configured, image, mask, turned
from tiny.families import RECIPES as FAMILIES
from tiny.more_families import RECIPES as MORE
from tiny.parts import Recipe

# -- parts -----------------------------------------------------------------------------------------


def _kl_vae(pipe: Any = None) -> Mapping[str, Any]:
    return {"vae": tiny.vae()}


class PooledQwenVae(diffusers.AutoencoderKLQwenImage):
    """Encodes by pooling: its pipelines scale every image to a million pixels."""

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        side = 2 ** len(self.config.temperal_downsample)
        pooled = torch.nn.functional.avg_pool3d(x, (1, side, side))  # (N, 3, 1, height, width)
        return SimpleNamespace(latents=torch.cat([pooled, pooled[:, :1]], dim=1))


def _qwen_vae(levels: int = 1) -> Any:
    return PooledQwenVae(
        base_dim=4,
        z_dim=4,
        dim_mult=[1] * (levels + 1),
        num_res_blocks=1,
        temperal_downsample=[False] * levels,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def _wider(channels: int, out: int = 16) -> Callable[[Any], Mapping[str, Any]]:
    """A transformer that reads more channels than the latents have."""
    return lambda pipe: {
        "transformer": configured(pipe.transformer, in_channels=channels, out_channels=out),
        **_kl_vae(),
    }


def _chroma_parts(pipe: Any) -> Mapping[str, Any]:
    pipe.transformer.register_to_config(guidance_embeds=False)  # as the files of its weights say
    return _kl_vae()


# -- inputs ----------------------------------------------------------------------------------------


def _from_image(prompts: Sequence[int], size: int = 16) -> dict[str, Any]:
    return {"image": image(prompts, size=size), "height": size, "width": size, **HALF}


def _inpainted(prompts: Sequence[int], size: int = 16) -> dict[str, Any]:
    return _from_image(prompts, size) | {"mask_image": mask(prompts, size)}


def _with_control(inputs: Mapping[str, Any], prompts: Sequence[int]) -> dict[str, Any]:
    return {**inputs, "control_image": image(prompts, seed=1)}


def _pil(prompts: Sequence[int]) -> Any:
    return diffusers.image_processor.VaeImageProcessor.numpy_to_pil(
        image(prompts[:1], size=8).permute(0, 2, 3, 1).numpy()
    )[0]


def _kontext(prompts: Sequence[int]) -> dict[str, Any]:
    return {"image": image(prompts), "height": 16, "width": 16, "max_area": 256, "_auto_resize": False}


_FLUX, _SD3 = tiny.RECIPES["flux"], tiny.RECIPES["sd3"]
_UNGUIDED = {"rows": (1, None)}  # the scale is an input of the model
_LARGE = {"height": 1024, "width": 1024}

TRANSFORMER_EDITS: dict[str, Recipe] = {
    "FluxKontextPipeline": turned(diffusers.FluxKontextPipeline, _FLUX, _kontext),
    "FluxKontextInpaintPipeline": turned(
        diffusers.FluxKontextInpaintPipeline,
        _FLUX,
        lambda prompts: _kontext(prompts) | {"mask_image": mask(prompts), **HALF},
    ),
    "FluxFillPipeline": turned(diffusers.FluxFillPipeline, _FLUX, _inpainted, _wider(48), **_UNGUIDED),
    "FluxControlPipeline": turned(
        diffusers.FluxControlPipeline,
        _FLUX,
        lambda prompts: _with_control({}, prompts),
        _wider(32),
        **_UNGUIDED,
    ),
    "FluxControlImg2ImgPipeline": turned(
        diffusers.FluxControlImg2ImgPipeline,
        _FLUX,
        lambda prompts: _with_control(_from_image(prompts), prompts),
        _wider(32),
        **_UNGUIDED,
    ),
    "FluxControlInpaintPipeline": turned(
        diffusers.FluxControlInpaintPipeline,
        _FLUX,
        lambda prompts: _with_control(_inpainted(prompts), prompts),
        _wider(32),
        **_UNGUIDED,
    ),
    "FluxImg2ImgPipeline": turned(diffusers.FluxImg2ImgPipeline, _FLUX, _from_image),
    "FluxInpaintPipeline": turned(diffusers.FluxInpaintPipeline, _FLUX, _inpainted),
    "Flux2KleinInpaintPipeline": turned(
        diffusers.Flux2KleinInpaintPipeline, FAMILIES["flux2-klein"], _inpainted
    ),
    "StableDiffusion3Img2ImgPipeline": turned(diffusers.StableDiffusion3Img2ImgPipeline, _SD3, _from_image),
    "StableDiffusion3InpaintPipeline": turned(
        diffusers.StableDiffusion3InpaintPipeline,
        _SD3,
        _inpainted,
        lambda pipe: {
            "transformer": configured(pipe.transformer, in_channels=16, out_channels=16),
            "vae": tiny.vae(16),
        },
    ),
    "ChromaImg2ImgPipeline": turned(
        diffusers.ChromaImg2ImgPipeline, FAMILIES["chroma"], _from_image, _kl_vae
    ),
    "ChromaInpaintPipeline": turned(
        diffusers.ChromaInpaintPipeline,
        FAMILIES["chroma"],
        _inpainted,
        _chroma_parts,
    ),
    "QwenImageImg2ImgPipeline": turned(
        diffusers.QwenImageImg2ImgPipeline, MORE["qwen-image"], _from_image, lambda pipe: {"vae": _qwen_vae()}
    ),
    "QwenImageInpaintPipeline": turned(
        diffusers.QwenImageInpaintPipeline, MORE["qwen-image"], _inpainted, lambda pipe: {"vae": _qwen_vae()}
    ),
    "QwenImageEditPipeline": turned(
        diffusers.QwenImageEditPipeline,
        MORE["qwen-image"],
        lambda prompts: {"image": _pil(prompts), **_LARGE},
        lambda pipe: {"vae": _qwen_vae(7)},
    ),
    "QwenImageEditInpaintPipeline": turned(
        diffusers.QwenImageEditInpaintPipeline,
        MORE["qwen-image"],
        lambda prompts: {"image": _pil(prompts), "mask_image": mask(prompts[:1], 1024), **_LARGE, **HALF},
        lambda pipe: {"vae": _qwen_vae(7)},
    ),
    "ZImageImg2ImgPipeline": turned(
        diffusers.ZImageImg2ImgPipeline, MORE["z-image"], lambda prompts: _from_image(prompts, 32), _kl_vae
    ),
    "ZImageInpaintPipeline": turned(
        diffusers.ZImageInpaintPipeline, MORE["z-image"], lambda prompts: _inpainted(prompts, 32), _kl_vae
    ),
}
