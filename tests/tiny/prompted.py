"""Tiny pipelines that take texts: real classes with random weights, with text encoders and autoencoders of their own.

A text is any of `WORDS`; images and clips come out as PIL images.
"""

from __future__ import annotations

from typing import Any

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
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from tiny import tiny
from tiny.parts import SCHEDULERS, WIDTH, louder

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "green", "small", "large", "cat", "dog", "bird"]
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


def wan(from_image: bool = False) -> Any:
    """Makes clips of 4 n + 1 frames, sizes in multiples of 16."""
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
    ).eval()
    return built(
        WanImageToVideoPipeline if from_image else WanPipeline,
        transformer=louder(transformer, 2.0),
        scheduler=SCHEDULERS["unipc_flow"](),
        vae=_wan_vae(),
        **t5(),
    )


def _ltx_vae() -> AutoencoderKLLTXVideo:
    return AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    ).eval()


def ltx(from_image: bool = False) -> Any:
    """Makes clips of 8 n + 1 frames, sizes in multiples of 32."""
    torch.manual_seed(0)
    return built(
        LTXImageToVideoPipeline if from_image else LTXPipeline,
        transformer=louder(tiny("ltx").denoiser, 2.0),
        scheduler=SCHEDULERS["flow"](),
        vae=_ltx_vae(),
        **t5(),
    )
