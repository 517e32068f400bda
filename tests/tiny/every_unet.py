"""Tiny pipelines that make images with a U-Net and are no Stable Diffusion: by the name of the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    IFPipeline,
    KandinskyCombinedPipeline,
    KandinskyPipeline,
    KandinskyV22CombinedPipeline,
    LatentConsistencyModelPipeline,
    LDMTextToImagePipeline,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline  # not exported without sentencepiece
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tiny import more_families
from tiny.every_image import filled, read, texts, vae
from tiny.parts import NO_TEXT, TOKENS, WIDTH, Recipe, embeddings, plain_inputs
from tiny.prompted import clip, t5


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


def _kandinsky21_parts() -> dict[str, Any]:
    unet = _unet(
        out_channels=8,  # noise and variance
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_image_proj",
        addition_embed_type="text_image",
    )
    movq = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, num_vq_embeddings=4).eval()
    return {"unet": unet, "movq": movq, **NO_TEXT}


def _reading(pipe: Any) -> Any:
    """Kandinsky 2.1, whose text encoder is a class of its own."""

    def encode(
        prompt: Any, device: Any, images_per_prompt: int, guided: bool, negative_prompt: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        both = [*(negative_prompt or ["-1"] * len(prompt)), *prompt] if guided else prompt
        return read(both)[:, 0], read(both), None

    pipe._encode_prompt = encode
    return pipe


def _kandinsky21(scheduler: Any) -> Any:
    return _reading(KandinskyPipeline(scheduler=scheduler, **_kandinsky21_parts()))


def prior_parts() -> dict[str, Any]:
    """What Kandinsky's priors are put together from, of which all but the texts' tokens are random."""
    text, sight = clip(), {"height": 16, "width": 16}
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=WIDTH,
    )
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=WIDTH,
        num_embeddings=text["tokenizer"].model_max_length,
    )
    return {
        "prior": filled(prior.eval()),
        "text_encoder": CLIPTextModelWithProjection(text["text_encoder"].config).eval(),
        "tokenizer": text["tokenizer"],
        "image_encoder": CLIPVisionModelWithProjection(vision).eval(),
        "image_processor": CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=sight),
        "scheduler": UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample"),
    }


def _combined(scheduler: Any) -> Any:
    prior = {f"prior_{name}": part for name, part in prior_parts().items()}
    pipe: Any = KandinskyCombinedPipeline(scheduler=scheduler, **_kandinsky21_parts(), **prior)
    _reading(pipe.decoder_pipe)
    return pipe


def _combined22(scheduler: Any) -> Any:
    decoder = more_families.RECIPES["kandinsky2.2"].build(scheduler)
    prior = {f"prior_{name}": part for name, part in prior_parts().items()}
    return KandinskyV22CombinedPipeline(unet=decoder.unet, scheduler=scheduler, movq=decoder.movq, **prior)


def _combined_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """The prior is not asked for negative prompts: it would draw noise for them from the prompts' generators."""
    return {
        "prompt": [str(prompt) for prompt in prompts],
        "prior_num_inference_steps": 2,
        "guidance_scale": 4.0 if guided else 1.0,
        "output_type": "pt",
    }


def _kandinsky21_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    images = {"image_embeds": embeddings(prompts), "negative_image_embeds": embeddings([-1] * len(prompts))}
    return texts(prompts, guided) | images | {"output_type": "pt"}


def _kolors(scheduler: Any) -> Any:
    unet = _unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
    )
    return KolorsPipeline(unet=unet, scheduler=scheduler, vae=None, **NO_TEXT)


def _kolors_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = plain_inputs(prompts, guided, pooled_prompt_embeds=embeddings(prompts), height=64, width=64)
    if guided:
        inputs["negative_pooled_prompt_embeds"] = embeddings([-1] * len(prompts))
    return inputs


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
    text = t5()
    return LDMTextToImagePipeline(
        vqvae=vae(4, blocks=2),
        bert=text["text_encoder"],
        tokenizer=text["tokenizer"],
        unet=_unet(),
        scheduler=scheduler,
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
    "KandinskyCombinedPipeline": Recipe(
        _combined, _combined_inputs, lambda unet: unet.conv_in, ("ddpm_learned",), rows=(None, 2)
    ),
    "KandinskyV22CombinedPipeline": Recipe(
        _combined22,
        lambda prompts, guided: _combined_inputs(prompts, guided) | {"output_type": "latent"},
        lambda unet: unet.conv_in,
        ("ddpm_learned",),
    ),
    "KolorsPipeline": Recipe(_kolors, _kolors_inputs, lambda unet: unet.conv_in, ("euler",)),
    "KandinskyPipeline": Recipe(
        _kandinsky21, _kandinsky21_inputs, lambda unet: unet.conv_in, ("ddpm_learned",), rows=(None, 2)
    ),
    "LDMTextToImagePipeline": Recipe(_ldm, _ldm_inputs, lambda unet: unet.conv_in, ("ddim",)),
    "LatentConsistencyModelPipeline": Recipe(
        _lcm, _lcm_inputs, lambda unet: unet.conv_in, ("lcm",), rows=(1, None)
    ),
}
