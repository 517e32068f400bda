"""Options of the command line, read from the dataclasses and settings that declare them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sagediff.errors import InputError
from sagediff.options import types_of
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions
from sagediff.plan.sharing import Sharing
from sagediff.prompts.image_list import RequestOptions

_ORDER = ("Prompts", "Model", "Sampling", "Sharing", "Training", "Comparison", "Server", "Output", "Scale")
GROUPS = {name: Group(name, sort_key=number) for number, name in enumerate(_ORDER)}


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


def given(cls: type, source: str = "", only: Collection[str] | None = None) -> Any:
    """The options of a dataclass as a command takes them: each None until it is named; `named` has the rest.

    Args:
        source: where a default comes from, in words before the declared one.
        only: names of the options; None for all that have a flag.
    """
    entries = []
    for each in fields(cls):
        about = each.metadata
        if about.get("flag", False) is False or (only is not None and each.name not in only):
            continue
        hint = types_of(cls)[each.name]
        if about["words"]:
            hint = hint | Literal[tuple(about["words"])]
        words = {value: word for word, value in about["words"].items()}
        default = words.get(each.default, each.default)
        if isinstance(default, tuple):
            default = " ".join(map(str, default))
        shown = "" if default in (None, MISSING, "") else f" [default: {source}{default}]"
        entries.append(
            (each.name, hint | None, field(default=None, metadata={"help": about["help"] + shown}))
        )
    made = make_dataclass(f"Given{cls.__name__}", entries, frozen=True, kw_only=True)
    made.__module__ = __name__  # cyclopts looks there for what the hints mean
    return made


def given_sharing(beside: type | None = None) -> Any:
    """As `given`, the options of sharing but for those that a command's own options list."""
    listed = {each.name for each in fields(beside)} if beside else set()
    return given(Sharing, "the model's own, else ", {each.name for each in fields(Sharing)} - listed)


def given_settings(cls: Any, names: str) -> Any:
    """As `given`, of settings that pydantic declares; names with spaces between them."""
    entries = []
    for name in names.split():
        each = cls.model_fields[name]
        shown = "" if each.default is None else f" [default: {each.default}]"
        about = field(default=None, metadata={"help": " ".join(each.description.split()) + shown})
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
        help="File of prompts: .txt (one per line), .jsonl, .json, .csv or .tsv (column `prompt`), each also as .gz, "
        "or .parquet; '-' reads standard input.",
        allow_leading_hyphen=True,  # for "-" itself
    ),
]
Requested = Annotated[RequestOptions, flattened("Prompts")]
Model = Annotated[ModelOptions, flattened("Model")]
Sampling = Annotated[SamplingOptions, flattened("Sampling")]
SharingOptions = Annotated[GivenSharing | None, flattened("Sharing")]
Policy = Annotated[
    Path | None,
    of("Sharing", help="File of sharing options, as `sagediff tune` writes it; options named beside it win."),
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
