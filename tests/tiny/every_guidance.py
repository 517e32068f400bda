"""Tiny pipelines that guide in other ways than by one negative row at every step: by the name of the class."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import diffusers
import torch
from diffusers import (
    HunyuanDiTPAGPipeline,
    PixArtSigmaPAGPipeline,
    SanaPAGPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPAGPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.pag.pipeline_pag_kolors import (
    KolorsPAGPipeline,  # not exported without sentencepiece
)

from tiny import RECIPES
from tiny.every_edit import EDITS, turned
from tiny.every_edit_transformers import TRANSFORMER_EDITS
from tiny.every_unet import UNETS
from tiny.parts import Recipe

PERTURBED_TOO = (2, 3)  # rows per prompt of perturbed-attention guidance, without and with a negative row
STOPPED_AT = 1  # the step after which `_switched_off` guides no more


def _made(pipeline: Any, family: str, scheduler: Any, **more: Any) -> Any:
    """Another pipeline with the parts of a family's that it takes."""
    parts = RECIPES[family].build(scheduler).components | more
    if parts.get("safety_checker", 0) is None:
        parts["requires_safety_checker"] = False
    wanted = inspect.signature(pipeline).parameters
    return pipeline(**{name: part for name, part in parts.items() if name in wanted})


def _perturbed(pipeline: Any, family: str, layers: str) -> Recipe:
    def build(scheduler: Any) -> Any:
        return _made(pipeline, family, scheduler, pag_applied_layers=[layers])

    return replace(RECIPES[family], build=build, rows=PERTURBED_TOO)


def _reads_images(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same U-Net with the image that is edited beside the latents."""
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    return UNet2DConditionModel(**(config | {"in_channels": 2 * config["in_channels"]})).eval()


def _editing(pipeline: Any, family: str, **more: Any) -> Recipe:
    """One and the same image for all prompts; its latents, as no autoencoder is needed then."""
    recipe = RECIPES[family]

    def build(scheduler: Any) -> Any:
        pipe = _made(pipeline, family, scheduler, **more)
        pipe.register_modules(unet=_reads_images(pipe.unet))
        return pipe

    def inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
        image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).repeat(
            len(prompts), 1, 1, 1
        )
        return recipe.inputs(prompts, guided) | {"image": image}

    return replace(recipe, build=build, inputs=inputs, rows=(1, 3))


def _with(family: str, rows: int = 2, **more: Any) -> Recipe:
    """A family's own pipeline, called with further keywords where it is guided."""
    recipe = RECIPES[family]

    def inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
        return recipe.inputs(prompts, guided) | (more if guided else {})

    return replace(recipe, inputs=inputs, rows=(None, rows))


def _switched_off(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """diffusers' own example of a callback."""
    if step == STOPPED_AT:
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}
    return {}


def _perturbed_too(name: str, recipe: Recipe, layers: str = "mid") -> Recipe:
    """The class of that name with the parts and inputs of a recipe without perturbed attention."""
    own = {"pag_applied_layers": [layers], "add_watermarker": False}
    return turned(getattr(diffusers, name), recipe, lambda prompts: {}, lambda pipe: own, rows=(None, 3))


GUIDANCE: dict[str, Recipe] = {
    **{
        name: _perturbed_too(name, EDITS[name.replace("PAG", "")])
        for name in (
            "StableDiffusionPAGImg2ImgPipeline",
            "StableDiffusionPAGInpaintPipeline",
            "StableDiffusionControlNetPAGPipeline",
            "StableDiffusionControlNetPAGInpaintPipeline",
            "StableDiffusionXLPAGImg2ImgPipeline",
            "StableDiffusionXLPAGInpaintPipeline",
            "StableDiffusionXLControlNetPAGPipeline",
            "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        )
    },
    "StableDiffusion3PAGImg2ImgPipeline": _perturbed_too(
        "StableDiffusion3PAGImg2ImgPipeline",
        TRANSFORMER_EDITS["StableDiffusion3Img2ImgPipeline"],
        "transformer_blocks.0",
    ),
    "KolorsPAGPipeline": turned(
        KolorsPAGPipeline,
        UNETS["KolorsPipeline"],
        lambda prompts: {},
        lambda pipe: {"pag_applied_layers": ["mid"]},
        rows=PERTURBED_TOO,
    ),
    "StableDiffusionPAGPipeline": _perturbed(StableDiffusionPAGPipeline, "sd", "mid"),
    "StableDiffusionXLPAGPipeline": _perturbed(StableDiffusionXLPAGPipeline, "sdxl", "mid"),
    "StableDiffusion3PAGPipeline": _perturbed(StableDiffusion3PAGPipeline, "sd3", "transformer_blocks.0"),
    "PixArtSigmaPAGPipeline": _perturbed(PixArtSigmaPAGPipeline, "pixart-sigma", "blocks.0.attn1"),
    "SanaPAGPipeline": _perturbed(SanaPAGPipeline, "sana", "transformer_blocks.0"),
    "HunyuanDiTPAGPipeline": replace(  # unguided, the pipeline itself fails
        _perturbed(HunyuanDiTPAGPipeline, "hunyuandit", "blocks.1"), rows=(None, 3)
    ),
    "StableDiffusionInstructPix2PixPipeline": _editing(StableDiffusionInstructPix2PixPipeline, "sd"),
    "StableDiffusionXLInstructPix2PixPipeline": _editing(
        StableDiffusionXLInstructPix2PixPipeline, "sdxl", add_watermarker=False
    ),
    "StableDiffusion3Pipeline, skip layers at some steps": _with(
        "sd3", 3, skip_guidance_layers=[1], skip_layer_guidance_start=0.01, skip_layer_guidance_stop=0.6
    ),
    "StableDiffusionPipeline, guidance switched off by a callback": _with(
        "sd", callback_on_step_end=_switched_off, callback_on_step_end_tensor_inputs=["prompt_embeds"]
    ),
    "StableDiffusionXLPipeline, ends early": _with("sdxl", denoising_end=0.7),
    "Lumina2Pipeline, truncated": _with("lumina2", cfg_trunc_ratio=0.5),
    "ZImagePipeline, truncated": _with("z-image", cfg_truncation=0.5),
}
