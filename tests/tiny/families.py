"""Tiny pipelines of further families (`tiny.py` has the first four), without autoencoders where they can do so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKLFlux2,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)

from tiny.parts import (
    NO_TEXT,
    TOKENS,
    WIDTH,
    Recipe,
    embeddings,
    louder,
    masked,
    masked_inputs,
    padded,
    plain_inputs,
)

# -- FLUX.2 ----------------------------------------------------------------------------------------


def _flux2_transformer(guidance_embeds: bool) -> Flux2Transformer2DModel:
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    return louder(transformer.eval(), 2.0)


def _flux2(scheduler: Any) -> Any:
    return Flux2Pipeline(scheduler=scheduler, vae=None, transformer=_flux2_transformer(True), **NO_TEXT)


def _flux2_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Never guided by negative rows: the scale is an input of the model."""
    return {"prompt_embeds": embeddings(prompts, TOKENS), "guidance_scale": 3.5, "height": 32, "width": 32}


def _flux2_klein(scheduler: Any) -> Any:
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    return Flux2KleinPipeline(scheduler=scheduler, vae=vae, transformer=_flux2_transformer(False), **NO_TEXT)


# -- PixArt and Sana -------------------------------------------------------------------------------


def _pixart_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return masked_inputs(prompts, guided, negative_prompt=None, use_resolution_binning=False)


def _pixart(pipeline: Any, scheduler: Any, sample_size: int) -> Any:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,  # the pipeline throws the second half away: a predicted variance
        num_layers=1,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        sample_size=sample_size,
    ).eval()
    return pipeline(scheduler=scheduler, vae=None, transformer=transformer, **NO_TEXT)


def _pixart_alpha(scheduler: Any) -> Any:
    return _pixart(PixArtAlphaPipeline, scheduler, 128)  # 128 is the size that is told resolutions


def _pixart_sigma(scheduler: Any) -> Any:
    return _pixart(PixArtSigmaPipeline, scheduler, 8)


def _sana(scheduler: Any) -> Any:
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
    ).eval()
    return SanaPipeline(scheduler=scheduler, vae=None, transformer=transformer, **NO_TEXT)


def _sana_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return masked_inputs(
        prompts, guided, negative_prompt=None, use_resolution_binning=False, height=64, width=64
    )


# -- AuraFlow, Chroma, CogView4, HunyuanDiT, Lumina 2 ------------------------------------------------


def _auraflow_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Padded with zeros, as its text encoding is; the masks are asked for and not used."""
    negative = [-1] * len(prompts)
    inputs = masked_inputs(prompts, guided) | {"prompt_embeds": padded(prompts, 0.0)}
    return inputs | ({"negative_prompt_embeds": padded(negative, 0.0)} if guided else {})


def _auraflow(scheduler: Any) -> Any:
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    ).eval()
    return AuraFlowPipeline(scheduler=scheduler, vae=None, transformer=louder(transformer, 1.7), **NO_TEXT)


def _chroma_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = masked_inputs(prompts, guided, height=32, width=32)
    return {name: value.float() if name.endswith("mask") else value for name, value in inputs.items()}


def _chroma(scheduler: Any) -> Any:
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=8,
        approximator_layers=1,
    ).eval()
    return ChromaPipeline(scheduler=scheduler, vae=None, transformer=transformer, **NO_TEXT)


def _cogview4(scheduler: Any) -> Any:
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(8, 8),
    ).eval()
    return CogView4Pipeline(scheduler=scheduler, vae=None, transformer=transformer, **NO_TEXT)


def _hunyuan_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = masked_inputs(prompts, guided, use_resolution_binning=False) | masked(prompts, suffix="_2")
    return inputs | (masked([-1] * len(prompts), "negative_", "_2") if guided else {})


def _hunyuan(scheduler: Any) -> Any:
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=2,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=8,
        text_len=TOKENS,
        text_len_t5=TOKENS,
    ).eval()
    return HunyuanDiTPipeline(
        scheduler=scheduler,
        vae=None,
        transformer=transformer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **NO_TEXT,
    )


def _lumina2(scheduler: Any) -> Any:
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(16, 8, 8),
        cap_feat_dim=WIDTH,
    ).eval()
    return Lumina2Pipeline(scheduler=scheduler, vae=None, transformer=transformer, **NO_TEXT)


RECIPES: dict[str, Recipe] = {
    "flux2": Recipe(_flux2, _flux2_inputs, lambda transformer: transformer.x_embedder),
    "flux2-klein": Recipe(_flux2_klein, plain_inputs, lambda transformer: transformer.x_embedder),
    "pixart-alpha": Recipe(
        _pixart_alpha,
        _pixart_inputs,
        lambda transformer: transformer.pos_embed.proj,
        ("dpmpp_2m",),
        words=("encoder_hidden_states",),
    ),
    "pixart-sigma": Recipe(
        _pixart_sigma,
        _pixart_inputs,
        lambda transformer: transformer.pos_embed.proj,
        ("dpmpp_2m", "euler_a"),
        words=("encoder_hidden_states",),
    ),
    "sana": Recipe(
        _sana,
        _sana_inputs,
        lambda transformer: transformer.patch_embed.proj,
        ("dpmpp_flow", "flow"),
        words=("encoder_hidden_states",),
    ),
    "auraflow": Recipe(
        _auraflow,
        _auraflow_inputs,
        lambda transformer: transformer.pos_embed,
        words=("encoder_hidden_states",),
    ),
    "chroma": Recipe(
        _chroma,
        _chroma_inputs,
        lambda transformer: transformer.x_embedder,
        words=("encoder_hidden_states",),
    ),
    "cogview4": Recipe(_cogview4, plain_inputs, lambda transformer: transformer.patch_embed.proj),
    "hunyuandit": Recipe(
        _hunyuan,
        _hunyuan_inputs,
        lambda transformer: transformer.pos_embed.proj,
        ("ddpm", "dpmpp_2m"),
        words=("encoder_hidden_states", "encoder_hidden_states_t5"),
    ),
    "lumina2": Recipe(
        _lumina2,
        masked_inputs,
        lambda transformer: transformer.x_embedder,
        words=("encoder_hidden_states",),
    ),
}
