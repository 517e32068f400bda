"""Pipelines as the commands need them: on a device, in a dtype, with a LoRA's weights in place."""

from __future__ import annotations

import hashlib
from typing import Any

from sagediff.errors import InputError
from sagediff.pipelines.loading import load_pipeline, quiet_libraries
from sagediff.pipelines.lora import lora_file
from sagediff.pipelines.lora_weights import check_lora_weights, merge_lora
from sagediff.pipelines.run_settings import ModelOptions


def placement(device: str, dtype: str) -> tuple[str, Any]:
    """The device and torch dtype behind --device and --dtype.

    Raises:
        InputError: a device that does not work here.
    """
    import torch

    if device == "auto":
        working = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        device = next(kind for kind, works in working.items() if works)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} does not work here: {str(error).splitlines()[0]}") from error
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "float16"
    return device, getattr(torch, dtype)


def open_pipeline(model: ModelOptions) -> Any:
    """A pipeline on its device; a LoRA is merged into the weights, so that its steps cost no more than others.

    Raises:
        InputError: no such model, device or dtype, or a LoRA that does not fit the model.
    """
    quiet_libraries()
    lora = model.chosen_lora()
    file = None if lora is None else lora_file(lora)
    if file is not None:
        check_lora_weights(file)  # before a model of gigabytes is read
    place, kind = placement(model.device, model.dtype)
    pipe = load_pipeline(model.name, scheduler=model.scheduler, dtype=kind)
    pipe.set_progress_bar_config(disable=True)
    if file is not None:
        merge_lora(pipe, file)
    return pipe.to(place)


def weights_digest(pipe: Any) -> str:
    """A hash of all weights of a pipeline as loaded, a merged LoRA's included, and of their configurations."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, part in sorted(pipe.components.items()):
        if not isinstance(part, torch.nn.Module):
            continue
        digest.update(f"{name} {type(part).__name__} {getattr(part, 'config', '')}".encode())
        for key, tensor in sorted(part.state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            whole = tensor.detach().cpu().contiguous()
            digest.update(whole.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
