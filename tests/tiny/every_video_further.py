"""Tiny pipelines that make videos in sections, or of texts and more than one image; and Cosmos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    Cosmos2_5_PredictBasePipeline,
    Cosmos2VideoToWorldPipeline,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
)
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.models import ConsisIDTransformer3DModel
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline  # without OpenCV

from tiny.every_image import filled
from tiny.every_video import (
    NO_TEXTS,
    hunyuan_15_inputs,
    hunyuan_15_transformer,
    hunyuan_15_vae,
    video_inputs,
    wan_vae,
)
from tiny.every_video_from import cogvideox_vae, each, first, image
from tiny.parts import NO_TEXT, TOKENS, WIDTH, Recipe, embeddings, louder

# -- HunyuanVideo ----------------------------------------------------------------------------------


def _hunyuan_15_image(scheduler: Any) -> Any:
    pipe: Any = HunyuanVideo15ImageToVideoPipeline(
        scheduler=scheduler,
        vae=hunyuan_15_vae(),
        transformer=hunyuan_15_transformer(),
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
        image_encoder=None,
        feature_extractor=None,
        **NO_TEXTS,
    )
    pipe.target_size = 4
    pipe.encode_image = lambda image, batch_size, device, dtype: embeddings([9] * batch_size, TOKENS)
    return pipe


def _hunyuan_15_image_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = hunyuan_15_inputs(prompts, guided) | {"image": image(4)}
    return {name: value for name, value in inputs.items() if name not in ("height", "width")}


# -- ConsisID --------------------------------------------------------------------------------------


def _consisid(scheduler: Any) -> Any:
    transformer = ConsisIDTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=5,
        max_text_seq_length=TOKENS,
        use_rotary_positional_embeddings=True,
    )
    return ConsisIDPipeline(
        scheduler=scheduler, vae=cogvideox_vae(), transformer=louder(transformer.eval(), 2.0), **NO_TEXT
    )


# -- Cosmos ----------------------------------------------------------------------------------------


class Safe(torch.nn.Module):
    """Cosmos does not run without something that looks for what is not safe."""

    device = torch.device("cpu")
    dtype = torch.float32

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def _cosmos(kind: Any) -> Any:
    def build(scheduler: Any) -> Any:
        transformer = CosmosTransformer3DModel(
            in_channels=5,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            mlp_ratio=1.0,
            text_embed_dim=WIDTH,
            adaln_lora_dim=4,
            max_size=(4, 8, 8),
            concat_padding_mask=False,  # resized by torchvision
            extra_pos_embed_type=None,
        )
        if kind is Cosmos2VideoToWorldPipeline:  # it divides by the noise levels
            scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
        return kind(
            scheduler=scheduler,
            vae=wan_vae(),
            transformer=filled(transformer.eval()),
            safety_checker=Safe(),
            **NO_TEXT,
        )

    return build


VIDEOS_FURTHER: dict[str, Recipe] = {
    "HunyuanVideo15ImageToVideoPipeline": Recipe(
        _hunyuan_15_image, _hunyuan_15_image_inputs, first("x_embedder"), rows=(None, 2)
    ),
    "ConsisIDPipeline": Recipe(_consisid, each(video_inputs), first("time_proj"), ("ddim",)),
    "Cosmos2VideoToWorldPipeline": Recipe(
        _cosmos(Cosmos2VideoToWorldPipeline), each(video_inputs), first("patch_embed")
    ),
    "Cosmos2_5_PredictBasePipeline": Recipe(
        _cosmos(Cosmos2_5_PredictBasePipeline), video_inputs, first("patch_embed"), ("unipc_flow",)
    ),
}
