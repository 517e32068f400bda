"""The columns of a prompt file: which are known, what they may hold, and what each decides of an image.

A new column is a row of `COLUMNS`. What would change an image and is not obeyed is refused by name; every other column
is the user's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagediff.errors import InputError
from sagediff.files.prompt_text import text_fault
from sagediff.printable import printable

MAX_COPIES = 10_000  # images of one row

_PROMPT = "prompt"
_LIKE_PROMPT = ("prompt", "prompts", "text", "caption", "captions")
_LONGEST_NAME = 40  # characters of one in a message
_SHOWN = 12  # names of columns in a message


@dataclass(frozen=True)
class Column:
    """A column that is obeyed.

    Attributes:
        name: in prompt files and in metadata; case, spaces and hyphens make no difference in prompt files.
        read: the value of a cell that says something; raises ValueError with the rule that it breaks.
        meaning: for the docs.
        sets: the field of `ImageRequest`; None for what a row decides otherwise.
        also: other names for it.
    """

    name: str
    read: Callable[[Any], Any]
    meaning: str
    sets: str | None = None
    also: tuple[str, ...] = ()


def _whole(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,19}(\.0*)?", value.strip()):
        return int(value.strip().partition(".")[0])
    if isinstance(value, float) and value.is_integer():  # what pandas makes of a column with gaps
        if abs(value) > 2**53:
            raise ValueError("is too large to be exact as a decimal number; write it as a whole number")
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("should be a whole number")


def _copies(value: object) -> int:
    count = _whole(value)
    if not 1 <= count <= MAX_COPIES:
        raise ValueError(f"should lie in [1, {MAX_COPIES:,}]")
    return count


def _number(value: object) -> float:
    if isinstance(value, str):
        if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", value.strip()):
            raise ValueError("should be a number; write it with a decimal point")
        try:
            value = float(value) if len(value) < 40 and "_" not in value else None
        except ValueError:
            value = None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError("should be a number")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("should be text")
    if fault := text_fault(value):
        raise ValueError(fault)
    return value.strip()


def _label(value: object) -> str | int:
    """A text or a whole number, as it is."""
    if isinstance(value, str):
        return _text(value)
    try:
        return _whole(value)
    except ValueError:
        raise ValueError("should be text or a whole number") from None


def _path(value: object) -> str | list[str]:
    """The path of a file, or those of several."""
    if isinstance(value, list) and value:
        return [_file(each) for each in value]
    return _file(value)


def _file(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("should be the path of an image")
    return value.strip()


def _loras(value: object) -> str | list[str]:
    """`PATH[:WEIGHT]` of one LoRA, or those of several."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list) and all(isinstance(each, str) and each.strip() for each in value):
        return [each.strip() for each in value]
    raise ValueError("should be the path of a LoRA, PATH or PATH:WEIGHT, or a list of them")


COLUMNS = (
    Column("negative_prompt", _text, "what the image should not show", "negative_prompt"),
    Column("seed", _whole, "seed of the image's noise, 0 to 2^63 - 1", "seed"),
    Column("width", _whole, "pixels; with `height`", "width"),
    Column("height", _whole, "pixels; with `width`", "height"),
    Column("guidance_scale", _number, "guidance scale, at least 0", "guidance_scale", ("guidance",)),
    Column(
        "image",
        _path,
        "image to begin from: a path, seen from the file's folder; a list of them where the model takes several",
        "image",
    ),
    Column("mask_image", _file, "mask of it: a path; what is white is painted anew", "mask_image", ("mask",)),
    Column("strength", _number, "how much of the image is replaced, above 0 to 1", "strength"),
    Column(
        "lora",
        _loras,
        "LoRA in place of the run's own: PATH or PATH:WEIGHT; several with `;` between, or in a list; `none` for none",
        "lora",
    ),
    Column(
        "num_images",
        _copies,
        "how many images of this row",
        also=("n", "num_images_per_prompt", "images_per_prompt"),
    ),
    Column(
        "id", _label, "text or a whole number; comes out in metadata, and in file names if they ask for it"
    ),
)

NOT_OBEYED = frozenset(
    (
        "prompt_2", "negative_prompt_2", "cfg_scale", "true_cfg_scale", "steps", "num_inference_steps",
        "scheduler", "sampler",
    )
)  # fmt: skip
"""What would change an image: a cell of one of these that says anything is refused."""

WRITTEN = frozenset(("file_name", "prompt", "seed", "group", "branch_step", "evaluations", "key", "bytes"))
"""Names in metadata that are ours; a user's column of that name comes out as `beside` has it."""

_BY_NAME = {name: column for column in COLUMNS for name in (column.name, *column.also)}


@dataclass(frozen=True)
class Header:
    """What the fields of rows are, by the names that they have in the file.

    Attributes:
        prompt: the field that holds the prompt.
        known: fields that are obeyed.
        refused: fields that must say nothing.
        own: the user's.
    """

    prompt: str
    known: Mapping[str, Column]
    refused: tuple[str, ...]
    own: tuple[str, ...]

    @classmethod
    def of(cls, names: Collection[str], prompt: str) -> Header:
        plain = {name: normalised(name) for name in names if name != prompt}
        known = {name: _BY_NAME[short] for name, short in plain.items() if short in _BY_NAME}
        refused = tuple(name for name, short in plain.items() if short in NOT_OBEYED)
        own = tuple(name for name in plain if name not in known and name not in refused)
        return cls(prompt, known, refused, own)

    def told(self, where: str) -> list[str]:
        """What a user should know of how the columns were read, in sentences."""
        out = []
        if self.prompt != _PROMPT:
            out.append(f"{where}: the prompts are read from {quoted(self.prompt)}")
        out += [
            f"{where}: {quoted(name)} is read as `{column.name}`"
            for name, column in self.known.items()
            if name not in (column.name, *column.also)
        ]
        return out


def prompt_name(names: Sequence[str], wanted: str | None, where: str) -> str | None:
    """Which of the fields holds the prompt; None where none does.

    Args:
        wanted: what the user says that it is called; None looks for `prompt`, else for the only one that is called much
            like it.

    Raises:
        InputError: several may be meant.
    """
    if wanted is not None:
        return wanted if wanted in names else None
    if _PROMPT in names:
        return _PROMPT
    found = [name for name in names if normalised(name) in _LIKE_PROMPT]
    if len(found) > 1:
        raise InputError(
            f"{where}: the prompts may be in {_listed(found)}; name the column with --prompt-column"
        )
    return found[0] if found else None


def no_prompts(names: Sequence[str], wanted: str | None, where: str) -> InputError:
    """The error for a table without a column of prompts."""
    hint = "" if wanted is not None else "; name the one that holds the prompts with --prompt-column"
    return InputError(
        f"{where}: no column {quoted(wanted or _PROMPT)}; the columns are {_listed(names)}{hint}"
    )


def beside(name: str) -> str:
    """What a user's column comes out as whose name metadata needs."""
    return f"row_{name}"


def is_known(name: str) -> bool:
    """Whether a column of this name is one of ours, though not that of the prompts."""
    return normalised(name) in _BY_NAME


def normalised(name: str) -> str:
    """A column's name as it is looked for."""
    return re.sub(r"[\s-]+", "_", name.strip()).lower() if len(name) < 100 else name


def is_blank(value: object) -> bool:
    """Whether a cell says nothing."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))


def quoted(name: str) -> str:
    """A column's name for a message."""
    return f"`{printable(shortened(name))}`"


def shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"


def shown(value: object) -> str:
    """A cell for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}… ({len(text)} characters)"


def _listed(names: Sequence[str]) -> str:
    short = [printable(shortened(name)) for name in names[:_SHOWN]]
    return ", ".join(short) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
