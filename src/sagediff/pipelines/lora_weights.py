"""A LoRA's weights, put into a pipeline: whole, finite, and made for it, or refused in words."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sagediff.errors import InputError, first_line
from sagediff.pipelines.lora import Lora
from sagediff.pipelines.quantized import is_quantized

_OF_LORA = re.compile(r"lora|lokr|hada|dora|diff_b?\b", re.IGNORECASE)
_HALF = re.compile(r"^(?P<layer>.+?)[._]lora(?:_linear_layer)?[._](?P<half>A|B|down|up)\b")


def check_lora_weights(file: Path) -> None:
    """Refuse a file whose tensors are not finite or lack their other half.

    Raises:
        InputError: names the tensor, or counts the pairs.
    """
    from safetensors import SafetensorError, safe_open

    halves: dict[str, set[str]] = {}
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            if not any(map(_OF_LORA.search, names)):
                raise InputError(f"{file} holds no LoRA: none of its {len(names)} tensors is of one")
            for name in names:
                tensor = opened.get_tensor(name)
                if tensor.is_floating_point() and not tensor.float().isfinite().all():
                    raise InputError(f"the LoRA {file} is broken: {name} holds values that are not finite")
                if found := _HALF.match(name):
                    halves.setdefault(found["layer"], set()).add(
                        "A" if found["half"] in ("A", "down") else "B"
                    )
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a safetensors file: {first_line(error)}") from error
    lonely = sum(len(found) == 1 for found in halves.values())
    if lonely:
        raise InputError(
            f"the LoRA {file} is not whole: {lonely} of its {len(halves)} pairs of tensors lack one of the two"
        )


def merge_loras(pipe: Any, loras: Sequence[Lora]) -> None:
    """Merge LoRAs into a pipeline's weights, as diffusers adds up its adapters; beside weights that are quantised they
    stay as they are. Says on stderr how many tensors of one fit, where not all do.

    Raises:
        InputError: the pipeline takes none, less than half of a LoRA's tensors fit, one has another shape, or the
            merged weights are not finite.
    """
    if not loras:
        return
    names = [f"sagediff_{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        _load_lora(pipe, lora.file, name)
    pipe.set_adapters(names, [lora.weight for lora in loras])
    if any(
        map(is_quantized, pipe.components.values())
    ):  # whose weights cannot be added to; the LoRAs stay beside them
        return
    try:
        pipe.fuse_lora(safe_fusing=True, adapter_names=names)
    except ValueError as error:  # what peft says of values that are not finite
        files = " and ".join(str(lora.file) for lora in loras)
        which = f"the LoRA {files} makes" if len(loras) == 1 else f"the LoRAs {files} make"
        raise InputError(f"{which} weights that are not finite: {first_line(error)}") from error
    pipe.unload_lora_weights()


def _load_lora(pipe: Any, file: Path, name: str) -> None:
    """Put a LoRA beside a pipeline's weights as the adapter `name`. Raises InputError as `merge_loras`."""
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"{type(pipe).__name__} takes no LoRA; leave out --lora {file}")
    source = {"weight_name": file.name, "local_files_only": True}
    try:
        total = _tensors_in(pipe, file, source)
        with warnings.catch_warnings():  # peft wonders whether a second adapter is meant
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            pipe.load_lora_weights(str(file.parent), adapter_name=name, **source)
    except Exception as error:  # whatever a wrong file makes diffusers and peft raise
        if "Target modules" in str(error):
            raise _of_another_base(file, 0, 0) from error
        raise InputError(f"cannot load the LoRA {file}: {_difference(error)}") from error
    fitting = _count(
        each for part in _modules(pipe) for each, _ in part.named_parameters() if f".{name}" in each
    )
    if not any(name in adapters for adapters in pipe.get_list_adapters().values()) or 2 * fitting < total:
        raise _of_another_base(file, fitting, total)
    if fitting < total:
        print(
            f"warning: {fitting} of the {total} tensors of the LoRA {file} fit this model, the others are left out; "
            "it may have been made for another base",
            file=sys.stderr,
        )


def _of_another_base(file: Path, fitting: int, total: int) -> InputError:
    counts = f"{fitting} of its {total} tensors fit" if fitting else "it holds no layers of this model"
    return InputError(f"the LoRA {file} was made for another base: {counts}")


def _tensors_in(pipe: Any, file: Path, source: dict[str, Any]) -> int:
    """How many tensors of a LoRA the file holds, as diffusers names them."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        written = sum(bool(_HALF.match(name)) for name in opened.keys())  # noqa: SIM118
    options = dict(source)
    if "unet_config" in inspect.signature(pipe.load_lora_weights).parameters or hasattr(pipe, "unet"):
        options["unet_config"] = pipe.unet.config  # names of blocks are told apart by it
    found = pipe.lora_state_dict(str(file.parent), **options)
    state = found[0] if isinstance(found, tuple) else found
    return max(written, _count(state))  # a tensor may become several; others are dropped


def _count(names: Iterable[str]) -> int:
    return sum("lora" in name and "alpha" not in name for name in names)


def _modules(pipe: Any) -> list[Any]:
    import torch

    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def _difference(error: Exception) -> str:
    """What torch says of tensors of another shape comes after its first line."""
    lines = [line.strip() for line in str(error).splitlines()]
    mismatches = [line for line in lines if line.startswith("size mismatch")]
    if not mismatches:
        return first_line(error)
    more = f" (and {len(mismatches) - 1} more)" if len(mismatches) > 1 else ""
    return f"it has another shape than this model: {mismatches[0]}{more}"
