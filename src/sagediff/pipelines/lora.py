"""What a LoRA file says of the sharing that it was trained for; reading it needs no peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sagediff.errors import InputError

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
RECORD_KEY = "sagediff"


def lora_file(path: Path) -> Path:
    """The one file behind `--lora`: the file itself, a folder's `pytorch_lora_weights.safetensors`, or its only
    .safetensors file.

    Raises:
        InputError: no such file, none or several in the folder, or one that is not safetensors.
    """
    if not path.exists():
        raise InputError(f"no such LoRA: {path}")
    if path.is_file():
        if path.suffix != ".safetensors":
            raise InputError(f"--lora {path}: only .safetensors files are loaded")
        return path
    if (path / WEIGHT_NAME).is_file():
        return path / WEIGHT_NAME
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(
            f"--lora {path} should hold one .safetensors file, found {names}; name the file itself"
        )
    return found[0]


def sharing_record(path: Path) -> dict[str, Any] | None:
    """The record that `sagediff train` left in the file's metadata; None in files of others.

    Raises:
        InputError: not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get(RECORD_KEY)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error
    record = json.loads(text) if text else None
    return record if isinstance(record, dict) else None


def sharing_warnings(lora: Path | None, share_ratio: float, largest_group: int) -> list[str]:
    """What is asked for beyond what a LoRA's weights were trained for, in words; nothing where that is not known."""
    record = None if lora is None else sharing_record(lora)
    words: list[str] = []
    if record is None:
        return words
    if share_ratio > float(record.get("max_share_ratio", 1.0)) + 1e-9:
        words.append(
            f"the LoRA was trained for share ratios up to {record['max_share_ratio']:g}, this run asks for "
            f"{share_ratio:g}"
        )
    if largest_group > int(record.get("max_group_size", largest_group)):
        words.append(
            f"the LoRA was trained for groups of up to {record['max_group_size']}, this run has one of "
            f"{largest_group}"
        )
    return words
