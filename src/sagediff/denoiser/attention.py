"""Attention that reads across the rows of a call: what a row gives then depends on which others run beside it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sagediff.errors import UnsupportedPipelineError

# Beginnings of diffusers' names for attention processors that cut the batch into parts of their own
_ACROSS_ROWS = {
    "PAG": "perturbed-attention guidance (PAG) runs further rows, which its attention tells by their place in the "
    "batch; set pag_scale=0, or take the pipeline without PAG",
    "CrossFrame": "cross-frame attention reads the first row of the batch for all others; take another processor",
}


def check_attention(pipe: Any, denoiser: Any) -> None:
    """No attention of the denoiser tells rows by their place in the batch, which sharing and micro-batches change.

    Raises:
        UnsupportedPipelineError: one does.
    """
    names = {type(processor).__name__ for processor in getattr(denoiser, "attn_processors", {}).values()}
    if getattr(pipe, "do_perturbed_attention_guidance", False):
        names.add("PAG")
    for beginning, why in _ACROSS_ROWS.items():
        if any(name.startswith(beginning) for name in names):
            raise UnsupportedPipelineError(f"{type(pipe).__name__} cannot share steps: {why}")


def check_perturbed_attention(pipe: Any, keywords: Mapping[str, Any]) -> None:
    """A call with those keywords is not guided by perturbed attention; known before anything runs.

    Raises:
        UnsupportedPipelineError: it is.
    """
    parameter = inspect.signature(type(pipe).__call__).parameters.get("pag_scale")
    scale = keywords.get("pag_scale", getattr(parameter, "default", None))
    if parameter is not None and isinstance(scale, int | float) and scale > 0:
        raise UnsupportedPipelineError(f"{type(pipe).__name__} cannot share steps: {_ACROSS_ROWS['PAG']}")


@contextmanager
def attention_kept(denoiser: Any) -> Iterator[None]:
    """After an error inside the context the denoiser has the attention that it had before: pipelines that change it
    for a call put it back at that call's end only."""
    before = dict(getattr(denoiser, "attn_processors", {}))
    try:
        yield
    except BaseException:
        after = getattr(denoiser, "attn_processors", {})
        if before.keys() == after.keys() and any(after[name] is not before[name] for name in before):
            denoiser.set_attn_processor(dict(before))
        raise
