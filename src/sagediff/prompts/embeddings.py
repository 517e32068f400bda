"""Prompts to unit vectors: by the pipeline's own text encoder, a sentence-transformers model, or any callable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sagediff.errors import InputError, UnsupportedPipelineError
from sagediff.prompts.requests import in_order

NO_ENCODERS = "encoder by name needs sentence-transformers: pip install 'sagediff[embed]'"
Encoder: TypeAlias = str | Callable[[list[str]], Any]


@dataclass(frozen=True)
class Embeddings:
    """vectors: (N, D) float32, rows of unit length; encoder: what made them, for reports."""

    vectors: npt.NDArray[np.float32]
    encoder: str


@dataclass(frozen=True)
class TextEncoder:
    """What turns texts into vectors.

    Attributes:
        encode: from texts to an (N, D) array or tensor.
        name: for reports.
        reads: what `encode` reads of each text, (N, L) numbers: texts with equal rows, such as long ones that are cut,
            have equal vectors. None where that is not known.
    """

    encode: Callable[[list[str]], Any]
    name: str
    reads: Callable[[list[str]], npt.NDArray[np.int64]] | None = None


def text_encoder(pipe: Any = None, encoder: Encoder | None = None) -> TextEncoder:
    """What embeds prompts: `encoder` if it is given, else the pipeline's own (`embed_prompts`).

    Raises:
        InputError: neither a pipe nor an encoder, or one by name without sentence-transformers.
        UnsupportedPipelineError: the pipeline holds no text encoder of a known kind.
    """
    if encoder is None and pipe is None:
        raise InputError("embed_prompts needs a pipe with a text encoder, or an encoder")
    return TextEncoder(*named_encoder(encoder)) if encoder is not None else _own_encoder(pipe)


def unit_rows(rows: Any, count: int, name: str) -> npt.NDArray[np.float32]:
    """An encoder's answer as unit vectors, (count, D) float32.

    Raises:
        InputError: another shape, or a vector without a direction.
    """
    vectors = _array(rows, name)
    if len(vectors) != count:
        raise InputError(f"the encoder {name} returned {len(vectors)} rows for {count} prompts")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise InputError(f"the encoder {name} returned a vector that is zero or not finite")
    return np.asarray(vectors / lengths, dtype=np.float32)


def embed_prompts(
    prompts: Iterable[str], pipe: Any = None, encoder: Encoder | None = None, batch_size: int = 256
) -> Embeddings:
    """One unit vector per prompt; equal prompts are encoded once.

    Args:
        prompts: anything that has an order; it is gone through once.
        pipe: a diffusers pipeline whose own text encoder is used when `encoder` is None.
        encoder: name or folder of a sentence-transformers model (needs the `embed` extra), or a callable from
            a list of strings to an (N, D) array or tensor.
        batch_size: prompts encoded at once; changes no result beyond rounding.

    Raises:
        InputError: one string in place of a list; neither a pipe nor an encoder; or an encoder that returns another
            shape.
        UnsupportedPipelineError: the pipeline holds no text encoder of a known kind.
    """
    prompts = in_order(prompts, "prompts")
    found = text_encoder(pipe, encoder)
    unique = list(dict.fromkeys(prompts))
    parts = [
        _array(found.encode(unique[i : i + batch_size]), found.name)
        for i in range(0, len(unique), batch_size)
    ]
    if not parts:
        return Embeddings(np.zeros((0, 1), np.float32), found.name)
    vectors = unit_rows(np.concatenate(parts), len(unique), found.name)
    place = {prompt: i for i, prompt in enumerate(unique)}
    return Embeddings(vectors[[place[p] for p in prompts]], found.name)


def _array(rows: Any, name: str) -> npt.NDArray[np.float32]:
    if hasattr(rows, "detach"):
        rows = rows.detach().float().cpu().numpy()
    array = np.asarray(rows, dtype=np.float32)
    if array.ndim != 2:
        raise InputError(f"the encoder {name} returned shape {array.shape}; expected (prompts, dimensions)")
    return array


def named_encoder(encoder: Encoder) -> tuple[Callable[[list[str]], Any], str]:
    """The callable behind an encoder, which loads it, and its name for reports.

    Raises:
        InputError: a name, and sentence-transformers is not installed.
    """
    if callable(encoder):
        return encoder, getattr(encoder, "__name__", type(encoder).__name__)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(NO_ENCODERS) from error
    model = SentenceTransformer(encoder)
    return lambda texts: model.encode(texts, show_progress_bar=False), encoder


def _own_encoder(pipe: Any) -> TextEncoder:
    """The first text encoder of the pipeline that gives one vector per prompt."""
    for tokenizer_name, encoder_name in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        tokenizer, model = getattr(pipe, tokenizer_name, None), getattr(pipe, encoder_name, None)
        if tokenizer is not None and model is not None:
            name = f"{encoder_name} ({type(model).__name__})"
            pooled = partial(_pooled, tokenizer, model, _runs_on(pipe, model))
            return TextEncoder(pooled, name, partial(_read, tokenizer))
    raise UnsupportedPipelineError(
        f"{type(pipe).__name__} holds no text encoder to group prompts by; give encoder= "
        "(a sentence-transformers name or a callable)"
    )


def _runs_on(pipe: Any, model: Any) -> Any:
    """The device that hooks bring an offloaded text encoder's weights to; None where it runs where it is."""
    offloaded = any(
        type(held).__module__.startswith(
            ("accelerate.hooks", "diffusers.hooks")
        )  # whatever its private name is
        for part in model.modules()
        for held in vars(part).values()
    )
    return getattr(pipe, "_execution_device", None) if offloaded else None


def _tokens(tokenizer: Any, texts: list[str], kind: str) -> Any:
    longest = min(int(getattr(tokenizer, "model_max_length", 512)), 512)
    return tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors=kind)


def _read(tokenizer: Any, texts: list[str]) -> npt.NDArray[np.int64]:
    """Tokens and mask of each text, (N, 2 L)."""
    tokens = _tokens(tokenizer, texts, "np")
    return np.concatenate([tokens.input_ids, tokens.attention_mask], axis=1).astype(np.int64)


def _pooled(tokenizer: Any, model: Any, runs_on: Any, texts: list[str]) -> Any:
    """One vector a text: the projected or pooled state (CLIP), else the mean of the tokens' states (T5)."""
    import torch

    tokens = _tokens(tokenizer, texts, "pt")
    device = next(model.parameters()).device if runs_on is None else runs_on
    # CLIP reads its padding, as pipelines have it; encoders of other kinds (T5) are told to pass over theirs
    reads_padding = type(model).__name__.startswith("CLIP")
    masked = {} if reads_padding else {"attention_mask": tokens.attention_mask.to(device)}
    with torch.no_grad():
        output = model(tokens.input_ids.to(device), **masked)
    for field in ("text_embeds", "pooler_output"):
        if getattr(output, field, None) is not None:
            return getattr(output, field)
    if getattr(output, "last_hidden_state", None) is None:  # a language model with its head on, as FLUX.2's
        raise UnsupportedPipelineError(
            f"the pipeline's text encoder, {type(model).__name__}, gives no state to group prompts by; give encoder= "
            "(a sentence-transformers name or a callable)"
        )
    mask = tokens.attention_mask.to(output.last_hidden_state.device)[..., None]
    states = output.last_hidden_state * mask
    return states.sum(1) / mask.sum(1)
