"""Tiny pipelines steered by an image: ControlNets of transformers, T2I-Adapter, IP-Adapters and their masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLQwenImage,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxPipeline,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    HunyuanDiTControlNetPipeline,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SanaTransformer2DModel,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
)

from tiny import RECIPES as IN_DEPTH
from tiny import tiny
from tiny.parts import WIDTH, Recipe, embeddings

Inputs = Callable[[Sequence[int], bool], dict[str, Any]]


def _image(size: int = 16) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(9))


def _with(family: str, **more: Any) -> Inputs:
    def inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
        return IN_DEPTH[family].inputs(prompts, guided) | more

    return inputs


def _awake(model: Any) -> Any:
    """With weights where a model is made with zeros, as nothing was learnt."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.3)
    return model.eval()


def _exact(vae: Any) -> Any:
    """An autoencoder that draws no noise to encode an image, which would be torch's global one."""
    with torch.no_grad():
        half = len(vae.quant_conv.bias) // 2
        vae.quant_conv.weight[half:] = 0.0
        vae.quant_conv.bias[half:] = -30.0
    return vae


# -- ControlNets of transformers -------------------------------------------------------------------


def _flux(scheduler: Any) -> Any:
    parts = tiny("flux").pipe.components
    names = (
        "attention_head_dim",
        "num_attention_heads",
        "joint_attention_dim",
        "pooled_projection_dim",
        "axes_dims_rope",
    )
    config = {name: parts["transformer"].config[name] for name in names}
    net = FluxControlNetModel(
        in_channels=16, num_layers=1, num_single_layers=1, guidance_embeds=True, **config
    )
    return FluxControlNetPipeline(
        **parts | {"scheduler": scheduler, "vae": _exact(parts["vae"])}, controlnet=_awake(net)
    )


def _sd3(scheduler: Any) -> Any:
    parts = tiny("sd3").pipe.components
    net = SD3ControlNetModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=WIDTH,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return StableDiffusion3ControlNetPipeline(
        **parts | {"scheduler": scheduler, "vae": _exact(parts["vae"])}, controlnet=_awake(net)
    )


def _qwen(scheduler: Any) -> Any:
    parts = tiny("qwen-image").pipe.components
    net = QwenImageControlNetModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return QwenImageControlNetPipeline(
        **parts | {"scheduler": scheduler, "vae": _exact(vae)}, controlnet=_awake(net)
    )


def _sana(scheduler: Any) -> Any:
    config: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": WIDTH,
        "sample_size": 8,
    }
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )
    return SanaControlNetPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        transformer=SanaTransformer2DModel(num_layers=2, **config).eval(),
        controlnet=_awake(SanaControlNetModel(num_layers=1, **config)),
        scheduler=scheduler,
    )


def _hunyuan(scheduler: Any) -> Any:
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "patch_size": 2,
        "sample_size": 8,
        "hidden_size": 16,
        "cross_attention_dim": WIDTH,
        "cross_attention_dim_t5": WIDTH,
        "pooled_projection_dim": 8,
        "text_len": 3,
        "text_len_t5": 3,
    }
    parts = tiny("hunyuandit").pipe.components
    parts |= {
        "scheduler": scheduler,
        "transformer": HunyuanDiT2DModel(num_layers=4, **config).eval(),
        "vae": _exact(tiny("sd").pipe.vae),
    }
    net = HunyuanDiT2DControlNetModel(transformer_num_layers=4, **config)
    return HunyuanDiTControlNetPipeline(**parts, controlnet=_awake(net), requires_safety_checker=False)


# -- adapters --------------------------------------------------------------------------------------


def _t2i(scheduler: Any) -> Any:
    parts = tiny("sd").pipe.components
    parts.pop("image_encoder", None)
    adapter = T2IAdapter(channels=[8], num_res_blocks=1, downscale_factor=4)
    return StableDiffusionAdapterPipeline(
        **parts | {"scheduler": scheduler}, adapter=adapter.eval(), requires_safety_checker=False
    )


def _projection() -> dict[str, torch.Tensor]:
    """An IP-Adapter's, from an image's embedding to four tokens."""
    return {
        "proj.weight": torch.randn(4 * WIDTH, WIDTH),
        "proj.bias": torch.zeros(4 * WIDTH),
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
    }


def _t2i_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """The same image for each prompt: with guidance the pipeline does not repeat it."""
    return IN_DEPTH["sd"].inputs(prompts, guided) | {"image": _image().repeat(len(prompts), 1, 1, 1)}


def _ip_masked(scheduler: Any) -> Any:
    parts = tiny("sd").pipe.components
    pipe = StableDiffusionPipeline(**parts | {"scheduler": scheduler}, requires_safety_checker=False)
    names = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    weights = {
        f"{2 * number + 1}.{key}.weight": torch.randn(
            pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
        )
        for number, name in enumerate(names)
        for key in ("to_k_ip", "to_v_ip")
    }
    pipe.unet._load_ip_adapter_weights([{"image_proj": _projection(), "ip_adapter": weights}])
    return pipe


def _ip_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    image = embeddings([1])[None]  # (1, 1, WIDTH)
    masks = torch.zeros(1, 1, 16, 16)
    masks[..., :8] = 1.0
    return IN_DEPTH["sd"].inputs(prompts, guided) | {
        "ip_adapter_image_embeds": [torch.cat([torch.zeros_like(image), image]) if guided else image],
        "cross_attention_kwargs": {"ip_adapter_masks": [masks]},
    }


def _flux_ip(scheduler: Any) -> Any:
    pipe = FluxPipeline(**tiny("flux").pipe.components | {"scheduler": scheduler})
    width = pipe.transformer.inner_dim
    weights: dict[str, torch.Tensor] = {}
    for key in ("to_k_ip", "to_v_ip"):
        weights |= {f"0.{key}.weight": torch.randn(width, WIDTH), f"0.{key}.bias": torch.zeros(width)}
    pipe.transformer._load_ip_adapter_weights([{"image_proj": _projection(), "ip_adapter": weights}])
    return pipe


def _flux_ip_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    one = [embeddings([1])[None]]
    return IN_DEPTH["flux"].inputs(prompts, guided) | {
        "ip_adapter_image_embeds": one,
        "negative_ip_adapter_image_embeds": [torch.zeros_like(one[0])],
    }


CONTROLLED: dict[str, Recipe] = {
    "FluxControlNetPipeline": Recipe(
        _flux, _with("flux", control_image=_image()), lambda model: model.x_embedder
    ),
    "StableDiffusion3ControlNetPipeline": Recipe(
        _sd3, _with("sd3", control_image=_image()), lambda model: model.pos_embed.proj
    ),
    "QwenImageControlNetPipeline": Recipe(
        _qwen, _with("qwen-image", control_image=_image(32)), lambda model: model.img_in
    ),
    "SanaControlNetPipeline": Recipe(
        _sana,
        _with("sana", control_image=_image(32), height=32, width=32),
        lambda model: model.patch_embed.proj,
        ("dpmpp_flow",),
    ),
    "HunyuanDiTControlNetPipeline": Recipe(
        _hunyuan, _with("hunyuandit", control_image=_image()), lambda model: model.pos_embed.proj, ("ddpm",)
    ),
    "StableDiffusionAdapterPipeline": Recipe(_t2i, _t2i_inputs, lambda unet: unet.conv_in, ("ddim",)),
    "StableDiffusionPipeline, masks of an IP-Adapter": Recipe(
        _ip_masked, _ip_inputs, lambda unet: unet.conv_in, ("ddim",)
    ),
    "FluxPipeline, IP-Adapter": Recipe(_flux_ip, _flux_ip_inputs, lambda model: model.x_embedder),
}
