"""A denoiser's output as one tensor, and back: several predictions (video and audio) lie side by side in each row.

What comes of it is spread, recorded and replayed as one, whatever it is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from typing import Any

import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from sagediff.errors import UnsupportedPipelineError

USUAL = ("sample",)


def prediction_of(output: Any, class_name: str, names: Sequence[str] = USUAL) -> Tensor:
    """(rows, ...) the prediction in a denoiser's output; of several (rows, all their numbers).

    Args:
        output: a tuple with an entry for each prediction, or a dataclass.
        names: those of the predictions in a dataclass, in the order of the tuple. The last ones may be missing.

    Raises:
        UnsupportedPipelineError: the output has none, or more.
    """
    found = [_as_tensor(entry) for entry in _entries(output, names)]
    if not found or any(entry is None for entry in found):
        raise UnsupportedPipelineError(
            f"{class_name} returned a {type(output).__name__} without {_counted(names)}"
        )
    tensors = [entry for entry in found if entry is not None]
    return tensors[0] if len(tensors) == 1 else torch.cat([entry.flatten(1) for entry in tensors], dim=1)


def in_form(prediction: Tensor, form: Any, names: Sequence[str] = USUAL) -> Any:
    """A prediction, as `prediction_of` gave it, put up like that output of the denoiser."""
    likes = _entries(form, names)
    pieces: list[Any]
    if len(likes) == 1:
        pieces = [list(prediction.unbind(0)) if isinstance(likes[0], list) else prediction]
    else:
        parts = torch.split(prediction, [entry[0].numel() for entry in likes], dim=1)
        pieces = [
            part.reshape(len(part), *like.shape[1:]).to(like.dtype)
            for part, like in zip(parts, likes, strict=True)
        ]
    return tuple(pieces) if isinstance(form, tuple) else type(form)(**dict(zip(names, pieces, strict=False)))


def form_like(entries: Mapping[str, Any], as_tuple: bool) -> Any:
    """An output of the denoiser to take the form from, where it was not run: with these tensors for its predictions."""
    if as_tuple:
        return tuple(entries.values())
    return make_dataclass("Prediction", [(name, Any) for name in entries], bases=(BaseOutput,))(**entries)


def _entries(output: Any, names: Sequence[str]) -> list[Any]:
    if isinstance(output, tuple):
        return list(output) if len(output) <= len(names) else []
    found = [getattr(output, name, None) for name in names]
    while found and found[-1] is None:
        found.pop()
    return found


def _as_tensor(entry: Any) -> Tensor | None:
    if isinstance(entry, list) and entry and all(isinstance(row, Tensor) for row in entry):
        return torch.stack(entry)
    return entry if isinstance(entry, Tensor) else None


def _counted(names: Sequence[str]) -> str:
    return f"one `{names[0]}`" if len(names) == 1 else " and ".join(f"`{name}`" for name in names)
