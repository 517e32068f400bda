"""Tiny modular pipelines: their denoising blocks alone, with the transformers of the other pipelines' recipes.

They have neither text encoders nor autoencoders, and take embeddings; `guided` is what their guider says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers import Flux3Transformer2DModel, HunyuanVideo15Transformer3DModel, WanTransformer3DModel

import tiny
from tiny import families, more_families
from tiny.every_image import IMAGES
from tiny.every_video import VIDEOS, hunyuan_15_transformer
from tiny.parts import TOKENS, WIDTH, Recipe, embeddings, louder, masked_inputs, masks


def modular(pipeline: Any, scheduler: Any, **components: Any) -> Any:
    """A modular pipeline of the denoising blocks."""
    blocks = getattr(diffusers, pipeline.default_blocks_name)()
    for name in set(blocks.sub_blocks) - {"denoise"}:
        del blocks.sub_blocks[name]
    pipe = pipeline(blocks)
    pipe.update_components(scheduler=scheduler, **components)
    return pipe


def whole(pipeline: Any, other: Any) -> Any:
    """A modular pipeline of all its blocks, with the components of another pipeline."""
    pipe = pipeline()
    held = {name: part for name, part in other.components.items() if part is not None}
    pipe.update_components(**{name: part for name, part in held.items() if name in pipe.component_names})
    return pipe


def _of(pipeline: Any, recipe: Recipe, **more: Any) -> Any:
    """A modular pipeline with the denoisers of another recipe."""

    def build(scheduler: Any) -> Any:
        other = recipe.build(scheduler)
        parts = {name: getattr(other, name, None) for name in ("unet", "transformer", "transformer_2")}
        return modular(
            pipeline, scheduler, **{name: part for name, part in parts.items() if part is not None}, **more
        )

    return build


def _embedded(recipe: Recipe, *without: str, **more: Any) -> Any:
    """The other recipe's inputs, without its guidance scale: the guider has that."""

    def inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
        given = recipe.inputs(prompts, guided)
        left_out = {"guidance_scale", "true_cfg_scale", *without}
        return {name: value for name, value in given.items() if name not in left_out} | more

    return inputs


# -- FLUX.3 ----------------------------------------------------------------------------------------


def _flux3_transformer(flow_map: bool) -> Flux3Transformer2DModel:
    return Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map=flow_map,
    ).eval()


def _flux3(scheduler: Any) -> Any:
    return modular(diffusers.Flux3ModularPipeline, scheduler, transformer=_flux3_transformer(False))


def _flux3_distilled(scheduler: Any) -> Any:
    return modular(diffusers.Flux3DistilledModularPipeline, scheduler, transformer=_flux3_transformer(True))


def _flux3_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = {"prompt_embeds": embeddings(prompts, TOKENS), "height": 32, "width": 32}
    negative = {"negative_prompt_embeds": embeddings([-1] * len(prompts), TOKENS)}
    return inputs | (negative if guided else {})


# -- those of known classes --------------------------------------------------------------------------


def _pooled(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = {
        "prompt_embeds": embeddings(prompts, TOKENS),
        "pooled_prompt_embeds": embeddings(prompts),
        "height": 16,
        "width": 16,
    }
    negative = [-1] * len(prompts)
    more = {
        "negative_prompt_embeds": embeddings(negative, TOKENS),
        "negative_pooled_prompt_embeds": embeddings(negative),
    }
    return inputs | (more if guided else {})


def _wan_transformer(channels: int = 16, **more: Any) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=8,
        **more,
    ).eval()


_FROM_IMAGE = 16 + 4 + 16  # channels: the video's, a mask's, the image's


def _wan(scheduler: Any) -> Any:
    return modular(diffusers.WanModularPipeline, scheduler, transformer=_wan_transformer())


def _wan_two(scheduler: Any) -> Any:
    transformers = {"transformer": _wan_transformer(), "transformer_2": _wan_transformer()}
    return modular(diffusers.Wan22ModularPipeline, scheduler, **transformers)


def _wan_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Asks for negative embeddings, guided or not."""
    return _embedded(more_families.RECIPES["wan"], height=16, width=16)(prompts, True)


def _wan_from_image(scheduler: Any) -> Any:
    """As Wan 2.1: the image is read by an encoder too."""
    transformer = _wan_transformer(_FROM_IMAGE, image_dim=WIDTH, added_kv_proj_dim=24)
    return modular(diffusers.WanImage2VideoModularPipeline, scheduler, transformer=transformer)


def _wan_two_from_image(scheduler: Any) -> Any:
    names = ("transformer", "transformer_2")
    transformers = {name: _wan_transformer(_FROM_IMAGE) for name in names}
    return modular(diffusers.Wan22Image2VideoModularPipeline, scheduler, **transformers)


def _wan_image_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    image = torch.linspace(-1, 1, 20 * 2 * 2 * 2).reshape(1, 20, 2, 2, 2)
    return _wan_inputs(prompts, guided) | {"image_condition_latents": image}


def _wan_encoded_image_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return _wan_image_inputs(prompts, guided) | {"image_embeds": embeddings([9] * len(prompts), TOKENS)}


def _qwen_edit_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    image = torch.linspace(-1, 1, 4 * 4 * 4).reshape(1, 4, 1, 4, 4)
    return _embedded(more_families.RECIPES["qwen-image"])(prompts, guided) | {"image_latents": image}


def _qwen_edit_plus_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = _qwen_edit_inputs(prompts, guided)
    return inputs | {"image_latents": [inputs["image_latents"], -inputs["image_latents"]]}


def _ltx_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Asks for negative embeddings, guided or not."""
    inputs = masked_inputs(prompts, True, height=64, width=64, num_frames=9)
    del inputs["guidance_scale"]
    return inputs


def _qwen21_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """No token of a prompt is that of an image."""
    none = torch.zeros_like(masks(prompts))
    inputs = _embedded(IMAGES["QwenImage21Pipeline"])(prompts, guided) | {"image_pad_mask": none}
    return inputs | ({"negative_image_pad_mask": none} if guided else {})


def _hunyuan_15(scheduler: Any) -> Any:
    """Without an autoencoder its videos have 32 channels; the image's and a mask come beside."""
    config = dict(hunyuan_15_transformer().config) | {"in_channels": 2 * 32 + 1, "out_channels": 32}
    transformer = HunyuanVideo15Transformer3DModel.from_config(config).eval()
    return modular(diffusers.HunyuanVideo15ModularPipeline, scheduler, transformer=louder(transformer, 2.0))


def _hunyuan_15_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = VIDEOS["HunyuanVideo15Pipeline"].inputs(prompts, guided)
    return inputs | {"batch_size": len(prompts), "height": 32, "width": 32, "num_frames": 5}


MODULAR: dict[str, Recipe] = {
    "StableDiffusionXLModularPipeline": Recipe(
        _of(diffusers.StableDiffusionXLModularPipeline, tiny.RECIPES["sdxl"]),
        _pooled,
        tiny.RECIPES["sdxl"].counted,
        ("euler",),
    ),
    "StableDiffusion3ModularPipeline": Recipe(
        _of(diffusers.StableDiffusion3ModularPipeline, tiny.RECIPES["sd3"]),
        _pooled,
        tiny.RECIPES["sd3"].counted,
    ),
    "FluxModularPipeline": Recipe(
        _of(diffusers.FluxModularPipeline, tiny.RECIPES["flux"]),
        lambda prompts, guided: _pooled(prompts, False),
        tiny.RECIPES["flux"].counted,
        rows=(1, None),
    ),
    "FluxKontextModularPipeline": Recipe(
        _of(diffusers.FluxKontextModularPipeline, tiny.RECIPES["flux"]),
        lambda prompts, guided: _pooled(prompts, False) | {"max_area": 256},
        tiny.RECIPES["flux"].counted,
        rows=(1, None),
    ),
    "Flux2ModularPipeline": Recipe(
        _of(diffusers.Flux2ModularPipeline, families.RECIPES["flux2"]),
        lambda prompts, guided: families.RECIPES["flux2"].inputs(prompts, guided),
        families.RECIPES["flux2"].counted,
        rows=(1, None),
    ),
    "Flux2KleinModularPipeline": Recipe(
        _of(diffusers.Flux2KleinModularPipeline, families.RECIPES["flux2-klein"]),
        lambda prompts, guided: _flux3_inputs(prompts, False),
        families.RECIPES["flux2-klein"].counted,
        rows=(1, None),
    ),
    "Flux2KleinBaseModularPipeline": Recipe(
        _of(diffusers.Flux2KleinBaseModularPipeline, families.RECIPES["flux2-klein"]),
        _flux3_inputs,
        families.RECIPES["flux2-klein"].counted,
    ),
    "Flux3ModularPipeline": Recipe(
        _flux3, _flux3_inputs, lambda transformer: transformer.x_embedders["image"]
    ),
    "Flux3DistilledModularPipeline": Recipe(
        _flux3_distilled, _flux3_inputs, lambda transformer: transformer.x_embedders["image"], rows=(1, None)
    ),
    "QwenImageModularPipeline": Recipe(
        _of(diffusers.QwenImageModularPipeline, more_families.RECIPES["qwen-image"]),
        _embedded(more_families.RECIPES["qwen-image"]),
        more_families.RECIPES["qwen-image"].counted,
    ),
    "QwenImageEditModularPipeline": Recipe(
        _of(diffusers.QwenImageEditModularPipeline, more_families.RECIPES["qwen-image"]),
        _qwen_edit_inputs,
        more_families.RECIPES["qwen-image"].counted,
    ),
    "QwenImageEditPlusModularPipeline": Recipe(
        _of(diffusers.QwenImageEditPlusModularPipeline, more_families.RECIPES["qwen-image"]),
        _qwen_edit_plus_inputs,
        more_families.RECIPES["qwen-image"].counted,
    ),
    "QwenImage21ModularPipeline": Recipe(
        _of(diffusers.QwenImage21ModularPipeline, IMAGES["QwenImage21Pipeline"]),
        _qwen21_inputs,
        IMAGES["QwenImage21Pipeline"].counted,
    ),
    "QwenImage21TurboModularPipeline": Recipe(
        _of(diffusers.QwenImage21TurboModularPipeline, IMAGES["QwenImage21Pipeline"]),
        lambda prompts, guided: _qwen21_inputs(prompts, False),
        IMAGES["QwenImage21Pipeline"].counted,
        rows=(1, None),
    ),
    "Krea2ModularPipeline": Recipe(
        _of(diffusers.Krea2ModularPipeline, IMAGES["Krea2Pipeline"]),
        _embedded(IMAGES["Krea2Pipeline"], height=32, width=32),
        IMAGES["Krea2Pipeline"].counted,
    ),
    "Krea2TurboModularPipeline": Recipe(
        _of(diffusers.Krea2TurboModularPipeline, IMAGES["Krea2Pipeline"]),
        lambda prompts, guided: _embedded(IMAGES["Krea2Pipeline"], height=32, width=32)(prompts, False),
        IMAGES["Krea2Pipeline"].counted,
        rows=(1, None),
    ),
    "ZImageModularPipeline": Recipe(
        _of(diffusers.ZImageModularPipeline, more_families.RECIPES["z-image"]),
        _embedded(more_families.RECIPES["z-image"]),
        more_families.RECIPES["z-image"].counted,
    ),
    "WanModularPipeline": Recipe(
        _wan,
        _wan_inputs,
        more_families.RECIPES["wan"].counted,
        ("unipc_flow",),
    ),
    "Wan22ModularPipeline": Recipe(
        _wan_two,
        _wan_inputs,
        more_families.RECIPES["wan2.2"].counted,
        ("unipc_flow",),
    ),
    "WanImage2VideoModularPipeline": Recipe(
        _wan_from_image, _wan_encoded_image_inputs, more_families.RECIPES["wan"].counted, ("unipc_flow",)
    ),
    "Wan22Image2VideoModularPipeline": Recipe(
        _wan_two_from_image, _wan_image_inputs, more_families.RECIPES["wan"].counted, ("unipc_flow",)
    ),
    "HunyuanVideo15ModularPipeline": Recipe(
        _hunyuan_15, _hunyuan_15_inputs, VIDEOS["HunyuanVideo15Pipeline"].counted
    ),
    "LTXModularPipeline": Recipe(
        _of(diffusers.LTXModularPipeline, more_families.RECIPES["ltx"]),
        _ltx_inputs,
        more_families.RECIPES["ltx"].counted,
    ),
}
