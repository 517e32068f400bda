"""A tiny Ideogram 4: a network of its own for the negative call of each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Ideogram4Pipeline, Ideogram4Transformer2DModel

from tiny.parts import TOKENS, WIDTH, Recipe, count_words, embeddings, louder


def _network() -> Any:
    return Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=16,
        adaln_dim=8,
        llm_features_dim=WIDTH,
        mrope_section=(4, 2, 2),
    ).eval()


def _ideogram(scheduler: Any) -> Any:
    pipe = Ideogram4Pipeline(
        scheduler=scheduler,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=louder(_network(), 2.0),
        unconditional_transformer=_network(),
    )

    def encode_prompt(
        prompt: Sequence[str], grid_h: int, grid_w: int, max_sequence_length: int, device: Any
    ) -> tuple[torch.Tensor, ...]:
        """As the pipeline packs texts: padded on the left, the image's tokens behind them."""
        lengths = [count_words(int(text)) for text in prompt]
        packed = torch.zeros(len(prompt), max_sequence_length + grid_h * grid_w, WIDTH)
        for row, (text, words) in enumerate(zip(prompt, lengths, strict=True)):
            packed[row, max_sequence_length - words : max_sequence_length] = embeddings([int(text)], TOKENS)[
                0, :words
            ]
        return packed, *pipe._prepare_ids(lengths, grid_h, grid_w, max_sequence_length, device)

    pipe.encode_prompt = encode_prompt
    return pipe


def _inputs(prompts: Sequence[int], guided: bool) -> dict[str, Any]:
    return {
        "prompt": [str(prompt) for prompt in prompts],
        "guidance_scale": 4.0,
        "guidance_schedule": None,
        "max_sequence_length": TOKENS,
        "height": 32,
        "width": 32,
    }


IDEOGRAM: dict[str, Recipe] = {
    "Ideogram4Pipeline": Recipe(
        _ideogram, _inputs, lambda transformer: transformer.input_proj, rows=(None, 2)
    )
}
