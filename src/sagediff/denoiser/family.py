"""What a denoiser's call looks like, as data: `Family`, one row of the table in `table.py`.

A family turns the arguments of a call into one tensor each with a row per sample, and back.  Lists of tensors
are padded into one on the way; which tokens are words and which are padding is told with them.  It knows no
model and no pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sagediff.denoiser.convention import Convention
from sagediff.errors import UnsupportedPipelineError

if TYPE_CHECKING:  # the table is read before torch is imported, to refuse a model at once
    from torch import Tensor

Role: TypeAlias = Literal["row", "condition", "mask", "neither"]
GuidanceKind: TypeAlias = Literal["batched", "two calls"]
_WORDS = " (words)"  # ends the name of the mask that comes with a padded list


@dataclass(frozen=True)
class Family:
    """A denoiser class's call.

    Attributes:
        sample: the argument that holds the noisy latents; its first size is the number of rows.
        arguments: role of every tensor argument, nested ones with a dot.
        guidance: "batched": one call with the negative and the conditional rows; "two calls": one call for
            each, in the same step.
        first: which of both comes first in the batch, or in the step.
        masks: for every mask the condition whose tokens it marks, entry i the token i; it may be longer than
            the condition. 1 or True shows a token (or 0, in a mask that hides by a negative number).
        zero_padded: conditions that come without a mask, padded with tokens that are all zero.
        lists: arguments that are a list with one entry per row. Tensors of a condition may differ in their number
            of tokens; entries that hold no tensor (sizes) must be equal.
        parts: arguments that may be a list or tuple of tensors, each with a row per sample (ControlNet's residuals, one
            tensor per block); the part i is named with a dot, `name.i`, and has the role of the whole.
        scale: the pipeline's argument for the scale of classifier-free guidance.
        unguided_scale: the value of that argument at which the prediction is the conditional one: 1 where
            pipelines compute u + s (c - u), 0 where c + s (c - u).
        makes: what the pipelines make.
        fps: of videos, how many frames per second their documented example shows.
        dtype: the half precision of their documented example. "bfloat16" where activations are larger than float16
            can hold, which would give black images.
        vae_dtype: that of the autoencoder, where it is another.
        convention: how its pipelines tell time and read predictions; None where training does not know, and refuses.

    Raises:
        ValueError: a declaration that contradicts itself.
    """

    sample: str
    arguments: Mapping[str, Role]
    guidance: GuidanceKind
    first: Literal["negative", "conditional"]
    masks: Mapping[str, str] = field(default_factory=dict)
    zero_padded: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()
    scale: Literal["guidance_scale", "true_cfg_scale"] = "guidance_scale"
    unguided_scale: float = 1.0
    makes: Literal["images", "videos"] = "images"
    fps: float = 16.0
    dtype: Literal["float16", "bfloat16"] = "float16"
    vae_dtype: Literal["float32"] | None = None
    convention: Convention | None = None

    def __post_init__(self) -> None:
        if self.guidance == "two calls" and self.first == "negative":
            # a negative call that is left out takes the output of the conditional one, which must be there
            raise ValueError(
                "two calls with the negative one first cannot be shared: what stands in for it is missing"
            )
        if set(self.masks) != {name for name, role in self.arguments.items() if role == "mask"}:
            raise ValueError("`masks` must say of every mask which condition it belongs to")
        padded = [*self.masks.values(), *self.zero_padded]
        if wrong := [name for name in padded if self.arguments.get(name) != "condition"]:
            raise ValueError(f"padding is declared for {', '.join(wrong)}, which is no condition")
        if wrong := [name for name in self.lists if self.arguments.get(name) not in ("row", "condition")]:
            raise ValueError(f"{', '.join(wrong)}: only rows and conditions can be lists")
        if self.parts - set(self.arguments) or self.parts & self.lists:
            raise ValueError(
                f"{', '.join(sorted(self.parts))}: parts need a role, and are no lists with an entry per row"
            )

    def role(self, name: str) -> Role:
        """The role of a tensor that `tensors` gave."""
        if name.endswith(_WORDS):
            return "mask"
        whole = name.rpartition(".")[0]
        return self.arguments[whole if whole in self.parts else name]

    # -- arguments to tensors, and back ------------------------------------------------------------

    def tensors(self, arguments: Mapping[str, Any], class_name: str) -> dict[str, Tensor]:
        """Every tensor among the arguments by its (dotted) name; lists as one padded tensor.

        With the list of a condition comes a mask of its words, named after it.

        Raises:
            UnsupportedPipelineError: a tensor that the table does not name, or a list that cannot be one tensor.
        """
        found: dict[str, Tensor] = {}
        for name, value in arguments.items():
            self._collect(name, value, class_name, found)
        return found

    def _collect(self, name: str, value: Any, class_name: str, found: dict[str, Tensor]) -> None:
        if _is_tensor(value):
            if name not in self.arguments or name in self.lists:
                raise _unknown_argument(name, class_name)
            found[name] = value
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                self._collect(f"{name}.{key}", entry, class_name, found)
        elif name in self.lists and isinstance(value, list | tuple) and not _holds_tensor(value):
            if any(entry != value[0] for entry in value):
                raise UnsupportedPipelineError(
                    f"the pipeline gives its {class_name} unlike entries in `{name}`; sharing needs them equal for "
                    f"all prompts"
                )
        elif _holds_tensor(value):
            if name in self.lists and all(map(_is_tensor, value)):
                self._pack(name, value, class_name, found)
            elif name in self.parts and all(map(_is_tensor, value)):
                found |= {f"{name}.{number}": entry for number, entry in enumerate(value)}
            elif self.arguments.get(name) != "neither":  # T2I-Adapter's features
                raise _unknown_argument(name, class_name)

    def _pack(self, name: str, rows: Sequence[Tensor], class_name: str, found: dict[str, Tensor]) -> None:
        import torch

        is_condition = self.arguments[name] == "condition"
        shapes = {tuple(row.shape[1:] if is_condition else row.shape) for row in rows}
        if len(shapes) > 1:
            raise UnsupportedPipelineError(
                f"the pipeline gives its {class_name} a list `{name}` of unlike shapes, "
                f"{' and '.join(map(str, sorted(shapes)))}; sharing needs rows of one size"
            )
        if not is_condition:
            found[name] = torch.stack(list(rows))
            return
        found[name] = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)  # (n, most tokens, ...)
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        places = torch.arange(found[name].shape[1], device=lengths.device)
        found[name + _WORDS] = places < lengths[:, None]  # (n, most tokens)

    def put(
        self, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str = ""
    ) -> dict[str, Any]:
        """The arguments with those tensors (as `tensors` names them) put in; nothing of the caller's is changed."""
        replaced: dict[str, Any] = {}
        rows_run = len(tensors[self.sample])
        for name, value in arguments.items():
            path = f"{prefix}{name}"
            if path in tensors and path in self.lists:
                words = tensors.get(path + _WORDS)
                rows = tensors[path].unbind(0)
                replaced[name] = (
                    list(rows)
                    if words is None
                    else [row[kept] for row, kept in zip(rows, words, strict=True)]
                )
            elif path in tensors:
                replaced[name] = tensors[path]
            elif path in self.lists and isinstance(value, list | tuple):  # all entries are equal
                replaced[name] = value[:1] * rows_run
            elif path in self.parts and isinstance(value, list | tuple):
                replaced[name] = type(value)(tensors[f"{path}.{number}"] for number in range(len(value)))
            elif isinstance(value, dict):
                replaced[name] = self.put(value, tensors, f"{path}.")
            else:
                replaced[name] = value
        return replaced

    def words(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which tokens of a condition are words, not padding: (n, tokens) of bool, for conditions that tell."""
        found = {
            name: (tensors[name] != 0).flatten(2).any(dim=2) for name in self.zero_padded if name in tensors
        }
        masks = dict(self.masks) | {name + _WORDS: name for name in self.lists}
        for mask, name in masks.items():
            if mask in tensors and name in tensors:
                shown = tensors[mask].flatten(1)[:, : tensors[name].shape[1]]
                additive = shown.is_floating_point() and bool((shown < 0).any())
                found[name] = (shown >= 0 if additive else shown > 0).to(tensors[name].device)
        return found


def _is_tensor(value: Any) -> bool:
    from torch import Tensor

    return isinstance(value, Tensor)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensor(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_tensor(entry) for entry in value)
    return _is_tensor(value)


def _unknown_argument(name: str, class_name: str) -> UnsupportedPipelineError:
    return UnsupportedPipelineError(
        f"the pipeline gives its {class_name} the argument `{name}`, and the table "
        f"sagediff.denoiser.lookup.FAMILIES does not say whether that is a row, a condition, a mask or neither; "
        f"run without the feature that passes it, or add it to the table"
    )
