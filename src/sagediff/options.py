"""An option declared once: a dataclass field that carries its default, range and help, and the check of it.

Whatever offers an option (the command line, a policy file, a record in a LoRA's file) reads these fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, get_args, get_type_hints

from sagediff.errors import InputError

_KINDS: dict[
    type, tuple[tuple[type, ...], str]
] = {  # type of the field -> types taken for it, and their name
    float: ((int, float), "a number"),
    int: ((int,), "a whole number"),
    str: ((str,), "text"),
    bool: ((bool,), "true or false"),
    Path: ((str, Path), "a path"),
}


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    words: Mapping[str, Any] = MappingProxyType({}),
    flag: str | bool = True,
    for_unguided: bool = False,
) -> Any:
    """A field of an options dataclass.

    Args:
        default: `dataclasses.MISSING` where it must be given.
        help: one plain sentence for the user; what happens when the value goes up or down.
        low, high: least and greatest value, both allowed.
        above, below: bounds that are not allowed themselves.
        choices: the texts that are allowed; none for any.
        words: names of values that the field's type cannot spell on a command line.
        flag: the name on the command line where it is not the field's own; False for none.
        for_unguided: belongs to weights that are sampled without guidance: whoever names a guidance scale gets the
            default, unless the option is named as well.
    """
    rule = {"low": low, "high": high, "above": above, "below": below, "choices": tuple(choices)}
    about = {"help": help, "words": dict(words), "flag": flag, "for_unguided": for_unguided}
    metadata = rule | about
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


class OptionError(InputError):
    """An option of the wrong type or out of range; `rule` says what it must be, and what was got."""

    def __init__(self, option: str, rule: str) -> None:
        super().__init__(f"{option} {rule}")
        self.option, self.rule = option, rule


@cache
def types_of(cls: type) -> dict[str, Any]:
    """The resolved type of each option of a class."""
    return get_type_hints(cls)


def check(options: Any) -> None:
    """Every option of an instance is of its type and within its range.

    Raises:
        InputError: one is not; the message holds the rule and the value.
    """
    for each in fields(options):
        if "help" in each.metadata:
            check_value(type(options), each.name, getattr(options, each.name))


def check_value(cls: type, name: str, value: Any, spelled: str = "") -> None:
    """As `check`, of one option of a class; `spelled` stands for its name in the message."""
    rule = _broken_rule(cls, name, value)
    if rule and spelled:
        raise InputError(f"{spelled} {rule}")
    if rule:
        raise OptionError(name, rule)


def _broken_rule(cls: type, name: str, value: Any) -> str:
    """The rule that a value breaks, and the value; empty for none."""
    metadata = next(each.metadata for each in fields(cls) if each.name == name)
    hint = types_of(cls)[name]
    hints = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    may_be_none = type(None) in hints
    if value is None and may_be_none:
        return ""
    kinds = [kind for kind in _KINDS if kind in hints]
    if kinds and not any(_is_of(value, kind) for kind in kinds):
        return f"must be {' or '.join(_KINDS[kind][1] for kind in kinds)}, got {_shown(value)}"
    if metadata["choices"] and value not in metadata["choices"]:
        allowed = metadata["choices"]
        rule = " or ".join(map(repr, allowed)) if len(allowed) == 2 else f"one of {', '.join(allowed)}"
        return f"must be {rule}, got {_shown(value)}"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"must be a whole number of 64 bits, got {_shown(value)}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high, above, below = (metadata[key] for key in ("low", "high", "above", "below"))
        inside = (
            (low is None or value >= low) and (high is None or value <= high)
            and (above is None or value > above) and (below is None or value < below)
        )  # fmt: skip
        if not math.isfinite(value) or not inside:
            rule = _range(low, high, above, below) + (", or be None" if may_be_none else "")
            return f"must {rule}, got {value}"
    return ""


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "one of thousands of digits"
    return text if len(text) <= 100 else f"{text[:90]}… ({len(text)} characters)"


def _is_of(value: Any, kind: type) -> bool:
    return isinstance(value, _KINDS[kind][0]) and (kind is bool or not isinstance(value, bool))


def _range(low: float | None, high: float | None, above: float | None, below: float | None) -> str:
    if (low is not None or above is not None) and (high is not None or below is not None):
        first = f"[{low:g}" if low is not None else f"({above:g}"
        last = f"{high:g}]" if high is not None else f"{below:g})"
        return f"lie in {first}, {last}"
    if low is not None:
        return f"be at least {low:g}"
    if above is not None:
        return f"be above {above:g}"
    if high is not None:
        return f"be at most {high:g}"
    return f"be below {below:g}" if below is not None else "be finite"
