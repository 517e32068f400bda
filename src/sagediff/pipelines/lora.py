"""What a LoRA file says of the sharing that it was trained for; reading it needs no peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sagediff.errors import InputError, first_line
from sagediff.files.json_input import SMALL, parse_object
from sagediff.files.text_input import is_file, is_folder, shortened, stat_of
from sagediff.options import check_value
from sagediff.plan.sharing import Sharing

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
RECORD_KEY = "sagediff"
_RECORDED = {  # what is read of a record -> the option of sharing that it is checked as
    "share_ratio": "share_ratio",
    "max_share_ratio": "share_ratio",
    "max_group_size": "max_group_size",
    "threshold": "threshold",
}


def lora_file(path: Path) -> Path:
    """The one file behind `--lora`: the file itself, a folder's `pytorch_lora_weights.safetensors`, or its only
    .safetensors file.

    Raises:
        InputError: no such file, none or several in the folder, or one that is not safetensors.
    """
    if stat_of(path) is None:
        raise InputError(f"no such LoRA: {shortened(path)}")
    if not is_folder(path):
        if path.suffix != ".safetensors" or not is_file(path):  # a pipe would be waited for
            raise InputError(f"--lora {shortened(path)}: only .safetensors files are loaded")
        return path
    if is_file(path / WEIGHT_NAME):
        return path / WEIGHT_NAME
    found = sorted(filter(is_file, path.glob("*.safetensors")))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(
            f"--lora {path} should hold one .safetensors file, found {names}; name the file itself"
        )
    return found[0]


def sharing_record(path: Path) -> dict[str, Any] | None:
    """The record that `sagediff train` left in the file's metadata; None in files of others.

    Raises:
        InputError: not a safetensors file, or a record that is no JSON object or holds a value of the wrong kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get(RECORD_KEY)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file: {first_line(error)}") from error
    if text is None:
        return None
    where = f"{path}: the record `{RECORD_KEY}`"
    record = parse_object(text, where, max_bytes=SMALL)
    for name, checked_as in _RECORDED.items():
        if record.get(name) is not None:
            check_value(Sharing, checked_as, record[name], f"{where}: `{name}`")
    return record


def sharing_warnings(lora: Path | None, share_ratio: float, largest_group: int) -> list[str]:
    """What is asked for beyond what a LoRA's weights were trained for, in words; nothing where that is not known."""
    record = None if lora is None else sharing_record(lora)
    words: list[str] = []
    if record is None:
        return words
    most, largest = record.get("max_share_ratio"), record.get("max_group_size")
    if most is not None and share_ratio > most + 1e-9:
        words.append(
            f"the LoRA was trained for share ratios up to {most:g}, this run asks for {share_ratio:g}"
        )
    if largest is not None and largest_group > largest:
        words.append(
            f"the LoRA was trained for groups of up to {largest}, this run has one of {largest_group}"
        )
    return words
