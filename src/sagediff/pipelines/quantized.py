"""Weights in fewer bits: GGUF files, as diffusers reads them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sagediff.errors import InputError, first_line


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
