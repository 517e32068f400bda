"""Rows of JSON: an object per line, or one array of objects or texts, read piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sagediff.errors import InputError
from sagediff.files.json_input import parse, parse_start
from sagediff.files.text_input import MAX_LINE

Numbered = Iterator[tuple[int, dict[str, Any]]]
"""Rows with the number of each, of its line or among the rows, from 1."""


def line_rows(lines: Iterable[str], where: str) -> Numbered:
    """Objects, each on a line of its own; blank lines are none.

    Raises:
        InputError: a line that holds something else.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{where}, line {number}"
            record = parse(line, place)
            if not isinstance(record, dict):
                raise InputError(f"{place}: no text under `prompt`: it should be an object")
            yield number, record


def array_rows(pieces: Iterable[str], where: str) -> Numbered:
    """The entries of an array, of which a text is a prompt.

    No more of it is in memory than an entry, which may be as long as a line.

    Raises:
        InputError: no array, or an entry that is neither an object nor a text.
    """
    text = _Unread(pieces, where)
    if (first := text.take()) != "[":
        hint = "; if each line holds an object, let its name end in .jsonl" if first == "{" else ""
        raise InputError(f"{where}: should hold an array of objects or texts{hint}")
    number = 0
    while (mark := text.look()) != "]":
        number += 1
        place = f"{where}, row {number}"
        if mark not in ("{", '"'):
            raise InputError(
                f"{place}: should be an object or a text" if mark else f"{where}: ends in row {number}"
            )
        found = text.value(place)
        yield number, {"prompt": found} if isinstance(found, str) else found
        if (mark := text.look()) == ",":
            text.take()
            if text.look() == "]":
                raise InputError(f"{place}: a comma after the last entry")
        elif mark != "]":
            raise InputError(
                f"{place}: not JSON (a comma or ] should come next)"
                if mark
                else f"{where}: ends in row {number}"
            )
    text.take()
    if text.look():
        raise InputError(f"{where}: goes on after the end of the array")


class _Unread:
    """What is left of a text that comes in pieces."""

    def __init__(self, pieces: Iterable[str], where: str) -> None:
        self._pieces, self._where = iter(pieces), where
        self._text, self._at, self._is_whole = "", 0, False

    def look(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            rest = self._text[self._at : self._at + 1]
            if rest and not rest.isspace():
                return rest
            if rest:
                stripped = self._text[self._at :].lstrip()
                self._text, self._at = stripped, 0
            elif not self._more(1):
                return ""

    def take(self) -> str:
        """As `look`, and past it."""
        found = self.look()
        self._at += len(found)
        return found

    def value(self, place: str) -> Any:
        """The value that begins here, and past it."""
        wanted = 0
        while True:
            start = self._text[self._at : self._at + MAX_LINE]
            cut = len(self._text) - self._at > MAX_LINE
            found = parse_start(start, place, is_whole=self._is_whole and not cut)
            if found is not None:
                self._at += found[1]
                return found[0]
            if len(start) >= MAX_LINE:
                raise InputError(f"{place}: not JSON, or longer than {MAX_LINE:,} characters")
            wanted = max(2 * len(start), wanted, 1)  # each try reads all of it again
            self._more(wanted)

    def _more(self, wanted: int) -> bool:
        """Read on until so many characters are unread; False at the end of the text."""
        parts, length = [self._text[self._at :]], len(self._text) - self._at
        while length < wanted and not self._is_whole:
            piece = next(self._pieces, None)
            if piece is None:
                self._is_whole = True
            elif "\0" in piece:
                raise InputError(f"{self._where}: a NUL character; is it UTF-16? Save the file as UTF-8 text")
            else:
                parts.append(piece)
                length += len(piece)
        self._text, self._at = "".join(parts), 0
        return length >= wanted
