"""A denoiser call's arguments as one tensor each, with the rows first, and back.

What is particular to a model is declared by its `Family` (`family.py`), whose methods call these functions. Lists of
tensors are padded into one; which tokens are words and which are padding is told with them. It knows no pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from numbers import Number
from typing import TYPE_CHECKING, Any

from sagediff.errors import UnsupportedPipelineError

if TYPE_CHECKING:  # the table is read before torch is imported, to refuse a model at once
    from torch import Tensor

    from sagediff.denoiser.family import Family

WORDS = " (words)"  # ends the name of the mask that comes with a padded list


def tensors_of(family: Family, arguments: Mapping[str, Any], class_name: str) -> dict[str, Tensor]:
    """Every tensor among the arguments by its (dotted) name, as (rows, ...); see `Family.tensors`."""
    found: dict[str, Tensor] = {}
    for name, value in arguments.items():
        _collect(family, name, value, class_name, found)
    for name in family.several & found.keys():
        found[name] = _by_row(name, found[name], len(found[family.sample]), class_name)
    return found


def _collect(family: Family, name: str, value: Any, class_name: str, found: dict[str, Tensor]) -> None:
    whole = family.whole(name)
    role = family.arguments.get(whole)
    if _is_tensor(value):
        if role is None or whole in family.lists:
            raise _unknown_tensor(name, class_name)
        found[name] = _rows_first(family, whole, value)
    elif role == "neither":
        pass  # holds nothing of a row's, whatever it is
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _collect(family, f"{name}.{key}", entry, class_name, found)
    elif name in family.lists and isinstance(value, list | tuple):
        if value and all(map(_is_tensor, value)):
            _pack(family, name, value, class_name, found)
        elif _holds_tensor(value):
            raise _unknown_tensor(name, class_name)
        elif any(entry != value[0] for entry in value):
            raise UnsupportedPipelineError(
                f"the pipeline gives its {class_name} unlike entries in `{name}`; sharing needs them equal for all "
                f"prompts"
            )
    elif name in family.parts and isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            if entry is not None and not _is_tensor(entry):
                raise _unknown_tensor(name, class_name)
            if entry is not None:
                found[f"{name}.{number}"] = _rows_first(family, name, entry)
    elif _holds_tensor(value):
        raise _unknown_tensor(name, class_name)
    elif (kind := _kind_of_object(value)) is not None:
        raise UnsupportedPipelineError(
            f"the pipeline gives its {class_name} the argument `{name}`, {kind}, which may hold something of each "
            f"prompt (as a KV cache does), and the table sagediff.denoiser.lookup.FAMILIES does not say that it does "
            f"not; run without the feature that passes it (`use_kv_cache=False`, say), or add it to the table as "
            f"neither"
        )


def _pack(
    family: Family, name: str, rows: Sequence[Tensor], class_name: str, found: dict[str, Tensor]
) -> None:
    import torch

    is_condition = family.arguments[name] == "condition"
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
    found[name + WORDS] = places < lengths[:, None]  # (n, most tokens)


def put(
    family: Family, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str = ""
) -> dict[str, Any]:
    """The arguments with those tensors (as `tensors_of` names them) put in; see `Family.put`."""
    replaced: dict[str, Any] = {}
    rows_run = len(tensors[family.sample])
    for name, value in arguments.items():
        path = f"{prefix}{name}"
        if path in tensors and path in family.lists:
            words = tensors.get(path + WORDS)
            rows = tensors[path].unbind(0)
            replaced[name] = (
                list(rows) if words is None else [row[kept] for row, kept in zip(rows, words, strict=True)]
            )
        elif path in tensors:
            replaced[name] = _as_given(family, path, tensors[path], value)
        elif path in family.lists and isinstance(value, list | tuple):  # all entries are equal
            replaced[name] = value[:1] * rows_run
        elif path in family.parts and isinstance(value, list | tuple):
            replaced[name] = type(value)(
                _as_given(family, path, tensors[f"{path}.{number}"], entry)
                if f"{path}.{number}" in tensors
                else entry
                for number, entry in enumerate(value)
            )
        elif isinstance(value, dict):
            replaced[name] = put(family, value, tensors, f"{path}.")
        else:
            replaced[name] = value
    return replaced


def words_of(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which tokens of a condition are words, not padding: (rows, tokens) of bool, for conditions that tell."""
    import torch

    found = {
        name: (tensors[name] != 0).flatten(2).any(dim=2) for name in family.zero_padded if name in tensors
    }
    marked = {mask: names.split() for mask, names in family.masks.items()}
    marked |= {name + WORDS: [name] for name in family.lists}
    for mask, wholes in marked.items():
        if mask not in tensors:
            continue
        for name in (name for name in tensors if family.whole(name) in wholes):
            tokens = tensors[name].shape[1]
            if family.arguments.get(mask) == "length":
                places = torch.arange(tokens, device=tensors[mask].device)
                shown = places < tensors[mask].reshape(-1, 1)
            else:
                shown = tensors[mask].flatten(1)[:, :tokens]
                additive = shown.is_floating_point() and bool((shown < 0).any())
                shown = shown >= 0 if additive else shown > 0
            found[name] = shown.to(tensors[name].device)
    return found


# -- the order of axes -----------------------------------------------------------------------------


def _rows_first(family: Family, whole: str, tensor: Tensor) -> Tensor:
    """(rows, ...), of a condition with tokens (rows, tokens, ...); a view."""
    if whole in family.axes:
        tensor = tensor.movedim(family.axes[whole], 0)
    return tensor.movedim(family.token_axes[whole], 1) if whole in family.token_axes else tensor


def _by_row(name: str, tensor: Tensor, rows: int, class_name: str) -> Tensor:
    """(entries, ...) with the entries of a row side by side, to (rows, entries of each, ...)."""
    if len(tensor) % rows:
        raise UnsupportedPipelineError(
            f"the pipeline gives its {class_name} the argument `{name}` of shape {tuple(tensor.shape)}; it should have "
            f"equally many entries for each of {rows} rows"
        )
    return tensor.reshape(rows, len(tensor) // rows, *tensor.shape[1:])


def _as_given(family: Family, path: str, tensor: Tensor, given: Any) -> Tensor:
    """A tensor (rows, ...) with its axes in the order of the argument that the pipeline gave."""
    whole = family.whole(path)
    if whole in family.several and tensor.ndim > given.ndim:
        return tensor.flatten(0, 1)
    if whole in family.token_axes:
        tensor = tensor.movedim(1, family.token_axes[whole])
    return tensor.movedim(0, family.axes[whole]) if whole in family.axes else tensor


# -- what values are -------------------------------------------------------------------------------


def _is_tensor(value: Any) -> bool:
    from torch import Tensor

    return isinstance(value, Tensor)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensor(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_tensor(entry) for entry in value)
    return _is_tensor(value)


def _kind_of_object(value: Any) -> str | None:
    """What a value is that may hold something of each row, in words; None where it cannot.

    Numbers, texts and tuples of them are settings of the whole call. A list may have an entry for each row, and
    an object anything.
    """
    import torch

    if value is None or isinstance(value, Number | str | bytes | Enum | torch.dtype | torch.device):
        return None
    if isinstance(value, tuple):
        return next((kind for entry in value if (kind := _kind_of_object(entry)) is not None), None)
    if isinstance(value, list):
        return "a list" if value else None
    return f"an object of the class {type(value).__name__}"


def _unknown_tensor(name: str, class_name: str) -> UnsupportedPipelineError:
    return UnsupportedPipelineError(
        f"the pipeline gives its {class_name} the argument `{name}`, and the table "
        f"sagediff.denoiser.lookup.FAMILIES does not say whether that is a row, a condition, a mask or neither; "
        f"run without the feature that passes it, or add it to the table"
    )
