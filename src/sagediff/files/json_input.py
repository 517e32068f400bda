"""JSON that somebody else wrote: the one parser of it, with bounds on size, depth and numbers.

Everything that is read back from a disk or a network is untrusted here, what an earlier run wrote too: it may have
been cut, edited, or put there by somebody else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sagediff.errors import InputError
from sagediff.files.text_input import shortened

MAX_BYTES = (
    64 << 20
)  # of one document; records and policies take some kilobytes, plans of many prompts megabytes
SMALL = (
    1 << 20
)  # bytes, for documents of some kilobytes: values in memory take ten to thirty times their text
MAX_DEPTH = 32  # of arrays and objects inside each other
MAX_DIGITS = 20  # of a whole number: 64 bits have 20


def parse(text: str | bytes, where: str, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value that a JSON document holds; numbers are finite and strings can be encoded as UTF-8.

    Args:
        where: what the document is, for messages: "policy.json", "prompts.jsonl, line 3".

    Raises:
        InputError: no JSON, not UTF-8, over a bound, a name that stands twice in one object, a number that is not
            finite, or half of a surrogate pair.
    """
    if len(text) > max_bytes:
        raise InputError(f"{where}: longer than {max_bytes:,} bytes")
    with _json_errors(where):
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        found = _DECODER.decode(text)
    _check(found, where)
    return found


def parse_start(text: str, where: str, *, is_whole: bool) -> tuple[Any, int] | None:
    """The value that a text begins with, as `parse` gives it, and where it ends.

    Args:
        is_whole: whether no more of the text is to come.

    Returns:
        None where the text does not hold a value, but might if it went on.

    Raises:
        InputError: as `parse`; no value where the text is whole.
    """
    try:
        with _json_errors(where):
            found, end = _DECODER.raw_decode(text)
    except InputError as error:
        if isinstance(error.__cause__, json.JSONDecodeError) and not is_whole:
            return None
        raise
    _check(found, where)
    return found, end


def parse_object(text: str | bytes, where: str, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """As `parse`, of a document that holds an object."""
    found = parse(text, where, max_bytes=max_bytes)
    if not isinstance(found, dict):
        raise InputError(f"{where}: should hold a JSON object, holds {_kind(found)}")
    return found


def read_object(file: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: no such file, none that can be read, or it holds something else (`parse`).
    """
    try:
        if not file.is_file():  # a pipe would be waited for
            what = "is no regular file" if file.exists() else "is not there"
            raise InputError(f"the file {shortened(file)} {what}")
        with file.open("rb") as opened:
            text = opened.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {shortened(file)}: {getattr(error, 'strerror', None) or error}"
        ) from error
    return parse_object(text, str(file), max_bytes=max_bytes)


def _whole(digits: str) -> int:
    if (count := len(digits.lstrip("-"))) > MAX_DIGITS:
        raise ValueError(f"a whole number of {count} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the number {number[:40]} is not finite")
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:  # not by counting each: of many names that takes minutes
            if name in seen:
                raise ValueError(f"{name[:40]!r} stands twice in one object")
            seen.add(name)
    return found


def _check(found: Any, where: str) -> None:
    """Depth, and texts that no file could hold."""
    left: list[tuple[Any, int]] = [(found, 1)]
    while left:
        value, depth = left.pop()
        if isinstance(value, str):
            if not value.isascii():
                _check_text(value, where)
        elif isinstance(value, (dict, list)):
            if depth > MAX_DEPTH:
                raise InputError(f"{where}: nested more than {MAX_DEPTH} deep")
            if isinstance(value, dict):
                left += ((name, depth) for name in value)
                value = value.values()
            left += ((each, depth + 1) for each in value)


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half of a surrogate pair (\\u{ord(text[error.start]):04x})") from error


@contextmanager
def _json_errors(where: str) -> Iterator[None]:
    """What reading a document raises, as an InputError that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{where}: not JSON ({error.msg}, {place})") from error
    except RecursionError as error:
        raise InputError(f"{where}: nested more than {MAX_DEPTH} deep") from error
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _kind(value: Any) -> str:
    kinds = {str: "a string", list: "an array", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


_DECODER = json.JSONDecoder(
    parse_int=_whole, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_object
)
