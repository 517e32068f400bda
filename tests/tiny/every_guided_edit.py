"""Tiny pipelines of `every_edit.py` in classes with perturbed-attention guidance, and further ControlNets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline
from diffusers.pipelines.pag.pipeline_pag_kolors import KolorsPAGPipeline

import tiny
from tiny.every_control import CONTROLLED
from tiny.every_edit import EDITS, HALF, configured, image, mask, turned
from tiny.every_edit_transformers import TRANSFORMER_EDITS
from tiny.every_image import filled
from tiny.parts import Recipe


def _perturbed(pipeline: Any, recipe: Recipe, layers: str = "mid") -> Recipe:
    """Guided by three parts."""
    return turned(
        pipeline,
        recipe,
        lambda prompts: {},
        lambda pipe: {"pag_applied_layers": [layers], "add_watermarker": False},
        rows=(None, 3),
    )


def _controlled(pipeline: Any, of: str, *more: str, size: int = 16) -> Recipe:
    """A ControlNet pipeline that begins from an image as well."""

    def inputs(prompts: Sequence[int]) -> Mapping[str, Any]:
        found: dict[str, Any] = {"image": image(prompts, size=size), **HALF}
        return found | ({"mask_image": mask(prompts, size)} if "mask" in more else {})

    return turned(pipeline, CONTROLLED[of], inputs, rows=(1, None))


def _adapter() -> Any:
    return diffusers.T2IAdapter(channels=[8], num_res_blocks=1, downscale_factor=4).eval()


GUIDED_EDITS: dict[str, Recipe] = {
    "KolorsPAGPipeline": _perturbed(
        KolorsPAGPipeline, turned(KolorsPipeline, tiny.RECIPES["sdxl"], lambda prompts: {})
    ),
    "StableDiffusionPAGImg2ImgPipeline": _perturbed(
        diffusers.StableDiffusionPAGImg2ImgPipeline, EDITS["StableDiffusionImg2ImgPipeline"]
    ),
    "StableDiffusionPAGInpaintPipeline": _perturbed(
        diffusers.StableDiffusionPAGInpaintPipeline, EDITS["StableDiffusionInpaintPipeline"]
    ),
    "StableDiffusionControlNetPAGPipeline": _perturbed(
        diffusers.StableDiffusionControlNetPAGPipeline, EDITS["StableDiffusionControlNetPipeline"]
    ),
    "StableDiffusionControlNetPAGInpaintPipeline": _perturbed(
        diffusers.StableDiffusionControlNetPAGInpaintPipeline,
        EDITS["StableDiffusionControlNetInpaintPipeline"],
    ),
    "StableDiffusionXLPAGImg2ImgPipeline": _perturbed(
        diffusers.StableDiffusionXLPAGImg2ImgPipeline, EDITS["StableDiffusionXLImg2ImgPipeline"]
    ),
    "StableDiffusionXLPAGInpaintPipeline": _perturbed(
        diffusers.StableDiffusionXLPAGInpaintPipeline, EDITS["StableDiffusionXLInpaintPipeline"]
    ),
    "StableDiffusionXLControlNetPAGPipeline": _perturbed(
        diffusers.StableDiffusionXLControlNetPAGPipeline, EDITS["StableDiffusionXLControlNetPipeline"]
    ),
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": _perturbed(
        diffusers.StableDiffusionXLControlNetPAGImg2ImgPipeline,
        EDITS["StableDiffusionXLControlNetImg2ImgPipeline"],
    ),
    "StableDiffusion3PAGImg2ImgPipeline": _perturbed(
        diffusers.StableDiffusion3PAGImg2ImgPipeline,
        TRANSFORMER_EDITS["StableDiffusion3Img2ImgPipeline"],
        "transformer_blocks.0",
    ),
    "StableDiffusion3ControlNetInpaintingPipeline": turned(
        diffusers.StableDiffusion3ControlNetInpaintingPipeline,
        CONTROLLED["StableDiffusion3ControlNetPipeline"],
        lambda prompts: {"control_image": image(prompts[:1]), "control_mask": mask(prompts[:1])},
        lambda pipe: {"controlnet": filled(configured(pipe.controlnet, extra_conditioning_channels=1))},
    ),
    "StableDiffusionXLAdapterPipeline": turned(
        diffusers.StableDiffusionXLAdapterPipeline,
        tiny.RECIPES["sdxl"],
        lambda prompts: {"image": image(prompts)},
        lambda pipe: {"adapter": _adapter()},
    ),
    "FluxControlNetImg2ImgPipeline": _controlled(
        diffusers.FluxControlNetImg2ImgPipeline, "FluxControlNetPipeline"
    ),
    "FluxControlNetInpaintPipeline": _controlled(
        diffusers.FluxControlNetInpaintPipeline, "FluxControlNetPipeline", "mask"
    ),
}
