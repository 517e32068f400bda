"""CSV read strictly: what could be a prompt cut short, or several in one, is refused with its line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator

from sagediff.errors import InputError

_MAX_ROW = 4 << 20  # characters of a row that goes over several lines
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}


def csv_rows(lines: Iterable[str], where: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows by the names of the header's columns, each with the number of the line it begins in; blank lines are none.

    The first of comma, semicolon and tab by which the header has a column `prompt` separates the fields.

    Raises:
        InputError: a row with more or fewer fields than the header, a quote that is not closed or stands inside a
            field without quotes around it, or no column `prompt`.
    """
    numbered = enumerate(lines, 1)
    for number, line in numbered:
        if line.strip():
            names, delimiter = _header(line, f"{where}, line {number}")
            yield from _rows(numbered, names, delimiter, where)
            return


def _header(line: str, where: str) -> tuple[list[str], str]:
    for delimiter in _DELIMITERS:
        try:
            fields = next(csv.reader([line], delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise InputError(f"{where}: {error}; the quote that opens there is not closed") from error
        names = [field.strip() for field in fields]
        if names.count("prompt") > 1:
            raise InputError(f"{where}: several columns are called `prompt`; leave one")
        if "prompt" in names:
            return names, delimiter
    found = next(csv.reader([line], strict=True))
    near = next((name for name in found if name.strip().lower() in ("prompt", "prompts")), None)
    hint = f"; call {near!r} `prompt`" if near else ""
    raise InputError(f"{where}: no column `prompt`; the columns are {', '.join(found)}{hint}")


def _rows(
    lines: Iterator[tuple[int, str]], names: list[str], delimiter: str, where: str
) -> Iterator[tuple[int, dict[str, str]]]:
    field = rf'(?:"(?:[^"]|"")*+"|[^"{delimiter}\n]*+)'
    whole = re.compile(rf"{field}(?:{delimiter}{field})*+\n?")
    before = re.compile(rf"(?:{field}{delimiter})*+")
    taken: list[tuple[int, str]] = []  # lines of the row that is being read

    def noted() -> Iterator[str]:
        length = 0
        for number, line in lines:
            taken.append((number, line))
            length = length + len(line) if len(taken) > 1 else len(line)
            if length > _MAX_ROW:
                raise InputError(f"{where}, line {taken[0][0]}: a row of more than {_MAX_ROW:,} characters")
            yield line

    def at_fault() -> str:
        """Where the first field stands that is not one."""
        raw = "".join(line for _, line in taken)
        begin = before.match(raw)
        return f"{where}, line {taken[0][0] + raw.count(chr(10), 0, begin.end() if begin else 0)}"

    reader = csv.reader(noted(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{at_fault()}: {error}; close the quote that opens there, and write a quote inside quotes twice"
            ) from error
        if row is None:
            return
        if not row:
            continue
        raw = "".join(line for _, line in taken)
        if '"' in raw and not whole.fullmatch(raw):
            raise InputError(
                f"{at_fault()}: a quote inside a field that does not begin with one; put quotes around the whole "
                "field, without a space before them, and write the quote inside twice"
            )
        number = taken[0][0]
        if len(row) != len(names):
            missing = len(row) <= names.index("prompt")
            counts = f"{len(row)} {'field' if len(row) == 1 else 'fields'}, the header has {len(names)}"
            raise InputError(
                f"{where}, line {number}: {'no text under `prompt`: ' if missing else ''}{counts}; put quotes around "
                f"a text that holds a {_DELIMITERS[delimiter]}"
            )
        yield number, dict(zip(names, row, strict=True))
