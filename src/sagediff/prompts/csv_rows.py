"""CSV read strictly: what could be a prompt cut short, or several in one, is refused with its line."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from sagediff.errors import InputError
from sagediff.prompts.columns import quoted

_MAX_ROW = 4 << 20  # characters of a row that goes over several lines
_MAX_COLUMNS = 10_000
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_SEPARATOR = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # what Excel writes above the header

FindPrompt = Callable[[Sequence[str], str], str | None]
"""From the names of columns and where they stand to the one that holds the prompts."""
NoPrompt = Callable[[Sequence[str], str], InputError]


def csv_rows(
    lines: Iterable[str], where: str, find: FindPrompt, missing: NoPrompt, delimiters: str = ",;\t"
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows by the names of the header's columns, each with the number of the line it begins in; blank lines
    and rows of empty cells are none.

    The first of the delimiters by which the header has a column of prompts separates the fields. Columns without a name
    are left out where they are empty, as spreadsheets leave them at the right.

    Raises:
        InputError: a row with more or fewer fields than the header, a quote that is not closed or stands inside a
            field without quotes around it, a name that stands twice, or no column of prompts.
    """
    numbered = enumerate(lines, 1)
    for number, line in numbered:
        if number == 1 and (said := _SEPARATOR.fullmatch(line)) and said[1] in delimiters:
            delimiters = said[1]
        elif line.strip():
            names, prompt, delimiter = _header(line, f"{where}, line {number}", find, missing, delimiters)
            yield from _rows(numbered, names, prompt, delimiter, where)
            return


def _header(
    line: str, where: str, find: FindPrompt, missing: NoPrompt, delimiters: str
) -> tuple[list[str], str, str]:
    for delimiter in delimiters:
        names = _fields(line, delimiter, where)
        prompt = find(names, where)
        if prompt is None:
            continue
        if len(names) > _MAX_COLUMNS:
            raise InputError(f"{where}: {len(names):,} columns; at most {_MAX_COLUMNS:,} are read")
        counts = Counter(names)
        if twice := next((name for name in names if name and counts[name] > 1), None):
            raise InputError(f"{where}: several columns are called {quoted(twice)}; leave one")
        return names, prompt, delimiter
    every = [_fields(line, delimiter, where) for delimiter in delimiters]
    raise missing(max(every, key=len), where)


def _fields(line: str, delimiter: str, where: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter, strict=True))]
    except csv.Error as error:
        raise InputError(f"{where}: {error}; the quote that opens there is not closed") from error


def _rows(
    lines: Iterator[tuple[int, str]], names: list[str], prompt: str, delimiter: str, where: str
) -> Iterator[tuple[int, dict[str, str]]]:
    field = rf'(?:"(?:[^"]|"")*+"|[^"{delimiter}\n]*+)'
    whole = re.compile(rf"{field}(?:{delimiter}{field})*+\n?")
    before = re.compile(rf"(?:{field}{delimiter})*+")
    unnamed = [place for place, name in enumerate(names) if not name]
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
        if not raw.strip(f"{delimiter} \t\n"):
            continue  # as spreadsheets leave them at the end
        if '"' in raw and not whole.fullmatch(raw):
            raise InputError(
                f"{at_fault()}: a quote inside a field that does not begin with one; put quotes around the whole "
                "field, without a space before them, and write the quote inside twice"
            )
        number = taken[0][0]
        if len(row) != len(names):
            missing = len(row) <= names.index(prompt)
            counts = f"{len(row)} {'field' if len(row) == 1 else 'fields'}, the header has {len(names)}"
            raise InputError(
                f"{where}, line {number}: {f'no text under {quoted(prompt)}: ' if missing else ''}{counts}; put quotes "
                f"around a text that holds a {_DELIMITERS[delimiter]}"
            )
        fields = dict(zip(names, row, strict=True))
        if unnamed:
            if len(unnamed) > 1 and any(row[place].strip() for place in unnamed):
                raise InputError(
                    f"{where}, line {number}: a text in a column without a name; name it in the header"
                )
            if not fields[""].strip():
                del fields[""]
        yield number, fields
