"""LoRA on a denoiser: the one module that knows peft, and the file that `pipe.load_lora_weights` takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sagediff.errors import ModelError, UnsupportedPipelineError
from sagediff.files.atomic import writing
from sagediff.files.lora_files import WEIGHT_NAME
from sagediff.pipelines.lora import RECORD_KEY

# projections of attention, as diffusers' own training scripts adapt them, by the names that its models give them
_ATTENTION = re.compile(
    r"\.(to_(q|k|v|out|out\.0|qkv|qkv_mlp_proj|add_out|gate)|add_(q|k|v)_proj|to_(q|k|v)_t|to_out_t"
    r"|to_(query|key|value)|out_layer)$"
)


def target_modules(module: nn.Module, layers: str) -> list[str]:
    """Names of the layers that get an adapter: "attention" projections, or "all" linears and convolutions of
    the blocks.

    First and last layers, and embeddings of time and text, stay as they are: they set the scale of everything.
    """
    layered = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d) and getattr(part, "groups", 1) == 1
    }  # an adapter cannot be put on a convolution that keeps channels apart
    attention = [name for name in layered if _ATTENTION.search(name)]
    with_attention = {name.split(".")[0] for name in attention}
    blocks = {
        name
        for name, part in module.named_children()
        if name in with_attention and isinstance(part, nn.ModuleList)
    } | {"mid_block"}
    return [name for name in (layered if layers == "all" else attention) if name.split(".")[0] in blocks]


def check_adapter(pipe: Any, rank: int) -> None:
    """A LoRA must be of use afterwards.

    Raises:
        UnsupportedPipelineError: the pipeline takes none.
    """
    if rank and not (hasattr(pipe, "save_lora_weights") and hasattr(pipe, "load_lora_weights")):
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} takes no LoRA (it has no `load_lora_weights`); train all weights with --full"
        )


def add_adapter(module: Any, rank: int, layers: str) -> None:
    """Freeze the module and put a LoRA adapter that starts as nothing on it; its scale is 1."""
    from peft import LoraConfig

    module.requires_grad_(False)
    module.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            init_lora_weights="gaussian",
            target_modules=target_modules(module, layers),
        )
    )
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # trained in float32 whatever the rest is in


@contextmanager
def adapter_off(module: Any) -> Iterator[None]:
    """Inside, the module is the frozen base model."""
    module.disable_adapters()
    try:
        yield
    finally:
        module.enable_adapters()


def save_adapter(pipe: Any, module: Any, folder: Path, record: dict[str, Any]) -> Path:
    """Write the adapter as diffusers' own `save_lora_weights` lays it out, in float16, with `record` beside it.

    Raises:
        ModelError: a weight that is not finite, or not in float16; nothing is written.
    """
    from peft.utils import get_peft_model_state_dict

    part = "unet" if module is getattr(pipe, "unet", None) else "transformer"
    state = {k: v.detach().cpu() for k, v in get_peft_model_state_dict(module).items()}
    with writing(folder / WEIGHT_NAME) as partial:
        pipe.save_lora_weights(folder, **{f"{part}_lora_layers": state}, weight_name=partial.name)
        tensors = load_file(partial)
        with safe_open(partial, "pt") as file:
            metadata = dict(file.metadata() or {})
        metadata[RECORD_KEY] = json.dumps(record, sort_keys=True)
        tensors = {k: v.to(torch.float16).contiguous() for k, v in tensors.items()}
        bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        if bad:
            raise ModelError(
                f"{len(bad)} of {len(tensors)} tensors of the LoRA are not finite in float16 ({bad[0]} for one), so "
                f"none is written to {folder}; lower the learning rate"
            )
        save_file(tensors, partial, metadata)
        _sort_metadata(partial)
    return folder / WEIGHT_NAME


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: it is written in any, and equal weights shall be equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # as long as it was, unless texts are spelled in another way
            file.seek(8)
            file.write(text.ljust(size))
