"""Tiny pipelines that take texts: real classes with random weights, with text encoders and autoencoders of their own.

A text is any of `WORDS`; images and clips come out as PIL images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    LTXImageToVideoPipeline,
    LTXPipeline,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from tiny import tiny
from tiny.parts import SCHEDULERS, WIDTH, louder

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "green", "small", "large", "cat", "dog", "bird"]
WORDS += map(str, range(20))
_LENGTH = 8  # tokens


def t5() -> dict[str, Any]:
    """A tokenizer and a text encoder."""
    plain = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=_LENGTH,
    )
    config = T5Config(vocab_size=len(WORDS), d_model=WIDTH, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return {"tokenizer": tokenizer, "text_encoder": T5EncoderModel(config).eval()}


def built(pipeline: Any, **parts: Any) -> Any:
    pipe = pipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip() -> dict[str, Any]:
    """As `t5`, of the other kind."""
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=_LENGTH, projection_dim=WIDTH, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return {"tokenizer": t5()["tokenizer"], "text_encoder": CLIPTextModel(config).eval()}


# -- images from an image --------------------------------------------------------------------------


def random_image(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def half_mask(right: bool = True, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """White, to be painted anew, on one side."""
    width, height = size
    white = (np.arange(width) >= width // 2) == right
    return Image.fromarray(np.repeat(np.where(white, 255, 0).astype(np.uint8)[None], height, 0))


def sd(pipeline: Any, scheduler: str = "ddim") -> Any:
    """Stable Diffusion from an image, by the class of its pipeline; sizes in multiples of 16."""
    parts = {name: getattr(tiny("sd", scheduler).pipe, name) for name in ("vae", "unet", "scheduler")}
    return built(
        pipeline,
        **parts,
        **clip(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flux(pipeline: Any) -> Any:
    """FLUX from an image, by the class of its pipeline."""
    parts = {name: getattr(tiny("flux").pipe, name) for name in ("vae", "transformer", "scheduler")}
    louder(parts["transformer"], 2.0)
    second = {f"{name}_2": part for name, part in t5().items()}
    return built(pipeline, **parts, **clip(), **second)


# -- videos ----------------------------------------------------------------------------------------


def _wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def _image_encoder() -> dict[str, Any]:
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )  # fmt: skip
    side = {"height": 16, "width": 16}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side)
    return {"image_encoder": CLIPVisionModel(config).eval(), "image_processor": processor}


def wan(from_image: bool = False) -> Any:
    """Makes clips of 4 n + 1 frames, sizes in multiples of 16; from an image as Wan 2.1 does."""
    torch.manual_seed(0)
    channels = 4 + (4 + 4 if from_image else 0)  # the image's mask and latents
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=8,
        image_dim=WIDTH if from_image else None,
        added_kv_proj_dim=24 if from_image else None,
    ).eval()
    return built(
        WanImageToVideoPipeline if from_image else WanPipeline,
        **_image_encoder() if from_image else {},
        transformer=louder(transformer, 2.0),
        scheduler=SCHEDULERS["unipc_flow"](),
        vae=_wan_vae(),
        **t5(),
    )


def _ltx_vae(noisy: bool) -> AutoencoderKLLTXVideo:
    return AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        decoder_inject_noise=(noisy,) * 5,
    ).eval()


def ltx(from_image: bool = False, noisy: bool = False) -> Any:
    """Makes clips of 8 n + 1 frames, sizes in multiples of 32; noisy: its decoder draws noise, as LTX 0.9.1's does."""
    torch.manual_seed(0)
    return built(
        LTXImageToVideoPipeline if from_image else LTXPipeline,
        transformer=louder(tiny("ltx").denoiser, 2.0),
        scheduler=SCHEDULERS["flow"](),
        vae=_ltx_vae(noisy),
        **t5(),
    )
