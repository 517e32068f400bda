"""Options of the command line, read from the dataclasses and settings that declare them."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sagediff.errors import InputError
from sagediff.options import option, types_of
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions
from sagediff.plan.sharing import Sharing
from sagediff.prompts.image_list import RequestOptions

_GROUPS = {
    "Prompts": "",
    "Data": "",
    "Model": "",
    "Sampling": "",
    "Sharing": "Where the model, its LoRA or --policy name one, that is the default.",
    "Optimization": "",
    "Objective": "",
    "Comparison": "",
    "Measuring": "",
    "Server": "",
    "Output": "",
    "Scale": "",
}
GROUPS = {
    name: Group(name, help=note, sort_key=number) for number, (name, note) in enumerate(_GROUPS.items())
}
_SIZE = re.compile(r"(\d{1,6})\s*[x\u00d7]\s*(\d{1,6})")


def renamed(cls: type) -> dict[str, str]:
    """Options whose flag is not their field's own name."""
    return {
        each.name: each.metadata["flag"] for each in fields(cls) if isinstance(each.metadata.get("flag"), str)
    }


FLAGS = renamed(ModelOptions) | renamed(SamplingOptions) | renamed(Sharing)


def flag_name(name: str) -> str:
    """What an option is called behind its two dashes."""
    return str(FLAGS.get(name, name)).replace("_", "-")


def of(group: str, *names: str, help: str = "", **more: Any) -> Parameter:
    """A parameter of a command in one of the groups of its help."""
    return Parameter(name=list(names) or None, group=GROUPS[group], help=help or None, **more)


def flattened(group: str) -> Parameter:
    """A parameter whose fields are options."""
    return Parameter(name="*", group=GROUPS[group])


def given(cls: type, only: Collection[str] | None = None) -> Any:
    """The options of a dataclass as a command takes them: each None until it is named; `named` has the rest.

    Args:
        only: names of the options, in the order of the help page; None for all that have a flag.
    """
    entries = []
    declared = {each.name: each for each in fields(cls)}
    for each in declared.values() if only is None else map(declared.__getitem__, only):
        about = each.metadata
        if about.get("flag", False) is False:
            continue
        hint = types_of(cls)[each.name]
        if about["words"]:
            hint = hint | Literal[tuple(about["words"])]
        words = {value: word for word, value in about["words"].items()}
        default = words.get(each.default, each.default)
        if isinstance(default, tuple | float):
            default = " ".join(
                f"{number:g}" for number in ((default,) if isinstance(default, float) else default)
            )
        if default is MISSING:
            shown = " [required]"
        else:
            shown = "" if default is None or default is False or default == "" else f" [default: {default}]"
        entries.append(
            (each.name, hint | None, field(default=None, metadata={"help": about["help"] + shown}))
        )
    made = make_dataclass(f"Given{cls.__name__}", entries, frozen=True, kw_only=True)
    made.__module__ = __name__  # cyclopts looks there for what the hints mean
    return made


def given_sharing(beside: type | None = None) -> Any:
    """As `given`, the options of sharing but for those that a command's own options list."""
    listed = {each.name for each in fields(beside)} if beside else set()
    return given(Sharing, [each.name for each in fields(Sharing) if each.name not in listed])


def given_settings(cls: Any, names: str) -> Any:
    """As `given`, of settings that pydantic declares; names with spaces between them."""
    entries = []
    for name in names.split():
        each = cls.model_fields[name]
        text, _, without = " ".join(each.description.split()).partition(" None: ")
        default = without.rstrip(".") if each.default is None else each.default
        default = f"{default:g}" if isinstance(default, float) else default
        shown = "" if default is False or default == "" else f" [default: {default}]"
        about = field(default=None, metadata={"help": text + shown})
        entries.append((name, each.annotation | None, about))
    made = make_dataclass(f"Given{cls.__name__}", entries, frozen=True, kw_only=True)
    made.__module__ = __name__
    return made


def named(options: Any) -> dict[str, Any]:
    """What was named of a `given` dataclass."""
    return {} if options is None else {k: v for k, v in vars(options).items() if v is not None}


if TYPE_CHECKING:
    GivenSharing = Any
else:
    GivenSharing = given_sharing()

Prompts = Annotated[str, of("Prompts", help="Prompts, each in quotes.", show_default=False)]
PromptFile = Annotated[
    Path | None,
    of(
        "Prompts",
        "--prompts",
        help="File: .txt, .jsonl, .json, .csv, .tsv, also .gz, or .parquet; or '-'.",
        allow_leading_hyphen=True,  # for "-" itself
    ),
]


def _again(name: str) -> Any:
    """A field of `RequestOptions` once more, for another annotation."""
    declared = next(each for each in fields(RequestOptions) if each.name == name)
    return field(default=declared.default, metadata=declared.metadata)


@dataclass(frozen=True)
class ShortRequestOptions(RequestOptions):
    """The same, shorter to type."""

    images_per_prompt: Annotated[int, Parameter(alias="-n")] = _again("images_per_prompt")
    size: str | None = option(None, "Both, as in 768x512. [default: the model's own]")

    def __post_init__(self) -> None:
        if self.size is not None:
            sides = _SIZE.fullmatch(self.size.strip().lower())
            if sides is None:
                raise InputError(
                    f"--size takes width and height in pixels, as in 768x512; got {self.size[:100]!r}"
                )
            if self.width is not None or self.height is not None:
                raise InputError("give --size, or --width and --height, not both")
            object.__setattr__(self, "width", int(sides[1]))
            object.__setattr__(self, "height", int(sides[2]))
        super().__post_init__()


Requested = Annotated[ShortRequestOptions, flattened("Prompts")]
Model = Annotated[ModelOptions, flattened("Model")]
Sampling = Annotated[SamplingOptions, flattened("Sampling")]
SharingOptions = Annotated[GivenSharing | None, flattened("Sharing")]
Policy = Annotated[
    Path | None,
    of("Sharing", help="File of these options, as `sagediff tune` writes it. [default: none]"),
]


def whole(name: str, text: str | None) -> int | Literal["auto"] | None:
    """A whole number of at least 1, or 'auto'.

    Raises:
        InputError: neither.
    """
    if text is None or text == "auto":
        return "auto" if text else None
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise InputError(f"{name} must be a whole number of at least 1, or 'auto'; got {text[:100]!r}")
    return int(text)
