"""Tiny pipelines of every class that makes videos of texts and an image, or a video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    CogVideoXFunControlPipeline,
    CogVideoXImageToVideoPipeline,
    CogVideoXVideoToVideoPipeline,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideoImageToVideoPipeline,
    Kandinsky5I2VPipeline,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXVideoTransformer3DModel,
    LucyEditPipeline,
    SanaImageToVideoPipeline,
    SkyReelsV2ImageToVideoPipeline,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from PIL import Image

from tiny.every_video import (
    NO_TEXTS,
    cogvideox_transformer,
    hunyuan_inputs,
    hunyuan_transformer,
    kandinsky_inputs,
    kandinsky_transformer,
    sana_video_transformer,
    skyreels_transformer,
    video_inputs,
    wan_vae,
    zero_padded_inputs,
)
from tiny.parts import NO_TEXT, TOKENS, WIDTH, Recipe, embeddings, masked_inputs

NO_IMAGE_READER: dict[str, Any] = {"image_encoder": None, "image_processor": None}
SIZE = 16
Inputs: TypeAlias = Callable[[Sequence[int], bool], dict[str, Any]]


def image(size: int = SIZE) -> Image.Image:
    return Image.linear_gradient("L").resize((size, size)).convert("RGB")


def each(inputs: Inputs, keyword: str = "image", **more: Any) -> Inputs:
    """With an image for each prompt."""
    return lambda prompts, guided: {**inputs(prompts, guided), keyword: [image()] * len(prompts), **more}


def one(inputs: Inputs, keyword: str = "image", **more: Any) -> Inputs:
    """With one image for all prompts."""
    return lambda prompts, guided: {**inputs(prompts, guided), keyword: image(), **more}


def video(inputs: Inputs, keyword: str = "video", frames: int = 5, **more: Any) -> Inputs:
    """With a video for each prompt, as long as those that are made."""

    def of(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
        given = {**inputs(prompts, guided), keyword: [[image()] * frames] * len(prompts), **more}
        return {name: value for name, value in given.items() if value is not None}

    return of


# -- HunyuanVideo, CogVideoX -----------------------------------------------------------------------


def hunyuan_vae() -> AutoencoderKLHunyuanVideo:
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
        mid_block_add_attention=False,
    )
    return vae.eval()


def _hunyuan_image(kind: str) -> Any:
    def build(scheduler: Any) -> Any:
        channels = {"latent_concat": 9, "token_replace": 4}[kind]
        return HunyuanVideoImageToVideoPipeline(
            scheduler=scheduler,
            vae=hunyuan_vae(),
            transformer=hunyuan_transformer(in_channels=channels, image_condition_type=kind),
            image_processor=None,
            **NO_TEXTS,
        )

    return build


def _hunyuan_skyreels(scheduler: Any) -> Any:
    return HunyuanSkyreelsImageToVideoPipeline(
        scheduler=scheduler, vae=hunyuan_vae(), transformer=hunyuan_transformer(in_channels=8), **NO_TEXTS
    )


def cogvideox_vae() -> AutoencoderKLCogVideoX:
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
    )
    return vae.eval()


def _cogvideox(kind: Any, **options: Any) -> Any:
    def build(scheduler: Any) -> Any:
        transformer = cogvideox_transformer(**options)
        return kind(scheduler=scheduler, vae=cogvideox_vae(), transformer=transformer, **NO_TEXT)

    return build


# -- Wan, SkyReels V2, ChronoEdit, Lucy, Sana -----------------------------------------------------


def _wan_transformer(**options: Any) -> WanTransformer3DModel:
    transformer = WanTransformer3DModel(
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


_SEES_IMAGES: dict[str, Any] = {"image_dim": WIDTH, "added_kv_proj_dim": 24}
_CONDITIONED = 4 + 4 + 4  # channels of the latents, of the image's, and of the mask


def _sees(pipe: Any) -> Any:
    """What its encoder of images would give; the pipelines take no image beside such embeddings."""
    pipe.encode_image = lambda image, device=None: embeddings([9], TOKENS)
    return pipe


def _wan_image(scheduler: Any) -> Any:
    """As Wan 2.1: the image is read by an encoder of its own too."""
    pipe = WanImageToVideoPipeline(
        scheduler=scheduler,
        vae=wan_vae(),
        transformer=_wan_transformer(in_channels=_CONDITIONED, **_SEES_IMAGES),
        **NO_IMAGE_READER,
        **NO_TEXT,
    )
    return _sees(pipe)


def _wan_image_two(scheduler: Any) -> Any:
    """As Wan 2.2."""
    return WanImageToVideoPipeline(
        scheduler=scheduler,
        vae=wan_vae(),
        transformer=_wan_transformer(in_channels=_CONDITIONED),
        transformer_2=_wan_transformer(in_channels=_CONDITIONED),
        boundary_ratio=0.7,
        **NO_IMAGE_READER,
        **NO_TEXT,
    )


def _wan_image_tokens(scheduler: Any) -> Any:
    """As Wan 2.2 5B: a timestep for every token."""
    return WanImageToVideoPipeline(
        scheduler=scheduler,
        vae=wan_vae(),
        transformer=_wan_transformer(),
        expand_timesteps=True,
        **NO_IMAGE_READER,
        **NO_TEXT,
    )


def _wan_video(scheduler: Any) -> Any:
    return WanVideoToVideoPipeline(
        scheduler=scheduler, vae=wan_vae(), transformer=_wan_transformer(), **NO_TEXT
    )


def _lucy(scheduler: Any) -> Any:
    return LucyEditPipeline(
        scheduler=scheduler, vae=wan_vae(), transformer=_wan_transformer(in_channels=8), **NO_TEXT
    )


def _skyreels_image(scheduler: Any) -> Any:
    pipe = SkyReelsV2ImageToVideoPipeline(
        scheduler=scheduler,
        vae=wan_vae(),
        transformer=skyreels_transformer(in_channels=_CONDITIONED, **_SEES_IMAGES),
        **NO_IMAGE_READER,
        **NO_TEXT,
    )
    return _sees(pipe)


def _chronoedit(scheduler: Any) -> Any:
    transformer = ChronoEditTransformer3DModel(
        in_channels=_CONDITIONED,
        num_attention_heads=2,
        attention_head_dim=12,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=16,
        **_SEES_IMAGES,
    )
    pipe = ChronoEditPipeline(
        scheduler=scheduler, vae=wan_vae(), transformer=transformer.eval(), **NO_IMAGE_READER, **NO_TEXT
    )
    return _sees(pipe)


def _sana_image(scheduler: Any) -> Any:
    return SanaImageToVideoPipeline(
        scheduler=scheduler, vae=wan_vae(), transformer=sana_video_transformer(), **NO_TEXT
    )


def _sana_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return masked_inputs(
        prompts, guided, frames=5, height=32, width=32, negative_prompt=None, use_resolution_binning=False
    )


# -- LTX, Kandinsky 5 ------------------------------------------------------------------------------


def _ltx_vae() -> AutoencoderKLLTXVideo:
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(4, 4),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        downsample_type=("conv", "conv"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=2,
    )
    return vae.eval()


def _ltx(kind: Any) -> Any:
    def build(scheduler: Any) -> Any:
        transformer = LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=WIDTH,
        )
        return kind(scheduler=scheduler, vae=_ltx_vae(), transformer=transformer.eval(), **NO_TEXT)

    return build


def _ltx_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return masked_inputs(prompts, guided, height=32, width=32, num_frames=9)


_ltx_image_inputs = one(_ltx_inputs, image_cond_noise_scale=0.0)  # one image's noise is drawn by one prompt


def _kandinsky_image(scheduler: Any) -> Any:
    return Kandinsky5I2VPipeline(
        scheduler=scheduler, vae=hunyuan_vae(), transformer=kandinsky_transformer(), **NO_TEXTS
    )


def first(name: str) -> Any:
    return lambda transformer: getattr(transformer, name)


VIDEOS_FROM: dict[str, Recipe] = {
    "HunyuanVideoImageToVideoPipeline": Recipe(
        _hunyuan_image("latent_concat"), each(hunyuan_inputs), first("x_embedder")
    ),
    "HunyuanVideoImageToVideoPipeline, token replace": Recipe(
        _hunyuan_image("token_replace"), each(hunyuan_inputs), first("x_embedder")
    ),
    "HunyuanSkyreelsImageToVideoPipeline": Recipe(
        _hunyuan_skyreels, each(hunyuan_inputs), first("x_embedder")
    ),
    "CogVideoXImageToVideoPipeline": Recipe(
        _cogvideox(CogVideoXImageToVideoPipeline, in_channels=8),
        each(video_inputs),
        first("time_proj"),
        ("ddim",),
    ),
    "CogVideoXVideoToVideoPipeline": Recipe(
        _cogvideox(CogVideoXVideoToVideoPipeline),
        video(video_inputs, num_frames=None, strength=1.0),
        first("time_proj"),
        ("ddim",),
    ),
    "CogVideoXFunControlPipeline": Recipe(
        _cogvideox(CogVideoXFunControlPipeline, in_channels=8),
        video(video_inputs, "control_video", num_frames=None),
        first("time_proj"),
        ("ddim",),
    ),
    "WanImageToVideoPipeline": Recipe(
        _wan_image, one(zero_padded_inputs), first("patch_embedding"), ("unipc_flow",)
    ),
    "WanImageToVideoPipeline, 2.2": Recipe(
        _wan_image_two, one(zero_padded_inputs), first("patch_embedding"), ("unipc_flow",)
    ),
    "WanImageToVideoPipeline, tokens": Recipe(
        _wan_image_tokens, one(zero_padded_inputs), first("patch_embedding"), ("unipc_flow",)
    ),
    "WanVideoToVideoPipeline": Recipe(
        _wan_video,
        video(zero_padded_inputs, num_frames=None, strength=1.0),
        first("patch_embedding"),
        ("unipc_flow",),
    ),
    "LucyEditPipeline": Recipe(_lucy, video(zero_padded_inputs), first("patch_embedding"), ("unipc_flow",)),
    "SkyReelsV2ImageToVideoPipeline": Recipe(
        _skyreels_image, one(zero_padded_inputs), first("patch_embedding"), ("unipc_flow",)
    ),
    "ChronoEditPipeline": Recipe(
        _chronoedit, one(zero_padded_inputs), first("patch_embedding"), ("unipc_flow",)
    ),
    "SanaImageToVideoPipeline": Recipe(
        _sana_image, one(_sana_inputs), first("patch_embedding"), ("dpmpp_flow",)
    ),
    "LTXImageToVideoPipeline": Recipe(_ltx(LTXImageToVideoPipeline), each(_ltx_inputs), first("proj_in")),
    "LTXConditionPipeline": Recipe(
        _ltx(LTXConditionPipeline), one(_ltx_inputs, image_cond_noise_scale=0.0), first("proj_in")
    ),
    "LTXConditionPipeline, of texts": Recipe(_ltx(LTXConditionPipeline), _ltx_inputs, first("proj_in")),
    "Kandinsky5I2VPipeline": Recipe(
        _kandinsky_image, each(kandinsky_inputs, num_frames=21), first("visual_embeddings")
    ),
}
