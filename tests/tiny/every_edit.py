"""Tiny pipelines that begin from an image, or are steered by one, on U-Nets: the parts of other recipes, other classes.

Their inputs are images of the sizes of those recipes; a strength leaves `STEPS` of the steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import tiny
from tiny.every_image import filled, texts
from tiny.parts import SCHEDULERS, TOKENS, WIDTH, Recipe, embeddings, masks

STEPS = 4  # of the sweep
HALF: Mapping[str, Any] = {"strength": 0.5, "num_inference_steps": 2 * STEPS}

More = Callable[[Sequence[int]], Mapping[str, Any]]
"""Further inputs for prompts."""


def image(prompts: Sequence[int], channels: int = 3, size: int = 16, seed: int = 0) -> torch.Tensor:
    """(N, channels, size, size) in [0, 1]: one image, for every prompt."""
    made = torch.rand(channels, size, size, generator=torch.Generator().manual_seed(seed))
    return made.expand(len(prompts), -1, -1, -1).clone()


def mask(prompts: Sequence[int], size: int = 16) -> torch.Tensor:
    """(N, 1, size, size): the upper half is painted anew."""
    half = torch.zeros(len(prompts), 1, size, size)
    half[:, :, : size // 2] = 1
    return half


def of_class(pipeline: Any, parts: Mapping[str, Any]) -> Any:
    """A pipeline of those parts that it takes; None in place of those that it needs and are not there."""
    taken = list(inspect.signature(pipeline.__init__).parameters.values())[1:]
    needed = {each.name: None for each in taken if each.default is inspect.Parameter.empty}
    named = {each.name for each in taken}
    return pipeline(**needed | {name: part for name, part in parts.items() if name in named})


def configured(model: Any, **changed: Any) -> Any:
    """A new model of the same configuration, but for what is changed."""
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    return type(model)(**config | changed).eval()


def turned(
    pipeline: Any,
    recipe: Recipe,
    more: More,
    parts: Callable[[Any], Mapping[str, Any]] = lambda pipe: {},
    **changed: Any,
) -> Recipe:
    """The recipe of another pipeline class with the same parts and prompts.

    Args:
        more: further inputs.
        parts: further parts, of the pipeline that `recipe` builds.
        changed: fields of the recipe.
    """

    def build(scheduler: Any) -> Any:
        pipe = recipe.build(scheduler)
        return of_class(pipeline, {**pipe.components, "requires_safety_checker": False, **parts(pipe)})

    def inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
        taken = inspect.signature(pipeline.__call__).parameters
        given = {name: value for name, value in recipe.inputs(prompts, guided).items() if name in taken}
        return given | dict(more(prompts))

    fields = {name: getattr(recipe, name) for name in ("counted", "words", "rows")}
    if recipe.rows[1] is not None:  # unguided runs are those of the class that it is turned from
        fields["rows"] = (None, recipe.rows[1])
    return Recipe(
        **({"build": build, "inputs": inputs, "schedulers": recipe.schedulers[:1]} | fields | changed)
    )


# -- Stable Diffusion, SDXL ------------------------------------------------------------------------


def _from_image(prompts: Sequence[int]) -> dict[str, Any]:
    return {"image": image(prompts), **HALF}


def _inpainted(prompts: Sequence[int]) -> dict[str, Any]:
    return _from_image(prompts) | {"mask_image": mask(prompts)}


def _unet_of(channels: int, **options: Any) -> Callable[[Any], Mapping[str, Any]]:
    """A U-Net that reads more channels than the latents have."""

    def parts(pipe: Any) -> Mapping[str, Any]:
        return {"unet": configured(pipe.unet, in_channels=channels, **options)}

    return parts


def _controlnet(pipe: Any) -> Mapping[str, Any]:
    net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8))
    return {"controlnet": filled(net.eval())}


def _union(pipe: Any) -> Mapping[str, Any]:
    net = diffusers.ControlNetUnionModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8))
    return {"controlnet": filled(configured(net, num_trans_channel=8, num_proj_channel=8, num_trans_head=2))}


def _controlled(prompts: Sequence[int]) -> dict[str, Any]:
    return {"image": image(prompts, seed=1)}


def _control_image(prompts: Sequence[int]) -> dict[str, Any]:
    return {"control_image": image(prompts, seed=1)}


_SD, _SDXL = tiny.RECIPES["sd"], tiny.RECIPES["sdxl"]

# -- unCLIP: an image embedding, with noise, goes in as the class ------------------------------------


def _unclip(pipe: Any) -> Mapping[str, Any]:
    classes = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * WIDTH}
    return {
        "unet": configured(pipe.unet, **classes),
        "image_normalizer": StableUnCLIPImageNormalizer(WIDTH),
        "image_noising_scheduler": SCHEDULERS["ddpm"](),
    }


def _seeing() -> Any:
    """Asked for its precision only: image embeddings are given."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, image_size=8, patch_size=4))


def _of_prior(scheduler: Any) -> Any:
    """With a prior of its own, which takes its steps per prompt; its texts are numbers."""

    def read_for_prior(prompt: Sequence[str], *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
        numbers = [-1] * len(prompt) + [int(text) for text in prompt]
        return embeddings(numbers), embeddings(numbers, TOKENS), masks(numbers)

    def read(prompt: Sequence[str], *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = [int(text) for text in prompt]
        return embeddings(numbers, TOKENS), embeddings([-1] * len(numbers), TOKENS)

    pipe = _SD.build(scheduler)
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=WIDTH, num_embeddings=TOKENS
    ).eval()
    parts = {"prior": prior, "prior_scheduler": diffusers.UnCLIPScheduler(prediction_type="sample")}
    made = of_class(diffusers.StableUnCLIPPipeline, {**pipe.components, **_unclip(pipe), **parts})
    made._encode_prior_prompt, made.encode_prompt = read_for_prior, read
    return made


def _of_texts(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return {**texts(prompts, guided), "prior_num_inference_steps": 2, "noise_level": 3}


EDITS: dict[str, Recipe] = {
    "StableDiffusionImg2ImgPipeline": turned(diffusers.StableDiffusionImg2ImgPipeline, _SD, _from_image),
    "StableDiffusionInpaintPipeline": turned(diffusers.StableDiffusionInpaintPipeline, _SD, _inpainted),
    "StableDiffusionInpaintPipeline, 9 channels": turned(
        diffusers.StableDiffusionInpaintPipeline, _SD, _inpainted, _unet_of(9)
    ),
    "StableDiffusionDepth2ImgPipeline": turned(
        diffusers.StableDiffusionDepth2ImgPipeline,
        _SD,
        lambda prompts: _from_image(prompts) | {"depth_map": image(prompts, 1)[:, 0]},
        _unet_of(5),
    ),
    "StableDiffusionUpscalePipeline": turned(
        diffusers.StableDiffusionUpscalePipeline,
        _SD,
        lambda prompts: {"image": image(prompts, size=8), "noise_level": 3},
        lambda pipe: {
            **_unet_of(7, num_class_embeds=10)(pipe),
            "low_res_scheduler": SCHEDULERS["ddpm"](),
        },
    ),
    "StableDiffusionControlNetPipeline": turned(
        diffusers.StableDiffusionControlNetPipeline, _SD, _controlled, _controlnet
    ),
    "StableDiffusionControlNetImg2ImgPipeline": turned(
        diffusers.StableDiffusionControlNetImg2ImgPipeline,
        _SD,
        lambda prompts: _from_image(prompts) | _control_image(prompts),
        _controlnet,
    ),
    "StableDiffusionControlNetInpaintPipeline": turned(
        diffusers.StableDiffusionControlNetInpaintPipeline,
        _SD,
        lambda prompts: _inpainted(prompts) | _control_image(prompts),
        _controlnet,
    ),
    "StableDiffusionXLImg2ImgPipeline": turned(
        diffusers.StableDiffusionXLImg2ImgPipeline,
        _SDXL,
        _from_image,
        lambda pipe: {"add_watermarker": False},
    ),
    "StableDiffusionXLInpaintPipeline": turned(
        diffusers.StableDiffusionXLInpaintPipeline, _SDXL, _inpainted, lambda pipe: {"add_watermarker": False}
    ),
    "StableDiffusionXLControlNetPipeline": turned(
        diffusers.StableDiffusionXLControlNetPipeline,
        _SDXL,
        _controlled,
        lambda pipe: {**_controlnet(pipe), "add_watermarker": False},
    ),
    "StableDiffusionXLControlNetImg2ImgPipeline": turned(
        diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
        _SDXL,
        lambda prompts: _from_image(prompts) | _control_image(prompts),
        lambda pipe: {**_controlnet(pipe), "add_watermarker": False},
    ),
    "StableDiffusionXLControlNetInpaintPipeline": turned(
        diffusers.StableDiffusionXLControlNetInpaintPipeline,
        _SDXL,
        lambda prompts: _inpainted(prompts) | _control_image(prompts),
        lambda pipe: {**_controlnet(pipe), "add_watermarker": False},
    ),
    "StableDiffusionXLControlNetUnionPipeline": turned(
        diffusers.StableDiffusionXLControlNetUnionPipeline,
        _SDXL,
        lambda prompts: {"control_image": [image(prompts, seed=1)], "control_mode": [1]},
        lambda pipe: {**_union(pipe), "add_watermarker": False},
    ),
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": turned(
        diffusers.StableDiffusionXLControlNetUnionImg2ImgPipeline,
        _SDXL,
        lambda prompts: (
            _from_image(prompts) | {"control_image": [image(prompts, seed=1)], "control_mode": [1]}
        ),
        lambda pipe: {**_union(pipe), "add_watermarker": False},
    ),
    "StableDiffusionXLControlNetUnionInpaintPipeline": turned(
        diffusers.StableDiffusionXLControlNetUnionInpaintPipeline,
        _SDXL,
        lambda prompts: (
            _inpainted(prompts) | {"control_image": [image(prompts, seed=1)], "control_mode": [1]}
        ),
        lambda pipe: {**_union(pipe), "add_watermarker": False},
    ),
    "LatentConsistencyModelImg2ImgPipeline": turned(
        diffusers.LatentConsistencyModelImg2ImgPipeline,
        _SD,
        lambda prompts: {"image": image(prompts), "guidance_scale": 4.0, "strength": 0.5},
        _unet_of(4, time_cond_proj_dim=8),
        schedulers=("lcm",),
        rows=(1, None),
    ),
    "StableDiffusionLatentUpscalePipeline": turned(
        diffusers.StableDiffusionLatentUpscalePipeline,
        _SDXL,
        lambda prompts: {"image": image(prompts, 4, 4)},
        lambda pipe: {
            "unet": configured(
                _SD.build(None).unet,
                in_channels=8,
                out_channels=5,  # the last one is thrown away
                time_cond_proj_dim=2 * 64 + WIDTH,
            ),
            "scheduler": SCHEDULERS["euler"](),
        },
    ),
    "StableUnCLIPImg2ImgPipeline": turned(
        diffusers.StableUnCLIPImg2ImgPipeline,
        _SD,
        lambda prompts: {"image_embeds": embeddings(prompts), "noise_level": 3},
        lambda pipe: {**_unclip(pipe), "image_encoder": _seeing()},
    ),
    "StableUnCLIPPipeline": Recipe(_of_prior, _of_texts, _SD.counted, ("ddim",), rows=(None, 2)),
}
