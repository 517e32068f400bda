"""Tiny pipelines that make images, of models of 2025 and later: by the name of the class, a variant after a comma."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderKL,
    BriaPipeline,
    BriaTransformer2DModel,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    Cosmos2TextToImagePipeline,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    JoyImageEditPipeline,
    JoyImageEditPlusPipeline,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    SanaSprintPipeline,
    SanaTransformer2DModel,
)

from tiny.parts import (
    NO_TEXT,
    TOKENS,
    WIDTH,
    Recipe,
    embeddings,
    louder,
    masked_inputs,
    masks,
    padded,
    plain_inputs,
)

_NEGATIVE = -1


def texts(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """For pipelines that take no embeddings: each prompt's number as a text, which `read` reads."""
    inputs: dict[str, Any] = {"prompt": [str(prompt) for prompt in prompts]}
    if guided:
        inputs["negative_prompt"] = [str(_NEGATIVE)] * len(prompts)
    return inputs | {"guidance_scale": 4.0 if guided else 1.0}


def read(prompts: Sequence[str]) -> torch.Tensor:
    """(N, TOKENS, WIDTH): what a text encoder would say of `texts`."""
    return embeddings([int(prompt) for prompt in prompts], TOKENS)


def filled(model: Any) -> Any:
    """Weights that are made zero or empty, to be loaded, are random: else nothing would reach the image."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any() or not parameter.isfinite().all() or parameter.abs().max() > 1e3:
                parameter.normal_(std=0.2)
    return model


def vae(channels: int, blocks: int = 4) -> Any:
    """An autoencoder of so many channels; a latent stands for 2 ** (blocks - 1) pixels per side."""
    return AutoencoderKL(
        block_out_channels=(4,) * blocks,
        norm_num_groups=4,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        shift_factor=0.0,
    ).eval()


def _negative(prompts: Sequence[int]) -> list[int]:
    return [_NEGATIVE] * len(prompts)


def _with_mask(prompts: Sequence[int], prefix: str = "", padding: float = 9.0) -> dict[str, Any]:
    """Embeddings and mask as Qwen-Image names them."""
    return {
        f"{prefix}prompt_embeds": padded(prompts, padding),
        f"{prefix}prompt_embeds_mask": masks(prompts),
    }


def with_masks(prompts: Sequence[int], guided: bool, **options: Any) -> dict[str, Any]:
    """Prompts of different length, with masks as Qwen-Image names them."""
    inputs = _with_mask(prompts)
    if guided:
        inputs |= _with_mask(_negative(prompts), "negative_")
    return inputs | {"guidance_scale": 4.0 if guided else 1.0} | options


# -- HunyuanImage, Krea 2 ----------------------------------------------------------------------------


def _hunyuan_image(scheduler: Any, **options: Any) -> Any:
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        rope_axes_dim=(4, 4),
        **options,
    )
    return HunyuanImagePipeline(
        scheduler=scheduler,
        vae=None,
        transformer=louder(transformer.eval(), 2.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
        **NO_TEXT,
    )


def _hunyuan_image_distilled(scheduler: Any) -> Any:
    """Never guided by negative rows: the scale is an input of the model, and so is the next step's time."""
    pipe = _hunyuan_image(scheduler, guidance_embeds=True, use_meanflow=True)
    pipe.register_modules(guider=None)
    return pipe


def _hunyuan_image_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Some prompts have text to be drawn, others have none: their second mask is empty."""
    inputs = with_masks(prompts, guided, height=128, width=128)
    del inputs["guidance_scale"]
    for prefix, these in (("", prompts), ("negative_", _negative(prompts))):
        drawn = torch.tensor([prompt % 2 == 0 for prompt in these])
        inputs[f"{prefix}prompt_embeds_2"] = padded(these, 0.0) * drawn[:, None, None]
        inputs[f"{prefix}prompt_embeds_mask_2"] = masks(these) * drawn[:, None]
    return inputs


def _krea2(scheduler: Any) -> Any:
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        timestep_embed_dim=8,
        text_hidden_dim=WIDTH,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    return Krea2Pipeline(scheduler=scheduler, vae=None, transformer=transformer.eval(), **NO_TEXT)


def _krea2_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Hidden states of two layers. Its guidance counts from 0."""
    inputs = with_masks(prompts, guided, guidance_scale=3.0 if guided else 0.0)
    return {
        name: torch.stack([value, value * 0.5], dim=2) if name.endswith("embeds") else value
        for name, value in inputs.items()
    }


# -- LongCat, Ovis, Qwen-Image 2.1, Bria -------------------------------------------------------------


def _longcat(scheduler: Any) -> Any:
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=[4, 2, 2],
    )
    pipe: Any = LongCatImagePipeline(
        scheduler=scheduler, vae=None, transformer=transformer.eval(), text_processor=None, **NO_TEXT
    )
    pipe._encode_prompt = read
    return pipe


def _longcat_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return texts(prompts, guided) | {"enable_prompt_rewrite": False, "height": 32, "width": 32}


def _ovis(scheduler: Any) -> Any:
    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 2, 2),
    )
    return OvisImagePipeline(scheduler=scheduler, vae=None, transformer=transformer.eval(), **NO_TEXT)


def _ovis_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Padded with zeros, as its text encoding is."""
    inputs = plain_inputs(prompts, guided, negative_prompt=None, height=32, width=32)
    inputs["prompt_embeds"] = padded(prompts, 0.0)
    return inputs


class _Processor:
    """What Qwen-Image 2.1 asks of its processor when it is built."""

    tokenizer: Any = SimpleNamespace(encode=lambda text: [0])

    def apply_chat_template(self, messages: Any, **options: Any) -> list[list[int]]:
        return [[0]]


def _qwen21(scheduler: Any) -> Any:
    transformer = QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        context_in_dim=WIDTH,
        axes_dims_rope=(4, 2, 2),
    )
    processor: Any = _Processor()
    return QwenImage21Pipeline(
        scheduler=scheduler, vae=None, text_encoder=None, processor=processor, transformer=transformer.eval()
    )


def _qwen21_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    inputs = with_masks(prompts, guided, true_cfg_scale=4.0 if guided else 1.0)
    del inputs["guidance_scale"]
    return inputs | {"height": 64, "width": 64}


def _bria(scheduler: Any) -> Any:
    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=[4, 2, 2],
    )
    return BriaPipeline(scheduler=scheduler, vae=vae(4, blocks=2), transformer=transformer.eval(), **NO_TEXT)


# -- CogView 3, JoyImage ------------------------------------------------------------------------------


def _cogview3(scheduler: Any) -> Any:
    transformer = CogView3PlusTransformer2DModel(
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
    )
    return CogView3PlusPipeline(scheduler=scheduler, vae=None, transformer=transformer.eval(), **NO_TEXT)


def _joyimage_parts(transformer: Any) -> dict[str, Any]:
    model = transformer(
        in_channels=4,
        hidden_size=16,
        num_attention_heads=2,
        text_dim=WIDTH,
        mlp_width_ratio=1.0,
        num_layers=1,
        rope_dim_list=[4, 2, 2],
    )
    return {"transformer": louder(model.eval(), 2.0), "vae": None, "processor": None, **NO_TEXT}


def _joyimage(scheduler: Any) -> Any:
    pipe = JoyImageEditPipeline(scheduler=scheduler, **_joyimage_parts(JoyImageEditTransformer3DModel))
    pipe.vae_scale_factor_spatial = 256  # it makes images of 1024 pixels only
    return pipe


def _joyimage_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Padded with zeros, as its text encoding is; the masks are asked for and not used."""
    inputs = with_masks(prompts, guided)
    return inputs | {"prompt_embeds": padded(prompts, 0.0)}


def _joyimage_plus(scheduler: Any) -> Any:
    parts = _joyimage_parts(JoyImageEditPlusTransformer3DModel)
    pipe: Any = JoyImageEditPlusPipeline(scheduler=scheduler, **parts)

    def encode(prompt: Sequence[str], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = [int(re.findall(r"-?\d+", text)[0]) for text in prompt]
        return padded(numbers, 9.0), masks(numbers)

    pipe.encode_prompt_multiple_images = encode
    return pipe


# -- Cosmos ----------------------------------------------------------------------------------------


class _Checker(torch.nn.Module):
    """Stands for the checker of prompts and images, which is a package of its own."""

    device = torch.device("cpu")


def _cosmos(scheduler: Any) -> Any:
    transformer = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=1.0,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(2, 8, 8),
        extra_pos_embed_type=None,
        concat_padding_mask=False,  # which needs torchvision
    )
    checker: Any = _Checker()
    pipe = Cosmos2TextToImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        vae=None,
        transformer=filled(transformer.eval()),
        safety_checker=checker,
        **NO_TEXT,
    )
    pipe.scheduler.register_to_config(sigma_max=2.0)  # of 80 the rounding of float32 is larger than the bar
    return pipe


# -- Kandinsky 3 and 5 ------------------------------------------------------------------------------


def _kandinsky3(scheduler: Any) -> Any:
    unet = Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=8,
        groups=4,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(8, 16),
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
    )
    return Kandinsky3Pipeline(scheduler=scheduler, unet=unet.eval(), movq=None, **NO_TEXT)


def _kandinsky3_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Its guidance counts from 0."""
    inputs: dict[str, Any] = {"prompt_embeds": padded(prompts, 9.0), "attention_mask": masks(prompts).long()}
    if guided:
        negative = _negative(prompts)
        inputs["negative_prompt_embeds"] = padded(negative, 9.0)
        inputs["negative_attention_mask"] = masks(negative).long()
    return inputs | {"guidance_scale": 3.0 if guided else 0.0, "height": 64, "width": 64}


def kandinsky5_transformer(**options: Any) -> Any:
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=8,
        model_dim=16,
        ff_dim=16,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 2, 2),
        **options,
    )
    return filled(transformer.eval())


def _kandinsky5(scheduler: Any) -> Any:
    pipe = Kandinsky5T2IPipeline(
        transformer=kandinsky5_transformer(),
        scheduler=scheduler,
        vae=None,
        text_encoder_2=None,
        tokenizer_2=None,
        **NO_TEXT,
    )
    pipe.resolutions = [(64, 64)]
    return pipe


def _kandinsky5_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """It reads padding like words; `cu_seqlens` are the places where the prompts' tokens begin."""
    inputs: dict[str, Any] = {"guidance_scale": 4.0 if guided else 1.0}
    for prefix, these in {"": prompts, **({"negative_": _negative(prompts)} if guided else {})}.items():
        inputs[f"{prefix}prompt_embeds_qwen"] = embeddings(these, TOKENS)
        inputs[f"{prefix}prompt_embeds_clip"] = embeddings(these)
        inputs[f"{prefix}prompt_cu_seqlens"] = torch.arange(len(these) + 1) * TOKENS
    return inputs


# -- Lumina, Nucleus ----------------------------------------------------------------------------------


def _lumina(scheduler: Any) -> Any:
    transformer = LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        cross_attention_dim=WIDTH,
    )
    return LuminaPipeline(scheduler=scheduler, vae=None, transformer=filled(transformer.eval()), **NO_TEXT)


def _nucleus(scheduler: Any) -> Any:
    transformer = NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=5,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 2, 2),
        num_experts=2,
        moe_intermediate_dim=8,
        capacity_factors=1.0,
    )
    with torch.no_grad():  # the experts are made empty, for weights to be loaded
        for name, parameter in transformer.named_parameters():
            if ".experts." in name:
                parameter.normal_(std=0.2)
    return NucleusMoEImagePipeline(
        transformer=transformer.eval(), scheduler=scheduler, vae=None, text_encoder=None, processor=None
    )


def _nucleus_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return with_masks(prompts, guided, height=32, width=32)


# -- Sana Sprint -----------------------------------------------------------------------------------


def _sprint(scheduler: Any) -> Any:
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
        guidance_embeds=True,
    )
    return SanaSprintPipeline(scheduler=scheduler, vae=None, transformer=transformer.eval(), **NO_TEXT)


def _sprint_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Never guided by negative rows: the scale is an input of the model."""
    inputs = masked_inputs(prompts, False, use_resolution_binning=False, height=64, width=64)
    return inputs | {"guidance_scale": 4.5, "intermediate_timesteps": None}


_TEXT = ("encoder_hidden_states",)

IMAGES: dict[str, Recipe] = {
    "BriaPipeline": Recipe(_bria, plain_inputs, lambda transformer: transformer.x_embedder),
    "CogView3PlusPipeline": Recipe(
        _cogview3, plain_inputs, lambda transformer: transformer.patch_embed.proj, ("ddim",)
    ),
    "Cosmos2TextToImagePipeline": Recipe(
        _cosmos,
        lambda prompts, guided: plain_inputs(prompts, guided, height=32, width=32),
        lambda transformer: transformer.patch_embed,
    ),
    "HunyuanImagePipeline": Recipe(
        _hunyuan_image,
        _hunyuan_image_inputs,
        lambda transformer: transformer.x_embedder,
        words=("encoder_hidden_states", "encoder_hidden_states_2"),
        rows=(None, 2),
    ),
    "HunyuanImagePipeline, distilled": Recipe(
        _hunyuan_image_distilled,
        _hunyuan_image_inputs,
        lambda transformer: transformer.x_embedder,
        words=("encoder_hidden_states", "encoder_hidden_states_2"),
        rows=(1, None),
    ),
    "JoyImageEditPipeline": Recipe(
        _joyimage, _joyimage_inputs, lambda transformer: transformer.img_in, words=_TEXT
    ),
    "JoyImageEditPlusPipeline": Recipe(
        _joyimage_plus, texts, lambda transformer: transformer.condition_embedder.time_embedder, words=_TEXT
    ),
    "Kandinsky3Pipeline": Recipe(
        _kandinsky3, _kandinsky3_inputs, lambda unet: unet.conv_in, ("ddpm",), words=_TEXT
    ),
    "Kandinsky5T2IPipeline": Recipe(
        _kandinsky5, _kandinsky5_inputs, lambda transformer: transformer.visual_embeddings
    ),
    "Krea2Pipeline": Recipe(_krea2, _krea2_inputs, lambda transformer: transformer.img_in, words=_TEXT),
    "LongCatImagePipeline": Recipe(_longcat, _longcat_inputs, lambda transformer: transformer.x_embedder),
    "LuminaPipeline": Recipe(
        _lumina, masked_inputs, lambda transformer: transformer.patch_embedder, words=_TEXT
    ),
    "NucleusMoEImagePipeline": Recipe(
        _nucleus, _nucleus_inputs, lambda transformer: transformer.img_in, words=_TEXT
    ),
    "OvisImagePipeline": Recipe(_ovis, _ovis_inputs, lambda transformer: transformer.x_embedder, words=_TEXT),
    "SanaSprintPipeline": Recipe(
        _sprint,
        _sprint_inputs,
        lambda transformer: transformer.patch_embed.proj,
        ("scm",),
        words=_TEXT,
        rows=(1, None),
    ),
    "QwenImage21Pipeline": Recipe(
        _qwen21, _qwen21_inputs, lambda transformer: transformer.img_in, words=_TEXT
    ),
}
