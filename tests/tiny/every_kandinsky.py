"""Tiny pipelines that begin from an image, or enlarge one, of Kandinsky, DeepFloyd IF and Kolors; all on U-Nets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers.pipelines.kolors.pipeline_kolors_img2img import KolorsImg2ImgPipeline

import tiny
from tiny.every_edit import HALF, configured, image, mask, of_class, turned
from tiny.every_image import texts
from tiny.every_unet import UNETS
from tiny.parts import SCHEDULERS, TOKENS, Recipe, embeddings

_IF, _OLD, _NEW = UNETS["IFPipeline"], UNETS["KandinskyPipeline"], tiny.RECIPES["kandinsky2.2"]


# -- DeepFloyd IF ----------------------------------------------------------------------------------


def _if_image(prompts: Sequence[int]) -> dict[str, Any]:
    return {"image": image(prompts), **HALF}


def _enlarging(pipe: Any) -> Mapping[str, Any]:
    return {
        "unet": configured(pipe.unet, in_channels=6, num_class_embeds=10),
        "image_noising_scheduler": SCHEDULERS["ddpm"](),
    }


def _small(prompts: Sequence[int]) -> dict[str, Any]:
    return {"image": image(prompts, size=8), "noise_level": 3}


def _small_of(prompts: Sequence[int]) -> dict[str, Any]:
    return {**_small(prompts), "original_image": image(prompts, seed=1), **HALF}


# -- Kandinsky -------------------------------------------------------------------------------------


def _one(prompts: Sequence[int]) -> dict[str, Any]:
    return {"image": image(prompts), **HALF}


def _painted(prompts: Sequence[int]) -> dict[str, Any]:
    return {"image": image(prompts), "mask_image": mask(prompts)}


def _hinted(channels: int) -> Any:
    """Its U-Net embeds the hint in latent space, an eighth of its size."""
    return lambda pipe: {
        "unet": configured(pipe.unet, in_channels=channels, addition_embed_type="image_hint"),
        **_movq(),
    }


def _hint(prompts: Sequence[int]) -> dict[str, Any]:
    return {"hint": image(prompts, size=64, seed=2), "height": 8, "width": 8, "output_type": "pt"}


class _Prior:
    """Stands for a prior: embeddings of each prompt's number, without steps."""

    def __call__(self, prompt: Sequence[str], **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return embeddings([int(text) for text in prompt]), embeddings([-1] * len(prompt))

    def set_progress_bar_config(self, **_: Any) -> None:
        pass


def _movq(pipe: Any = None) -> Mapping[str, Any]:
    movq = diffusers.VQModel(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, num_vq_embeddings=4
    )
    return {"movq": movq.eval()}


def _inpainting(pipe: Any) -> Mapping[str, Any]:
    """Its U-Net reads the mask and the image outside it as well."""
    return {"unet": configured(pipe.unet, in_channels=9), **_movq()}


def _old(pipeline: Any, more: Any, parts: Any = _movq) -> Recipe:
    """Kandinsky 1: its texts are read as `KandinskyPipeline`'s recipe reads them."""
    recipe = turned(pipeline, _OLD, more, parts, schedulers=("ddim",))

    def build(scheduler: Any) -> Any:
        pipe = recipe.build(scheduler)
        pipe._encode_prompt = _OLD.build(scheduler)._encode_prompt
        return pipe

    return dataclasses.replace(recipe, build=build)


def _combined(pipeline: Any, recipe: Recipe, more: Any, **options: Any) -> Recipe:
    """A pipeline of prior and decoder."""

    def build(scheduler: Any) -> Any:
        pipe = turned(pipeline, recipe, more, **options).build(scheduler)
        pipe.prior_pipe = _Prior()
        if "_encode_prompt" in vars(other := recipe.build(scheduler)):
            pipe.decoder_pipe._encode_prompt = other._encode_prompt
        return pipe

    def inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
        return {**texts(prompts, guided), "height": 16, "width": 16, **more(prompts), "output_type": "pt"}

    return Recipe(build, inputs, recipe.counted, ("ddim",), rows=(None, 2))


# -- Kolors ----------------------------------------------------------------------------------------


def _kolors(scheduler: Any) -> Any:
    """It loses pooled embeddings that it is given (diffusers 0.42): its texts are numbers here."""

    def encode(prompt: Sequence[str], negative_prompt: Sequence[str], **_: Any) -> tuple[torch.Tensor, ...]:
        both = [[int(text) for text in texts] for texts in (prompt, negative_prompt)]
        return (*(embeddings(numbers, TOKENS) for numbers in both), *map(embeddings, both))

    pipe = of_class(KolorsImg2ImgPipeline, tiny.RECIPES["sdxl"].build(scheduler).components)
    pipe.encode_prompt = encode
    return pipe


def _kolors_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return {**texts(prompts, guided), "image": image(prompts), **HALF}


KANDINSKY: dict[str, Recipe] = {
    "IFImg2ImgPipeline": turned(diffusers.IFImg2ImgPipeline, _IF, _if_image),
    "IFInpaintingPipeline": turned(
        diffusers.IFInpaintingPipeline,
        _IF,
        lambda prompts: _if_image(prompts) | {"mask_image": mask(prompts)},
    ),
    "IFSuperResolutionPipeline": turned(
        diffusers.IFSuperResolutionPipeline,
        _IF,
        lambda prompts: _small(prompts) | {"height": 16, "width": 16},
        _enlarging,
    ),
    "IFImg2ImgSuperResolutionPipeline": turned(
        diffusers.IFImg2ImgSuperResolutionPipeline, _IF, _small_of, _enlarging
    ),
    "IFInpaintingSuperResolutionPipeline": turned(
        diffusers.IFInpaintingSuperResolutionPipeline,
        _IF,
        lambda prompts: _small_of(prompts) | {"mask_image": mask(prompts)},
        _enlarging,
    ),
    "KolorsImg2ImgPipeline": Recipe(
        _kolors, _kolors_inputs, tiny.RECIPES["sdxl"].counted, ("euler",), rows=(None, 2)
    ),
    "KandinskyImg2ImgPipeline": _old(diffusers.KandinskyImg2ImgPipeline, _one),
    "KandinskyInpaintPipeline": _old(diffusers.KandinskyInpaintPipeline, _painted, _inpainting),
    "KandinskyV22Img2ImgPipeline": turned(
        diffusers.KandinskyV22Img2ImgPipeline, _NEW, _one, _movq, schedulers=("ddim",)
    ),
    "KandinskyV22InpaintPipeline": turned(
        diffusers.KandinskyV22InpaintPipeline,
        _NEW,
        _painted,
        _inpainting,
    ),
    "KandinskyV22ControlnetPipeline": turned(
        diffusers.KandinskyV22ControlnetPipeline, _NEW, _hint, _hinted(8)
    ),
    "KandinskyV22ControlnetImg2ImgPipeline": turned(
        diffusers.KandinskyV22ControlnetImg2ImgPipeline,
        _NEW,
        lambda prompts: {**_hint(prompts), **HALF, "image": image(prompts, size=8)},
        _hinted(8),
        schedulers=("ddim",),
    ),
    "KandinskyImg2ImgCombinedPipeline": _combined(diffusers.KandinskyImg2ImgCombinedPipeline, _OLD, _one),
    "KandinskyInpaintCombinedPipeline": _combined(
        diffusers.KandinskyInpaintCombinedPipeline, _OLD, _painted, parts=_inpainting
    ),
    "KandinskyV22Img2ImgCombinedPipeline": _combined(
        diffusers.KandinskyV22Img2ImgCombinedPipeline, _NEW, _one, parts=_movq
    ),
    "KandinskyV22InpaintCombinedPipeline": _combined(
        diffusers.KandinskyV22InpaintCombinedPipeline,
        _NEW,
        _painted,
        parts=_inpainting,
    ),
}
