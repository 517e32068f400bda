"""An option says its rule, the value it got, and nothing else; values of its type and range are taken as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sagediff.errors import InputError
from sagediff.options import OptionError, check, check_value, option


@dataclass(frozen=True)
class Options:
    part: float = option(0.5, "A part.", low=0, high=1)
    rate: float = option(1e-4, "A rate.", above=0)
    decay: float = option(0.9, "A decay.", low=0, below=1)
    count: int = option(3, "A count.", low=1)
    scale: float | None = option(None, "A scale.", low=0)
    kind: str = option("a", "A kind.", choices=("a", "b", "c"))
    file: Path | None = option(None, "A file.")
    on: bool = option(False, "A switch.")
    pair: tuple[int, int] = option((1, 8), "A pair.")
    plain: int = 7  # no option

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    "values",
    [{}, {"part": 1}, {"part": 0.0}, {"scale": 0}, {"scale": None}, {"file": Path("x")}, {"on": True}, {"count": 1},
     {"kind": "c"}, {"pair": (2, 3)}, {"plain": "anything"}],
)  # fmt: skip
def test_what_fits_is_taken(values: dict[str, Any]) -> None:
    options = Options(**values)
    assert all(getattr(options, name) == value for name, value in values.items())


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("part", 1.01, "must lie in [0, 1], got 1.01"),
        ("part", float("nan"), "must lie in [0, 1], got nan"),
        ("part", True, "must be a number, got True"),
        ("part", "0.5", "must be a number, got '0.5'"),
        ("rate", 0.0, "must be above 0, got 0.0"),
        ("decay", 1.0, "must lie in [0, 1), got 1.0"),
        ("count", 0, "must be at least 1, got 0"),
        ("count", 2.5, "must be a whole number, got 2.5"),
        ("count", 2**63, "must be a whole number of 64 bits, got 9223372036854775808"),
        ("part", 10**400, f"must be a whole number of 64 bits, got {'1' + '0' * 89}… (401 characters)"),
        ("kind", "d" * 1000, f"must be one of a, b, c, got '{'d' * 89}… (1002 characters)"),
        ("scale", -1.0, "must be at least 0, or be None, got -1.0"),
        ("scale", float("inf"), "must be at least 0, or be None, got inf"),
        ("kind", "d", "must be one of a, b, c, got 'd'"),
        ("file", 7, "must be a path, got 7"),
        ("on", 1, "must be true or false, got 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_rule(name: str, value: Any, rule: str) -> None:
    with pytest.raises(OptionError) as refused:
        Options(**{name: value})
    assert (refused.value.option, refused.value.rule) == (name, rule)
    with pytest.raises(InputError) as spelled:
        check_value(Options, name, value, "file.json: `x`")
    assert str(spelled.value) == f"file.json: `x` {rule}"
