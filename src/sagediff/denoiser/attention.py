"""Attention that reads across the rows of a call: what a row gives then depends on which others run beside it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sagediff.denoiser.guidance import Way
from sagediff.errors import UnsupportedPipelineError

# Beginnings of diffusers' names for attention processors that cut the batch into parts of their own
_ACROSS_ROWS = {
    "PAG": "perturbed-attention guidance (PAG) runs further rows, which its attention tells by their place in the "
    "batch, and this pipeline does not say that it has them; take diffusers' PAG pipeline, or other processors",
    "CrossFrame": "cross-frame attention reads the first row of the batch for all others; take another processor",
}


def check_attention(pipe: Any, denoiser: Any, way: Way) -> None:
    """No attention of the denoiser tells rows by their place in the batch, which sharing and micro-batches change.

    Args:
        way: in which the pipeline guides; one that is `whole` keeps each part in its place.

    Raises:
        UnsupportedPipelineError: one does.
    """
    names = {type(processor).__name__ for processor in getattr(denoiser, "attn_processors", {}).values()}
    for beginning, why in _ACROSS_ROWS.items():
        if not (way.whole and beginning == "PAG") and any(name.startswith(beginning) for name in names):
            raise UnsupportedPipelineError(f"{type(pipe).__name__} cannot share steps: {why}")


def check_perturbed_attention(pipe: Any, keywords: Mapping[str, Any], leaves_out_guidance: bool) -> None:
    """A call with those keywords is not guided by perturbed attention where guidance is left out in some steps; known
    before anything runs.

    Raises:
        UnsupportedPipelineError: it is.
    """
    if not leaves_out_guidance:
        return
    parameter = inspect.signature(type(pipe).__call__).parameters.get("pag_scale")
    scale = keywords.get("pag_scale", getattr(parameter, "default", None))
    if parameter is not None and isinstance(scale, int | float) and scale > 0:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} cannot share steps without guidance: perturbed-attention guidance (PAG) tells its "
            f"parts by their place in the batch, so none can be left out; set shared_guidance=None and unguided=0, or "
            f"pag_scale=0"
        )


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
