"""Attention that reads across the rows of a call: what a row gives then depends on which others run beside it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
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
