"""Tiny pipelines that make images, whose denoisers take what a prompt says in a form of their own: lengths, tokens,
states of many layers, memories. By the name of the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    BriaFibo2Pipeline,
    BriaFibo2Transformer2DModel,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    OmniGenPipeline,
    OmniGenTransformer2DModel,
    PRXPipeline,
    PRXPixelPipeline,
    PRXTransformer2DModel,
)
from diffusers.pipelines.omnigen import pipeline_omnigen
from diffusers.pipelines.omnigen.processor_omnigen import OmniGenCollator

from tiny.every_image import filled, texts, vae, with_masks
from tiny.parts import (
    NO_TEXT,
    TOKENS,
    WIDTH,
    Recipe,
    count_words,
    embeddings,
    louder,
    masked_inputs,
    masks,
    padded,
)

_TEXT = ("encoder_hidden_states",)


# -- Bria FIBO -------------------------------------------------------------------------------------


def fibo_transformer() -> Any:
    return BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=[4, 2, 2],
        text_encoder_dim=WIDTH,
    ).eval()


def fibo_states(prompts: Sequence[int]) -> tuple[Any, ...]:
    """What FIBO's text encoder would say: states, those of two layers, padded by zeros, and the mask."""
    states = padded(prompts, 0.0)
    return states, (states * 0.5, states * 2.0), masks(prompts).float()


def _fibo(scheduler: Any) -> Any:
    transformer = fibo_transformer()
    pipe: Any = BriaFiboPipeline(scheduler=scheduler, vae=None, transformer=transformer, **NO_TEXT)
    pipe.text_encoder = transformer  # asked for its precision
    pipe.get_prompt_embeds = lambda prompt, **options: fibo_states([int(text) for text in prompt])
    return pipe


def _fibo2(scheduler: Any) -> Any:
    transformer = BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=WIDTH,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=2,
        max_num_gist_tokens=4,
        gist_step=1,
        gist_min_text_len=1,
        gist_max_text_len=3,
        axes_dims=(4, 2, 2),
        axes_lens=(8, 8, 8),
    )
    return BriaFibo2Pipeline(
        scheduler=scheduler,
        vae=None,
        transformer=filled(transformer.eval()),
        text_encoder=None,
        processor=None,
    )


def _fibo2_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """States of two layers, (N, layers, tokens, WIDTH)."""
    inputs = with_masks(prompts, guided, height=32, width=32)
    return {
        name: torch.stack([value, value * 0.5], dim=1) if name.endswith("embeds") else value
        for name, value in inputs.items()
    }


# -- ERNIE-Image, GLM-Image, HiDream ---------------------------------------------------------------


def _ernie(scheduler: Any) -> Any:
    transformer = ErnieImageTransformer2DModel(
        hidden_size=16,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=16,
        in_channels=4,
        out_channels=4,
        text_in_dim=WIDTH,
        rope_axes_dim=(4, 2, 2),
    )
    return ErnieImagePipeline(
        scheduler=scheduler, vae=None, transformer=filled(transformer.eval()), **NO_TEXT
    )


def _ernie_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Prompts of their own length each."""
    inputs: dict[str, Any] = {
        "prompt_embeds": [embeddings([prompt], TOKENS)[0, : count_words(prompt)] for prompt in prompts]
    }
    if guided:
        inputs["negative_prompt_embeds"] = [embeddings([-1], TOKENS)[0]] * len(prompts)
    return inputs | {"guidance_scale": 4.0 if guided else 1.0, "height": 64, "width": 64}


def _glm(scheduler: Any) -> Any:
    transformer = GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=8,
    )
    return GlmImagePipeline(
        scheduler=scheduler,
        vae=None,
        transformer=filled(transformer.eval()),
        processor=None,
        vision_language_encoder=None,
        **NO_TEXT,
    )


def _glm_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Codes of what is where, four in an image, and states of the text to be drawn, padded by zeros."""
    inputs: dict[str, Any] = {
        "prompt_embeds": padded(prompts, 0.0),
        "prior_token_ids": torch.tensor([[(prompt + place) % 8 for place in range(4)] for prompt in prompts]),
    }
    if guided:
        inputs["negative_prompt_embeds"] = embeddings([-1] * len(prompts), TOKENS)
    return inputs | {"guidance_scale": 4.0 if guided else 1.0, "height": 32, "width": 32}


def _hidream(scheduler: Any) -> Any:
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=WIDTH,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(4, 4),
        llama_layers=[0, 1],
    )
    encoders = {f"{part}_{i}": None for part in ("text_encoder", "tokenizer") for i in (2, 3, 4)}
    pipe: Any = HiDreamImagePipeline(
        scheduler=scheduler, vae=None, transformer=filled(transformer.eval()), **NO_TEXT, **encoders
    )
    pipe.default_sample_size = 4
    return pipe


def _hidream_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    """Of Llama the states of two layers, (layers, N, tokens, WIDTH)."""
    inputs: dict[str, Any] = {"guidance_scale": 4.0 if guided else 1.0}
    for prefix, these in {"": prompts, **({"negative_": [-1] * len(prompts)} if guided else {})}.items():
        states = embeddings(these, TOKENS)
        inputs[f"{prefix}prompt_embeds_t5"] = states
        inputs[f"{prefix}prompt_embeds_llama3"] = torch.stack([states * 0.5, states * 2.0])
        inputs[f"{prefix}pooled_prompt_embeds"] = embeddings(these)
    return inputs


# -- OmniGen, PRX ----------------------------------------------------------------------------------


class _Processor:
    """Tokens of texts as OmniGen's processor makes them, padded on the left, with a mask and places. That one itself
    needs torchvision."""

    max_image_size = 1024

    def __init__(self, tokenizer: Any, max_image_size: int) -> None:
        pass

    def __call__(self, prompts: Sequence[str], images: Any, height: int, width: int, **options: Any) -> Any:
        rows = [[int(prompt) + 2 + place for place in range(count_words(int(prompt)))] for prompt in prompts]
        features = [{"input_ids": row, "pixel_values": None, "image_sizes": None} for row in rows]
        negative = {"input_ids": [1, 1], "pixel_values": None, "image_sizes": None}
        size = [height, width]
        return OmniGenCollator(pad_token_id=0, hidden_size=16)(
            [(feature, negative, None, size) for feature in features]
        )


def _omnigen(scheduler: Any) -> Any:
    transformer = OmniGenTransformer2DModel(
        in_channels=4,
        patch_size=2,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        num_layers=1,
        pad_token_id=0,
        vocab_size=32,
        max_position_embeddings=64,
        original_max_position_embeddings=64,
        rope_scaling={"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
        pos_embed_max_size=8,
        time_step_dim=8,
    )
    denoiser = louder(filled(transformer.eval()), 2.0)
    with patch.object(pipeline_omnigen, "OmniGenMultiModalProcessor", _Processor, create=True):
        return OmniGenPipeline(scheduler=scheduler, vae=vae(4), transformer=denoiser, tokenizer=None)


def _omnigen_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return {"prompt": [str(prompt) for prompt in prompts], "height": 32, "width": 32}


def _prx_transformer(**options: Any) -> Any:
    transformer = PRXTransformer2DModel(
        in_channels=4,
        context_in_dim=WIDTH,
        hidden_size=16,
        mlp_ratio=1.0,
        num_heads=2,
        depth=1,
        axes_dim=[4, 4],
        **options,
    )
    return louder(filled(transformer.eval()), 2.0)


def _prx(scheduler: Any) -> Any:
    return PRXPipeline(transformer=_prx_transformer(), scheduler=scheduler, vae=None, **NO_TEXT)


def _prx_pixel(scheduler: Any) -> Any:
    transformer = _prx_transformer(bottleneck_size=8, resolution_embeds=True)
    return PRXPixelPipeline(transformer=transformer, scheduler=scheduler, **NO_TEXT)


def _prx_inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return masked_inputs(prompts, guided, use_resolution_binning=False)


IMAGE_FORMS: dict[str, Recipe] = {
    "BriaFiboPipeline": Recipe(
        _fibo,
        lambda prompts, guided: texts(prompts, guided) | {"height": 64, "width": 64},
        lambda transformer: transformer.x_embedder,
        words=(*_TEXT, "text_encoder_layers.0", "text_encoder_layers.1"),
    ),
    "BriaFibo2Pipeline": Recipe(
        _fibo2, _fibo2_inputs, lambda transformer: transformer.x_embedder, words=_TEXT
    ),
    "ErnieImagePipeline": Recipe(
        _ernie, _ernie_inputs, lambda transformer: transformer.x_embedder, words=("text_bth",)
    ),
    "GlmImagePipeline": Recipe(
        _glm, _glm_inputs, lambda transformer: transformer.image_projector, words=_TEXT
    ),
    "HiDreamImagePipeline": Recipe(_hidream, _hidream_inputs, lambda transformer: transformer.x_embedder),
    "OmniGenPipeline": Recipe(
        _omnigen, _omnigen_inputs, lambda transformer: transformer.patch_embedding, rows=(None, 2)
    ),
    "PRXPipeline": Recipe(
        _prx, _prx_inputs, lambda transformer: transformer.img_in, words=_TEXT, rows=(1, None)
    ),
    "PRXPixelPipeline": Recipe(
        _prx_pixel,
        _prx_inputs,
        lambda transformer: transformer.img_in[0],
        words=_TEXT,
        rows=(1, None),
    ),
}
