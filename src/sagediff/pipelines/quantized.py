"""Weights in fewer bits: quantised as they are loaded, or read from GGUF files."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sagediff.errors import InputError, first_line
from sagediff.files.json_input import SMALL, read_object
from sagediff.files.text_input import is_file, shortened

TORCHAO = {  # how it is named -> torchao's class
    "int8wo": "Int8WeightOnlyConfig",
    "int4wo": "Int4WeightOnlyConfig",
    "float8wo": "Float8WeightOnlyConfig",
    "int8dq": "Int8DynamicActivationInt8WeightConfig",
    "float8dq": "Float8DynamicActivationFloat8WeightConfig",
}
_KEYS = {"quant_backend", "quant_kwargs", "components_to_quantize"}


def check_quantize(text: str) -> None:
    """Refuse what is neither `torchao:KIND` nor a JSON file. Imports nothing.

    Raises:
        InputError: says what is taken; or the package is missing.
    """
    backend, colon, kind = text.partition(":")
    if colon and backend == "torchao":
        if kind not in TORCHAO:
            raise InputError(
                f"--quantize torchao:KIND: KIND must be one of {', '.join(TORCHAO)}, got {kind[:40]!r}"
            )
        if find_spec("torchao") is None:
            raise InputError(f"--quantize {text} needs torchao: pip install 'sagediff[quantized]'")
    elif not is_file(Path(text)):
        raise InputError(
            f"--quantize must be torchao:KIND (KIND one of {', '.join(TORCHAO)}), or a JSON file for diffusers' "
            f"PipelineQuantizationConfig; got {shortened(text)!r}"
        )
    else:
        _settings(Path(text))


def quantization(text: str, parts: dict[str, str]) -> dict[str, Any]:
    """What `--quantize` asks for: for each part to quantise its configuration.

    Args:
        parts: class names of the pipeline's parts. `torchao:KIND` quantises the denoiser.

    Raises:
        InputError: as `check_quantize`; a part that is not there, or a backend that does not take the settings.
    """
    check_quantize(text)
    denoisers = [part for part in ("unet", "transformer", "transformer_2") if part in parts]
    if text.startswith("torchao:"):
        return {
            part: _config("torchao", {"quant_type": text.partition(":")[2]}, parts[part], text)
            for part in denoisers
        }
    settings = _settings(Path(text))
    named = settings.get("components_to_quantize") or denoisers
    for part in named:
        if part not in parts:
            raise InputError(
                f"{text}: `components_to_quantize` names {shortened(str(part), 40)!r}; the model has {', '.join(parts)}"
            )
    return {
        part: _config(settings["quant_backend"], settings["quant_kwargs"], parts[part], text)
        for part in named
    }


def _settings(file: Path) -> dict[str, Any]:
    found = read_object(file, max_bytes=SMALL)
    named = found.get("components_to_quantize", [])
    if (
        not {"quant_backend", "quant_kwargs"} <= found.keys() <= _KEYS
        or not isinstance(found["quant_backend"], str)
        or not isinstance(found["quant_kwargs"], dict)
        or not (isinstance(named, list) and all(isinstance(part, str) for part in named))
    ):
        raise InputError(
            f"{file}: expected `quant_backend` (text), `quant_kwargs` (an object) and, if not the denoiser alone, "
            "`components_to_quantize` (a list of parts), and nothing else"
        )
    return found


def _config(backend: str, settings: dict[str, Any], class_name: str, where: str) -> Any:
    """A configuration of diffusers', or of transformers' for its parts."""
    import diffusers
    from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as OF_DIFFUSERS
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as OF_TRANSFORMERS

    table = OF_DIFFUSERS if hasattr(diffusers, class_name) else OF_TRANSFORMERS
    if backend not in table or backend == "gguf":
        raise InputError(
            f"{where}: unknown `quant_backend` {backend!r}; known are {', '.join(sorted(table))}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torchao says of libraries of its own
            if backend == "torchao":
                settings = settings | {"quant_type": _torchao(settings.get("quant_type"))}
            return table[backend](**settings)
    except InputError:
        raise
    except Exception as error:  # whatever a backend says of what it is not given, or of its own absence
        raise InputError(f"--quantize {where} does not work here: {first_line(error)}") from error


def _torchao(kind: Any) -> Any:
    if kind not in TORCHAO:
        raise InputError(f"`quant_type` must be one of {', '.join(TORCHAO)}, got {shortened(repr(kind), 60)}")
    import torchao.quantization

    return getattr(torchao.quantization, TORCHAO[kind])()


def is_quantized(part: Any) -> bool:
    """Whether a part of a pipeline has weights in fewer bits: they are of classes of their own."""
    import torch

    return isinstance(part, torch.nn.Module) and any(
        type(each) is not torch.nn.Parameter for each in part.parameters()
    )


def quantize_loaded(part: Any, config: Any, where: str) -> Any:
    """A part out of a single file, which diffusers does not quantise as it loads it; as its own quantizer would do it.

    Raises:
        InputError: a backend that cannot do so.
    """
    from diffusers import TorchAoConfig

    if not isinstance(config, TorchAoConfig):
        raise InputError(
            f"only torchao quantises the weights of a single file; for {where} take a folder of the model"
        )
    import torch
    from torchao.quantization import quantize_

    kept = {*(config.modules_to_not_convert or ()), *(getattr(part, "_keep_in_fp32_modules", None) or ())}

    def taken(module: Any, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and not kept & set(name.split("."))

    try:
        quantize_(part, config.quant_type, filter_fn=taken)
    except Exception as error:  # whatever the device or torchao lacks
        raise InputError(f"--quantize does not work here: {first_line(error)}") from error
    return part


def gguf_tensors(file: Path) -> dict[str, Any]:
    """Every tensor of a GGUF file by name, of its size once unpacked, without values (torch's `meta` device).

    Raises:
        InputError: the file is broken, or the package for it is missing.
    """
    import torch

    if find_spec("gguf") is None:
        raise InputError(f"{file} needs the package gguf: pip install 'sagediff[quantized]'")
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(file).tensors
    except Exception as error:  # whatever its parser makes of other bytes
        raise InputError(f"{file} is not a GGUF file: {first_line(error)}") from error
    return {each.name: torch.empty(tuple(map(int, each.shape[::-1])), device="meta") for each in tensors}
