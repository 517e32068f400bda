"""What each denoiser class's call arguments are: the one place that knows a model's particulars.

How to add a model family: put one `Family` under the denoiser's class name into `FAMILIES`.  Go through the
parameters of its `forward` and name every tensor:

    row        one entry a sample (latents, timesteps, sizes); equal among members, the first's is taken
    condition  what differs between prompts; merged over the members by the group condition
    mask       belongs to a condition; merged with it
    neither    has no row for each sample, even if its size equals the batch's by chance (FLUX: `txt_ids`)

Entries of a dictionary argument are named with a dot (`added_cond_kwargs.text_embeds`).  Nothing is guessed
from shapes: a tensor that is not named here is refused.  Then add a tiny pipeline of it to `tests/tiny.py`:
the exactness tests do the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from .errors import UnsupportedPipelineError

Role: TypeAlias = Literal["row", "condition", "mask", "neither"]
GuidanceKind: TypeAlias = Literal["batched", "two calls"]


@dataclass(frozen=True)
class Family:
    """A denoiser class's call.

    Attributes:
        sample: the argument that holds the noisy latents; its first size is the number of rows.
        arguments: role of every tensor argument, nested ones with a dot.
        guidance: "batched": one call with the negative rows first, then the conditional ones; "two calls": a
            conditional call, then a negative one in the same step.
    """

    sample: str
    arguments: Mapping[str, Role]
    guidance: GuidanceKind

    def tensors(self, arguments: Mapping[str, Any], class_name: str) -> dict[str, Tensor]:
        """Every tensor among the arguments by its (dotted) name.

        Raises:
            UnsupportedPipelineError: a tensor that the table does not name.
        """
        found: dict[str, Tensor] = {}
        for name, value in arguments.items():
            self._collect(name, value, class_name, found)
        return found

    def _collect(self, name: str, value: Any, class_name: str, found: dict[str, Tensor]) -> None:
        if isinstance(value, Tensor):
            if name not in self.arguments:
                raise _unknown_argument(name, class_name)
            found[name] = value
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                self._collect(f"{name}.{key}", entry, class_name, found)
        elif _holds_tensor(value):  # a list of tensors: ControlNet residuals, IP-Adapter embeddings
            raise _unknown_argument(name, class_name)


FAMILIES: dict[str, Family] = {
    "UNet2DConditionModel": Family(  # Stable Diffusion 1 and 2, SDXL
        sample="sample",
        arguments={
            "sample": "row",
            "timestep": "row",
            "class_labels": "row",
            "timestep_cond": "row",
            "encoder_hidden_states": "condition",
            "encoder_attention_mask": "mask",
            "added_cond_kwargs.text_embeds": "condition",
            "added_cond_kwargs.time_ids": "row",
        },
        guidance="batched",
    ),
    "SD3Transformer2DModel": Family(
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "encoder_hidden_states": "condition",
            "pooled_projections": "condition",
        },
        guidance="batched",
    ),
    "FluxTransformer2DModel": Family(
        sample="hidden_states",
        arguments={
            "hidden_states": "row",
            "timestep": "row",
            "guidance": "row",
            "encoder_hidden_states": "condition",
            "pooled_projections": "condition",
            "txt_ids": "neither",
            "img_ids": "neither",
        },
        guidance="two calls",
    ),
}


def denoiser_of(pipe: Any) -> torch.nn.Module:
    """The module that a pipeline calls at every step: its `unet`, or else its `transformer`.

    Raises:
        UnsupportedPipelineError: it has neither.
    """
    for name in ("unet", "transformer"):
        module = getattr(pipe, name, None)
        if isinstance(module, torch.nn.Module):
            return module
    raise UnsupportedPipelineError(
        f"{type(pipe).__name__} has no denoiser that sharing knows: expected a module named `unet` or "
        f"`transformer`"
    )


def family_of(denoiser: torch.nn.Module) -> Family:
    """The table's entry for a denoiser (not a compiled wrapper of it) or for one of its base classes.

    Raises:
        UnsupportedPipelineError: none is known.
    """
    for cls in type(denoiser).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    raise UnsupportedPipelineError(
        f"shared sampling does not know the denoiser class {type(denoiser).__name__}; known are "
        f"{', '.join(sorted(FAMILIES))}. To add it, put a Family under its name into "
        f"sagediff.families.FAMILIES that says which arguments of its forward are rows, conditions, masks "
        f"or neither"
    )


def with_tensors(
    arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str = ""
) -> dict[str, Any]:
    """The arguments with those tensors (by dotted name) put in; nothing of the caller's is changed."""
    replaced: dict[str, Any] = {}
    for name, value in arguments.items():
        path = f"{prefix}{name}"
        if path in tensors:
            replaced[name] = tensors[path]
        elif isinstance(value, dict):
            replaced[name] = with_tensors(value, tensors, f"{path}.")
        else:
            replaced[name] = value
    return replaced


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensor(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_tensor(entry) for entry in value)
    return isinstance(value, Tensor)


def _unknown_argument(name: str, class_name: str) -> UnsupportedPipelineError:
    return UnsupportedPipelineError(
        f"the pipeline gives its {class_name} the argument `{name}`, and the table "
        f"sagediff.families.FAMILIES does not say whether that is a row, a condition, a mask or neither; "
        f"run without the feature that passes it, or add it to the table"
    )
