"""Pipelines as the commands need them: on a device, in a dtype, with a LoRA's weights in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sagediff.denoiser.lora_adapters import check_lora_weights
from sagediff.denoiser.modular_call import with_plain_call
from sagediff.errors import InputError
from sagediff.files.digest import texts_digest
from sagediff.pipelines.from_images import Begins, from_images
from sagediff.pipelines.loading import load_source, quiet_libraries, supported_family, supported_parts
from sagediff.pipelines.lora_weights import merge_loras
from sagediff.pipelines.model_source import ModelSource
from sagediff.pipelines.quantized import quantization
from sagediff.pipelines.replaced_vae import load_vae
from sagediff.pipelines.run_settings import ModelOptions
from sagediff.pipelines.running import check_compiler, compile_denoisers, offload
from sagediff.pipelines.step_caches import enable_cache


def working_device(device: str) -> str:
    """The device behind --device.

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
    return device


def dtype_for(name: str | ModelSource, device: str) -> Any:
    """What `--dtype auto` is for a model on a device: a torch dtype, or one per part as `from_pretrained` takes it.

    On an accelerator it is the half precision that the model's family declares (`denoiser/table.py`). Where the family
    needs bfloat16 and the accelerator does not compute in it, float32: never float16, whose range these models leave.

    Raises:
        InputError: no such model. UnsupportedPipelineError: a denoiser class that sharing does not know.
    """
    import torch

    if torch.device(device).type == "cpu":
        return torch.float32
    family = supported_family(name)
    if family.dtype == "bfloat16" and not computes_in_bfloat16(device):
        return torch.float32
    dtype = getattr(torch, family.dtype)
    return dtype if family.vae_dtype is None else {"default": dtype, "vae": getattr(torch, family.vae_dtype)}


def computes_in_bfloat16(device: str) -> bool:
    """Whether an accelerator has bfloat16 of its own: NVIDIA's from Ampere on, others if they take it at all."""
    import torch

    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        (torch.ones(1, device=device, dtype=torch.bfloat16) * 2).cpu()
    except (RuntimeError, TypeError):  # MPS before macOS 14
        return False
    return True


def open_pipeline(model: ModelOptions, begins: Begins | None = None, *, apart: bool = False) -> Any:
    """A pipeline on its device; LoRAs are merged into the weights, so that its steps cost no more than others.

    Args:
        begins: what is to be sampled from, beside texts (`from_images`).
        apart: keep LoRAs beside the weights, so that requests can have others in their place.

    Raises:
        InputError: no such model, device or dtype, or a LoRA that does not fit the model.
    """
    import torch

    quiet_libraries()
    loras = model.loras()
    for each in loras:
        check_lora_weights(each.file)  # before a model of gigabytes is read
    place = working_device(model.device)
    if model.compile:
        check_compiler(place)
    dtype = dtype_for(model.source, place) if model.dtype == "auto" else getattr(torch, model.dtype)
    given: dict[str, Any] = {}
    if model.vae is not None:
        own = dtype.get("vae", dtype["default"]) if isinstance(dtype, dict) else dtype
        given["vae"] = load_vae(model.vae, model.source, own)
    quantized = (
        {} if model.quantize is None else quantization(model.quantize, supported_parts(model.source)[0])
    )
    pipe = load_source(model.source, scheduler=model.scheduler, dtype=dtype, quantized=quantized, **given)
    pipe = from_images(with_plain_call(pipe), begins)
    pipe.set_progress_bar_config(disable=True)
    merge_loras(pipe, loras, apart=apart)
    if model.offload is None:
        pipe = pipe.to(place)
    else:
        offload(pipe, model.offload, place)
    if model.cache is not None:
        enable_cache(pipe, model.cache)
    if model.compile:
        compile_denoisers(pipe)
    return pipe


def weights_digest(pipe: Any) -> str:
    """A hash of all weights of a pipeline as loaded, a merged LoRA's included, and of their configurations."""
    import torch

    from sagediff.files.tensor_digest import tensors_digest

    parts = []
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, torch.nn.Module):
            weights = tensors_digest(sorted(_plain(part.state_dict()).items()))
            parts.append(f"{name} {type(part).__name__} {_settings(part)} {weights}")
    return texts_digest(parts)


def _plain(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors that quantised ones are made of, under their names."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if hasattr(tensor, "__tensor_flatten__"):
            inner, _ = tensor.__tensor_flatten__()
            found |= _plain({f"{name}.{each}": getattr(tensor, each) for each in inner})
        else:
            found[name] = tensor
    return found


def _settings(part: Any) -> str:
    """A part's configuration; neither the folder that it came from nor the version of its library."""
    config = getattr(part, "config", {})
    items = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return str(sorted((k, str(v)) for k, v in items.items() if k[0] != "_" and k != "transformers_version"))
