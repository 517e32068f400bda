"""LoRA files as they are named: a path, how strongly each counts, and sets of them that hold together.

Looks at names and at whether files are there; what they hold is read elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sagediff.errors import InputError
from sagediff.files.digest import file_digest, texts_digest
from sagediff.files.text_input import is_file, is_folder, shortened, stat_of

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
_WITHOUT, _SEPARATOR = "none", ";"


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
        raise InputError(
            f"the LoRA {shortened(text)}: both {text} and {before} are there; rename one of them"
        )
    if whole or not colon or not before:
        return Lora(Path(text))
    if weight is None and not part:
        return Lora(Path(text))  # whose absence is said where it is looked for
    if weight is None or not math.isfinite(weight):
        raise InputError(
            f"the LoRA {shortened(text)}: the weight must be a finite number, got {after[:40]!r}"
        )
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
    """The one file behind a LoRA's path: the file itself, a folder's `pytorch_lora_weights.safetensors`, or its only
    .safetensors file.

    Raises:
        InputError: no such file, none or several in the folder, or one that is not safetensors.
    """
    if stat_of(path) is None:
        raise InputError(f"no such LoRA: {shortened(path)}")
    if not is_folder(path):
        if path.suffix != ".safetensors" or not is_file(path):  # a pipe would be waited for
            raise InputError(f"the LoRA {shortened(path)}: only .safetensors files are loaded")
        return path
    if is_file(path / WEIGHT_NAME):
        return path / WEIGHT_NAME
    found = sorted(filter(is_file, path.glob("*.safetensors")))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(
            f"the LoRA {path} should hold one .safetensors file, found {names}; name the file itself"
        )
    return found[0]


def check_distinct(loras: Iterable[Lora]) -> None:
    """Raises InputError: a file that is named twice."""
    seen = set()
    for each in loras:
        file = each.file.resolve()
        if file in seen:
            raise InputError(
                f"the LoRA {file} is given twice; give it once, with the weight that it should have"
            )
        seen.add(file)


@dataclass(frozen=True)
class LoraSet:
    """The LoRAs that an image is sampled with, and no others; none for the model as it is.

    Two are equal if they hold the same files at the same weights, in whatever order and however they were named.

    Attributes:
        loras: by their files' real places, in the order of those.
        said: as whoever asked wrote it, for records; None where nobody did.
    """

    loras: tuple[Lora, ...]
    said: str | list[str] | None = field(default=None, compare=False, kw_only=True)

    @classmethod
    def of(cls, value: Any, homes: Sequence[Path] = (Path(),)) -> LoraSet:
        """From `PATH` or `PATH:WEIGHT`, several of them in one text with semicolons between, or in a list; the word
        `none`, or an empty list, is a set without any.

        Args:
            homes: the folders that relative paths are looked for in, one after the other.

        Raises:
            InputError: neither, or as `parse_lora` and `lora_file`; or a file that is named twice.
        """
        if isinstance(value, LoraSet):
            return value
        texts = _texts(value)
        loras = [_found(text, homes) for text in texts]
        check_distinct(loras)
        said = [str(each) for each in value] if isinstance(value, list | tuple) else str(value)
        return cls.holding(loras, said=said)

    @classmethod
    def holding(cls, loras: Iterable[Lora], said: str | list[str] | None = None) -> LoraSet:
        """Of LoRAs whose files are there."""
        real = [replace(each, path=each.file.resolve()) for each in loras]
        return cls(tuple(sorted(real, key=lambda each: str(each.path))), said=said)

    @cached_property
    def digest(self) -> str:
        """Of the files' contents, and the weights. Raises InputError: a file that cannot be read."""
        try:
            return loras_digest(self.loras) or _WITHOUT
        except OSError as error:
            raise InputError(f"cannot read the LoRA {error.filename}: {error.strerror}") from error

    def __str__(self) -> str:
        return _SEPARATOR.join(map(str, self.loras)) or _WITHOUT


def _texts(value: Any) -> list[str]:
    """`PATH[:WEIGHT]` of each."""
    if isinstance(value, list | tuple):
        given = list(value)
    elif isinstance(value, str):
        given = value.split(_SEPARATOR)
    else:
        given = [value]
    texts = []
    for each in given:
        if not isinstance(each, str | Path) or not str(each).strip():
            raise InputError(
                f"a LoRA should be PATH or PATH:WEIGHT, or a list of them, got {shortened(repr(value), 60)}"
            )
        texts.append(str(each).strip())
    without = [each for each in texts if each.lower() == _WITHOUT]
    if without and len(texts) > 1:
        raise InputError(
            f"`{_WITHOUT}` means no LoRA at all, and stands alone, got {shortened(repr(value), 60)}"
        )
    return [] if without else texts


def _found(text: str, homes: Sequence[Path]) -> Lora:
    for home in homes:
        try:
            lora = parse_lora(str(home / Path(text).expanduser()))
        except RuntimeError as error:  # "~nobody"
            raise InputError(f"the LoRA {shortened(text)}: {error}") from error
        if stat_of(lora.path) is not None:
            _ = lora.file  # its own check
            return lora
    places = " and in ".join(dict.fromkeys(str(home.absolute()) for home in homes))
    where = "" if Path(text).is_absolute() or text.startswith("~") else f", looked for in {places}"
    raise InputError(f"no such LoRA: {shortened(text)}{where}")
