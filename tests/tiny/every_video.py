"""Tiny pipelines of every class that makes videos of texts (`every_video_from.py`: of images and videos too)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLMagvit,
    AutoencoderKLWan,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
)
from diffusers.guiders import ClassifierFreeGuidance

from tiny.every_image import filled
from tiny.parts import (
    NO_TEXT,
    TOKENS,
    WIDTH,
    Recipe,
    embeddings,
    louder,
    masked,
    masked_inputs,
    masks,
    padded,
    plain_inputs,
)

NO_TEXTS: dict[str, Any] = NO_TEXT | {"text_encoder_2": None, "tokenizer_2": None}

# -- HunyuanVideo ----------------------------------------------------------------------------------


def hunyuan_transformer(**options: Any) -> HunyuanVideoTransformer3DModel:
    transformer = HunyuanVideoTransformer3DModel(
        **{"in_channels": 4, "guidance_embeds": True} | options,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 2, 4),
    )
    return louder(transformer.eval(), 2.0)


def hunyuan_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Guided by negative rows where `true_cfg_scale` says so; `guidance_scale` is an input of the model."""
    inputs: dict[str, Any] = {**masked(prompts), "pooled_prompt_embeds": embeddings(prompts), "num_frames": 5}
    if guided:
        negative = [-1] * len(prompts)
        inputs |= {**masked(negative, "negative_"), "negative_pooled_prompt_embeds": embeddings(negative)}
    return inputs | {"guidance_scale": 6.0, "true_cfg_scale": 4.0 if guided else 1.0}


def _hunyuan(scheduler: Any) -> Any:
    return HunyuanVideoPipeline(scheduler=scheduler, vae=None, transformer=hunyuan_transformer(), **NO_TEXTS)


def hunyuan_15_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Its guider says whether it guides (`_hunyuan_15` has it on): there is no guidance scale to give."""
    inputs: dict[str, Any] = {"num_frames": 2, "height": 4, "width": 4}
    for prefix, whose in ("", prompts), ("negative_", [-1] * len(prompts)):
        for suffix in ("", "_2"):
            inputs[f"{prefix}prompt_embeds{suffix}"] = padded(whose, 9.0)
            inputs[f"{prefix}prompt_embeds_mask{suffix}"] = masks(whose)
    return inputs


def hunyuan_15_transformer() -> HunyuanVideo15Transformer3DModel:
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=5,
        out_channels=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=WIDTH,
        rope_axes_dim=(2, 2, 4),
    )
    return louder(transformer.eval(), 2.0)


def hunyuan_15_vae() -> AutoencoderKLHunyuanVideo15:
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        spatial_compression_ratio=2,
        temporal_compression_ratio=1,
    )
    return vae.eval()


def _hunyuan_15(scheduler: Any) -> Any:
    pipe = HunyuanVideo15Pipeline(
        scheduler=scheduler,
        vae=hunyuan_15_vae(),
        transformer=hunyuan_15_transformer(),
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
        **NO_TEXTS,
    )
    pipe.vision_num_semantic_tokens = 2
    return pipe


# -- CogVideoX, Mochi, SkyReels V2, Sana Video -----------------------------------------------------


def cogvideox_transformer(**options: Any) -> CogVideoXTransformer3DModel:
    transformer = CogVideoXTransformer3DModel(
        **{"in_channels": 4} | options,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=5,
        max_text_seq_length=TOKENS,
        use_rotary_positional_embeddings=True,
    )
    return louder(transformer.eval(), 2.0)


def video_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Prompts of one length."""
    return plain_inputs(prompts, guided, num_frames=5)


def _cogvideox(scheduler: Any) -> Any:
    return CogVideoXPipeline(scheduler=scheduler, vae=None, transformer=cogvideox_transformer(), **NO_TEXT)


def masked_video_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Prompts of their own length each, with masks."""
    return masked_inputs(prompts, guided, num_frames=5)


def _mochi(scheduler: Any) -> Any:
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=8,
        in_channels=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        max_sequence_length=TOKENS,
    )
    with torch.no_grad():  # the model's own start is a field without places
        transformer.pos_frequencies.normal_()
    return MochiPipeline(
        scheduler=scheduler, vae=None, transformer=louder(transformer.eval(), 2.0), **NO_TEXT
    )


def zero_padded_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Padded with zeros, without a mask, as Wan's text encodings are."""
    inputs: dict[str, Any] = {"prompt_embeds": padded(prompts, 0.0), "num_frames": 5}
    if guided:
        inputs["negative_prompt_embeds"] = padded([-1] * len(prompts), 0.0)
    return inputs | {"guidance_scale": 4.0 if guided else 1.0}


def skyreels_transformer(**options: Any) -> SkyReelsV2Transformer3DModel:
    transformer = SkyReelsV2Transformer3DModel(
        **{"in_channels": 4} | options,
        num_attention_heads=2,
        attention_head_dim=12,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=8,
    )
    return transformer.eval()


def _skyreels(scheduler: Any) -> Any:
    return SkyReelsV2Pipeline(scheduler=scheduler, vae=None, transformer=skyreels_transformer(), **NO_TEXT)


def _sana_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return masked_inputs(
        prompts, guided, frames=5, height=32, width=32, negative_prompt=None, use_resolution_binning=False
    )


def sana_video_transformer() -> SanaVideoTransformer3DModel:
    transformer = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        rope_max_seq_len=8,
    )
    return transformer.eval()


def _sana_video(scheduler: Any) -> Any:
    return SanaVideoPipeline(scheduler=scheduler, vae=None, transformer=sana_video_transformer(), **NO_TEXT)


# -- Allegro, Latte, EasyAnimate, Motif-Video, Kandinsky 5, AnyFlow --------------------------------


def _allegro(scheduler: Any) -> Any:
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        sample_width=2,
        sample_height=2,
        sample_frames=2,
    )
    return AllegroPipeline(
        scheduler=scheduler, vae=None, transformer=louder(transformer.eval(), 2.0), **NO_TEXT
    )


def _allegro_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return masked_inputs(prompts, guided, num_frames=5, negative_prompt=None)


def _latte(scheduler: Any) -> Any:
    transformer = LatteTransformer3DModel(
        sample_size=2,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=2,
    )
    return LattePipeline(
        scheduler=scheduler, vae=None, transformer=louder(transformer.eval(), 2.0), **NO_TEXT
    )


def _latte_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Padded with zeros, as it masks its text encodings itself."""
    inputs = zero_padded_inputs(prompts, guided) | {"video_length": 2, "negative_prompt": None}
    del inputs["num_frames"]
    return inputs | {"mask_feature": False}


def magvit_vae() -> AutoencoderKLMagvit:
    vae = AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=[4, 4],
        down_block_types=["SpatialDownBlock3D", "SpatialTemporalDownBlock3D"],
        up_block_types=["SpatialUpBlock3D", "SpatialTemporalUpBlock3D"],
        layers_per_block=1,
        norm_num_groups=2,
    )
    return vae.eval()


def easyanimate_transformer(in_channels: int = 4) -> EasyAnimateTransformer3DModel:
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=4,
        patch_size=2,
        num_layers=1,
        mmdit_layers=1,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        sample_width=4,
        sample_height=4,
    )
    return louder(transformer.eval(), 2.0)


def _easyanimate(scheduler: Any) -> Any:
    return EasyAnimatePipeline(
        scheduler=scheduler, vae=magvit_vae(), transformer=easyanimate_transformer(), **NO_TEXT
    )


def motif_transformer(**options: Any) -> MotifVideoTransformer3DModel:
    transformer = MotifVideoTransformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        text_embed_dim=WIDTH,
        rope_axes_dim=(2, 2, 4),
        **options,
    )
    return louder(transformer.eval(), 2.0)


def wan_vae(channels: int = 4) -> AutoencoderKLWan:
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )
    return vae.eval()


def _motif(scheduler: Any) -> Any:
    return MotifVideoPipeline(
        scheduler=scheduler,
        vae=wan_vae(),
        transformer=motif_transformer(),
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
        **NO_TEXT,
    )


def motif_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Its guider says whether it guides: there is no guidance scale to give."""
    inputs = masked_video_inputs(prompts, guided)
    del inputs["guidance_scale"]
    return inputs


def kandinsky_transformer(**options: Any) -> Kandinsky5Transformer3DModel:
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=8,
        out_visual_dim=4,
        model_dim=16,
        ff_dim=16,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 4, 8),
        visual_cond=True,
        **options,
    )
    return filled(transformer.eval())


def kandinsky_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    lengths = torch.arange(len(prompts) + 1, dtype=torch.int32) * TOKENS
    inputs: dict[str, Any] = {"num_frames": 5, "guidance_scale": 4.0 if guided else 1.0}
    for prefix, whose in ("", prompts), ("negative_", [-1] * len(prompts)):
        if guided or not prefix:
            inputs |= {
                f"{prefix}prompt_embeds_qwen": embeddings(whose, TOKENS),
                f"{prefix}prompt_embeds_clip": embeddings(whose),
                f"{prefix}prompt_cu_seqlens": lengths,
            }
    return inputs


def _kandinsky(scheduler: Any) -> Any:
    return Kandinsky5T2VPipeline(
        scheduler=scheduler, vae=None, transformer=kandinsky_transformer(), **NO_TEXTS
    )


def _anyflow(scheduler: Any) -> Any:
    """Its solver is its own: a step leads from one time to another."""
    transformer = AnyFlowTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=8,
    )
    return AnyFlowPipeline(
        scheduler=FlowMapEulerDiscreteScheduler(shift=2.0),
        vae=None,
        transformer=louder(transformer.eval(), 2.0),
        **NO_TEXT,
    )


VIDEOS: dict[str, Recipe] = {
    "HunyuanVideoPipeline": Recipe(_hunyuan, hunyuan_inputs, lambda transformer: transformer.x_embedder),
    "HunyuanVideo15Pipeline": Recipe(
        _hunyuan_15, hunyuan_15_inputs, lambda transformer: transformer.x_embedder, rows=(None, 2)
    ),
    "CogVideoXPipeline": Recipe(
        _cogvideox, video_inputs, lambda transformer: transformer.time_proj, ("ddim",)
    ),
    "MochiPipeline": Recipe(_mochi, masked_video_inputs, lambda transformer: transformer.time_embed),
    "SkyReelsV2Pipeline": Recipe(
        _skyreels, zero_padded_inputs, lambda transformer: transformer.patch_embedding, ("unipc_flow",)
    ),
    "SanaVideoPipeline": Recipe(
        _sana_video, _sana_inputs, lambda transformer: transformer.patch_embedding, ("dpmpp_flow",)
    ),
    "AllegroPipeline": Recipe(
        _allegro, _allegro_inputs, lambda transformer: transformer.adaln_single, ("euler_a",)
    ),
    "LattePipeline": Recipe(_latte, _latte_inputs, lambda transformer: transformer.adaln_single, ("ddim",)),
    "EasyAnimatePipeline": Recipe(
        _easyanimate, masked_video_inputs, lambda transformer: transformer.time_proj
    ),
    "MotifVideoPipeline": Recipe(
        _motif, motif_inputs, lambda transformer: transformer.x_embedder, rows=(None, 2)
    ),
    "Kandinsky5T2VPipeline": Recipe(
        _kandinsky, kandinsky_inputs, lambda transformer: transformer.visual_embeddings
    ),
    "AnyFlowPipeline": Recipe(_anyflow, zero_padded_inputs, lambda transformer: transformer.patch_embedding),
}
