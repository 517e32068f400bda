"""Tiny pipelines of the families that take lists, image embeddings or videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    KandinskyV22Pipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    UNet2DConditionModel,
    VQModel,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from tiny.parts import (
    NO_TEXT,
    TOKENS,
    WIDTH,
    Recipe,
    count_words,
    embeddings,
    masked_inputs,
    masks,
    padded,
)

# -- Qwen-Image, Z-Image, Kandinsky 2.2 --------------------------------------------------------------


def _qwen_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs: dict[str, Any] = {"prompt_embeds": padded(prompts, 9.0), "prompt_embeds_mask": masks(prompts)}
    if guided:
        negative = [-1] * len(prompts)
        inputs |= {
            "negative_prompt_embeds": padded(negative, 9.0),
            "negative_prompt_embeds_mask": masks(negative),
        }
    return inputs | {"true_cfg_scale": 4.0 if guided else 1.0, "height": 32, "width": 32}


def _qwen(scheduler: Any) -> Any:
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    return QwenImagePipeline(scheduler=scheduler, vae=None, transformer=transformer, **NO_TEXT)


def _z_image_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Prompts of their own length each. Its guidance counts from 0: 3 is what others call 4."""
    inputs: dict[str, Any] = {
        "prompt_embeds": [embeddings([prompt], TOKENS)[0, : count_words(prompt)] for prompt in prompts]
    }
    if guided:
        inputs["negative_prompt_embeds"] = [embeddings([-1], TOKENS)[0]] * len(prompts)
    return inputs | {"guidance_scale": 3.0 if guided else 0.0, "height": 32, "width": 32}


def _z_image(scheduler: Any) -> Any:
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[128, 8, 8],
    ).eval()
    with torch.no_grad():  # made empty, for weights to be loaded
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    return ZImagePipeline(scheduler=scheduler, vae=None, transformer=transformer, **NO_TEXT)


def _kandinsky_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    negative = embeddings([-1] * len(prompts))
    return {
        "image_embeds": embeddings(prompts),
        "negative_image_embeds": negative,
        "guidance_scale": 4.0 if guided else 1.0,
    }


def _kandinsky(scheduler: Any) -> Any:
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,  # noise and variance
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
    ).eval()
    movq = VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=4)
    return KandinskyV22Pipeline(unet=unet, scheduler=scheduler, movq=movq.eval())


# -- videos ----------------------------------------------------------------------------------------


def _wan_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Padded with zeros, as its text encoding is."""
    inputs: dict[str, Any] = {"prompt_embeds": padded(prompts, 0.0), "num_frames": 5}
    if guided:
        inputs["negative_prompt_embeds"] = padded([-1] * len(prompts), 0.0)
    return inputs | {"guidance_scale": 4.0 if guided else 1.0}


def _wan_transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=8,
    ).eval()


def _wan(scheduler: Any) -> Any:
    return WanPipeline(scheduler=scheduler, vae=None, transformer=_wan_transformer(), **NO_TEXT)


def _wan_two(scheduler: Any) -> Any:
    """As Wan 2.2: a second transformer takes over at low noise."""
    return WanPipeline(
        scheduler=scheduler,
        vae=None,
        transformer=_wan_transformer(),
        transformer_2=_wan_transformer(),
        boundary_ratio=0.7,
        **NO_TEXT,
    )


def _wan_tokens(scheduler: Any) -> Any:
    """As Wan 2.2 5B: a timestep for every token."""
    transformer = _wan_transformer()
    return WanPipeline(
        scheduler=scheduler, vae=None, transformer=transformer, expand_timesteps=True, **NO_TEXT
    )


def _ltx_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return masked_inputs(prompts, guided, height=64, width=64, num_frames=9)


def _ltx(scheduler: Any) -> Any:
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=WIDTH,
    ).eval()
    return LTXPipeline(scheduler=scheduler, vae=None, transformer=transformer, **NO_TEXT)


RECIPES: dict[str, Recipe] = {
    "qwen-image": Recipe(
        _qwen, _qwen_inputs, lambda transformer: transformer.img_in, words=("encoder_hidden_states",)
    ),
    "z-image": Recipe(
        _z_image, _z_image_inputs, lambda transformer: transformer.t_embedder, words=("cap_feats",)
    ),
    "kandinsky2.2": Recipe(
        _kandinsky, _kandinsky_inputs, lambda unet: unet.conv_in, ("ddpm_learned", "ddim")
    ),
    "wan": Recipe(
        _wan,
        _wan_inputs,
        lambda transformer: transformer.patch_embedding,
        ("unipc_flow", "flow"),
        words=("encoder_hidden_states",),
    ),
    "wan2.2": Recipe(
        _wan_two,
        _wan_inputs,
        lambda transformer: transformer.patch_embedding,
        ("unipc_flow",),
        words=("encoder_hidden_states",),
    ),
    "wan2.2-tokens": Recipe(
        _wan_tokens,
        _wan_inputs,
        lambda transformer: transformer.patch_embedding,
        ("unipc_flow",),
        words=("encoder_hidden_states",),
    ),
    "ltx": Recipe(
        _ltx, _ltx_inputs, lambda transformer: transformer.proj_in, words=("encoder_hidden_states",)
    ),
}
