"""A run's LoRA files: which, how strongly each counts, and what it says of the sharing that it was trained for.

Reading that needs no peft.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagediff.errors import InputError, first_line
from sagediff.files.digest import file_digest, texts_digest
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


@dataclass(frozen=True)
class Lora:
    """A LoRA of a run.

    Attributes:
        path: as it was named, a file or a folder.
        weight: how strongly it counts; 1 is as it was trained, 0 not at all.
    """

    path: Path
    weight: float = 1.0

    @property
    def file(self) -> Path:
        """The file itself. Raises InputError as `lora_file`."""
        return lora_file(self.path)

    def __str__(self) -> str:
        return str(self.path) if self.weight == 1 else f"{self.path}:{self.weight!r}"


def parse_lora(text: str) -> Lora:
    """`PATH` or `PATH:WEIGHT`. A colon may be part of the path: what follows the last one is a weight only if it is a
    number, or if what stands before it is there and the whole is not.

    Raises:
        InputError: no such LoRA, a weight that is no finite number, or a text that can be read in both ways.
    """
    before, colon, after = text.rpartition(":")
    whole = stat_of(Path(text)) is not None
    part = bool(colon and before) and stat_of(Path(before)) is not None
    weight = _number(after)
    if whole and part and weight is not None:
        raise InputError(f"--lora {shortened(text)}: both {text} and {before} are there; rename one of them")
    if whole or not colon or not before:
        return Lora(Path(text))
    if weight is None and not part:
        return Lora(Path(text))  # whose absence is said where it is looked for
    if weight is None or not math.isfinite(weight):
        raise InputError(f"--lora {shortened(text)}: the weight must be a finite number, got {after[:40]!r}")
    return Lora(Path(before), weight)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def loras_digest(loras: Sequence[Lora]) -> str | None:
    """Digest of LoRA files in their order, with their weights; None for no LoRA."""
    if not loras:
        return None
    if len(loras) == 1 and loras[0].weight == 1:
        return file_digest(loras[0].file)
    return texts_digest(f"{file_digest(each.file)} {each.weight!r}" for each in loras)


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
