"""What LoRA files say of the sharing that they were trained for.

Reading that needs no peft.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sagediff.errors import InputError, first_line
from sagediff.files.json_input import SMALL, parse_object
from sagediff.files.lora_files import Lora
from sagediff.options import check_value
from sagediff.plan.sharing import Sharing

RECORD_KEY = "sagediff"
_RECORDED = {  # what is read of a record -> the option of sharing that it is checked as
    "share_ratio": "share_ratio",
    "max_share_ratio": "share_ratio",
    "max_group_size": "max_group_size",
    "threshold": "threshold",
}


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


def sharing_warnings(loras: Sequence[Lora], share_ratio: float, largest_group: int) -> list[str]:
    """What is asked for beyond what the LoRAs' weights were trained for, in words; nothing where that is not known."""
    words: list[str] = []
    for lora in loras:
        record = sharing_record(lora.file) if lora.weight else None
        if record is None:
            continue
        which = "the LoRA" if len(loras) == 1 else f"the LoRA {lora.path}"
        most, largest = record.get("max_share_ratio"), record.get("max_group_size")
        if most is not None and share_ratio > most + 1e-9:
            words.append(
                f"{which} was trained for share ratios up to {most:g}, this run asks for {share_ratio:g}"
            )
        if largest is not None and largest_group > largest:
            words.append(
                f"{which} was trained for groups of up to {largest}, this run has one of {largest_group}"
            )
        if lora.weight != 1 and share_ratio > 0:
            words.append(f"{which} was trained to share at weight 1, this run gives it {lora.weight:g}")
    return words
