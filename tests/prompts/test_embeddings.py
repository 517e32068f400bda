"""One unit vector per prompt, whatever encodes it: equal prompts once, in batches of any size."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading
from tiny import tiny
from transformers import T5Config, T5EncoderModel

from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.prompts.embeddings import embed_prompts

CAPTIONS = [
    "a small cat at the top on a red background",
    "a large cat at the top on a red background",
    "a large heart at the bottom left on a black background",
    "a small cat at the top on a red background",
]


class Letters:
    """An encoder that counts letters, and remembers what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, texts: list[str]) -> list[list[int]]:
        self.batches.append(texts)
        return [[text.count(letter) for letter in "abcdefgh"] for text in texts]


def test_rows_have_unit_length_and_stand_in_the_order_of_the_prompts(demo: Any) -> None:
    for found in (embed_prompts(CAPTIONS, demo), embed_prompts(CAPTIONS, encoder=Letters())):
        assert len(found.vectors) == len(CAPTIONS) and found.vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
        assert np.array_equal(found.vectors[0], found.vectors[3])
        back = embed_prompts(CAPTIONS[::-1], demo if "CLIP" in found.encoder else None, encoder_of(found))
        np.testing.assert_allclose(back.vectors[::-1], found.vectors, atol=1e-5)


def encoder_of(found: Any) -> Callable[[list[str]], Any] | None:
    return None if "CLIP" in found.encoder else Letters()


def test_equal_prompts_are_encoded_once_in_batches_of_the_size_asked() -> None:
    encoder = Letters()
    prompts = ["abc", "a", "abc", "b", "a", "h"]
    found = embed_prompts(prompts, encoder=encoder, batch_size=2)
    assert encoder.batches == [["abc", "a"], ["b", "h"]]
    assert found.vectors[:3].argmax(1).tolist() == [0, 0, 0]
    assert found.vectors[5].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert found.encoder == "Letters"


@pytest.mark.parametrize("size", [1, 3])
def test_the_batch_size_changes_nothing(demo: Any, size: int) -> None:
    whole = embed_prompts(CAPTIONS, demo).vectors
    np.testing.assert_allclose(embed_prompts(CAPTIONS, demo, batch_size=size).vectors, whole, atol=1e-5)


def test_a_callable_may_return_a_tensor_of_any_kind_and_goes_before_the_pipes_own(demo: Any) -> None:
    def halves(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text), 1.0] for text in texts], dtype=torch.float16, requires_grad=True)

    found = embed_prompts(["ab", "abcd"], demo, encoder=halves)
    assert found.encoder == "halves"
    np.testing.assert_allclose(found.vectors, [[2 / 5**0.5, 1 / 5**0.5], [4 / 17**0.5, 1 / 17**0.5]], 1e-6)


def test_the_encoder_is_named(demo: Any) -> None:
    assert "text_encoder (CLIPTextModel)" in embed_prompts(CAPTIONS[:1], demo).encoder


def test_no_prompts_give_no_rows() -> None:
    assert embed_prompts([], encoder=Letters()).vectors.shape[0] == 0


@pytest.mark.parametrize(
    "encoder, words",
    [
        (lambda texts: np.ones(len(texts)), r"shape \(2,\)"),
        (lambda texts: np.ones((len(texts), 2, 2)), r"shape \(2, 2, 2\)"),
        (lambda texts: np.ones((len(texts) + 1, 4)), "3 rows for 2 prompts"),
        (lambda texts: np.zeros((len(texts), 4)), "zero or not finite"),
        (lambda texts: np.full((len(texts), 4), np.inf), "zero or not finite"),
        (lambda texts: torch.full((len(texts), 4), float("nan")), "zero or not finite"),
    ],
)
def test_an_encoder_that_returns_something_else_is_refused(encoder: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        embed_prompts(["a", "b"], encoder=encoder)


class Characters:
    """A tokenizer: one token a character, padded to a length."""

    def __init__(self, longest: int) -> None:
        self.model_max_length = longest

    def __call__(self, texts: list[str], max_length: int, **options: Any) -> Any:
        tokens = [[ord(letter) % 31 + 1 for letter in text][:max_length] for text in texts]
        ids = torch.tensor([row + [0] * (max_length - len(row)) for row in tokens])
        return SimpleNamespace(input_ids=ids, attention_mask=(ids > 0).long())


def test_an_encoder_without_a_pooled_state_passes_over_its_padding() -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    encoder = T5EncoderModel(config).eval()
    short, long = (
        embed_prompts(
            ["a cat", "a dog"], SimpleNamespace(tokenizer=Characters(n), text_encoder=encoder)
        ).vectors
        for n in (6, 40)
    )
    np.testing.assert_allclose(short, long, atol=1e-5)
    assert not np.allclose(short[0], short[1], atol=1e-3)


def test_an_encoder_without_any_state_is_refused() -> None:
    class Head(torch.nn.Linear):
        def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return SimpleNamespace(logits=ids)

    pipe = SimpleNamespace(tokenizer=Characters(6), text_encoder=Head(1, 1))
    with pytest.raises(UnsupportedPipelineError, match=r"Head, gives no state.*give encoder="):
        embed_prompts(["a"], pipe)


def test_a_pipeline_without_a_text_encoder_is_refused_with_words_on_what_to_do() -> None:
    with pytest.raises(UnsupportedPipelineError, match=r"no text encoder.*give encoder="):
        embed_prompts(["a"], tiny("sd").pipe)
    with pytest.raises(InputError, match="needs a pipe"):
        embed_prompts(["a"])


def test_the_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"pip install 'sagediff\[embed\]'"):
        embed_prompts(["a"], encoder="all-MiniLM-L6-v2")


def _no_hook(layer: torch.nn.Module) -> None:
    pass


def _hook_of_accelerate(layer: torch.nn.Module) -> None:
    add_hook_to_module(layer, ModelHook())


def _hook_of_diffusers(layer: torch.nn.Module) -> None:
    apply_group_offloading(layer, torch.device("cpu"), offload_type="leaf_level")


@pytest.mark.parametrize(
    ("offload", "device"), [(_no_hook, "cpu"), (_hook_of_accelerate, "meta"), (_hook_of_diffusers, "meta")]
)
def test_an_offloaded_encoder_is_given_its_words_where_its_hooks_bring_it(
    offload: Callable[[torch.nn.Module], None], device: str, demo: Any
) -> None:
    """Offloaded weights are not where they will run; `meta` stands for an accelerator."""
    seen: list[str] = []

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            seen.extend((ids.device.type, attention_mask.device.type))
            return SimpleNamespace(text_embeds=torch.ones(len(ids), 3))

    encoder = Encoder()
    offload(encoder.layer)
    pipe = SimpleNamespace(
        tokenizer=demo.tokenizer, text_encoder=encoder, _execution_device=torch.device("meta")
    )
    assert embed_prompts(["a cat"], pipe).vectors.shape == (1, 3)
    assert seen == [device, device]
