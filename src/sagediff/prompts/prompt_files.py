"""Rows of prompt files and of standard input, whatever their format; what stands in them is checked elsewhere.

A file is never in memory as a whole.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sagediff.errors import InputError
from sagediff.files.text_input import (
    is_file,
    lines_in,
    pieces_of,
    read_pieces,
    reading,
    regular_size,
    shortened,
    stat_of,
)
from sagediff.prompts.columns import is_known, no_prompts, prompt_name
from sagediff.prompts.csv_rows import csv_rows
from sagediff.prompts.json_rows import Numbered, array_rows, line_rows
from sagediff.prompts.parquet_rows import parquet_rows

ENDINGS = (".txt", ".jsonl", ".json", ".csv", ".tsv")
_STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
_OBJECT = re.compile(r'\s*\{\s*"')  # braces alone are none: prompts may hold them
_ARRAY = re.compile(r'\s*\[\s*([{"\]]|$)')
_HEAD = 1 << 16  # characters of a stream that are looked at to tell its kind


@dataclass(frozen=True)
class RowFile:
    """The rows of a prompt file, which may be gone through once.

    Attributes:
        name: of the file, for messages.
        unit: what rows are counted in.
        rows: the number and the fields of each; a text alone is the field `prompt`.
        has_columns: whether fields have names of their own.
    """

    name: str
    unit: Literal["line", "row", "prompt"]
    rows: Numbered
    has_columns: bool = True


def open_rows(
    path: Path,
    column: str | None = None,
    *,
    with_own: bool = True,
    tell: Callable[[str], None] = lambda words: None,
) -> RowFile:
    """The rows of a file.

    .txt: one per line, blank lines skipped. .jsonl: an object per line. .json: an array of objects or texts. .csv and
    .tsv: with a header. Each of them may be compressed, as .txt.gz and so on. .parquet needs pyarrow. "-" is standard
    input, and it and pipes without such an ending are read as what they begin like.

    Args:
        column: the one that holds the prompts; None: `prompt`, or the only one that is called much like it.
        with_own: whether the user's own columns are wanted.
        tell: told, in a sentence, what a user should know of how the file was read.

    Raises:
        InputError: missing, or of another kind, at once; while it is read, what cannot be; the line is named.
    """
    if str(path) in _STDIN:
        return _sniffed(_stdin_pieces(), "standard input", column)
    name = shortened(path)
    if stat_of(path) is None or path.is_dir():
        raise InputError(f"no such prompt file: {name}" + (" (a folder)" if path.is_dir() else ""))
    is_pipe = regular_size(path) is None
    if path.suffix.lower() == ".parquet" and not is_pipe:
        find, missing = _column(column)
        return RowFile(name, "row", parquet_rows(path, find, missing, with_own=with_own, tell=tell))
    if (kind := _ending(path)) in ENDINGS:
        return _of_kind(kind, read_pieces(path), name, column)
    if is_pipe:
        return _sniffed(read_pieces(path), name, column)
    raise InputError(f"{name}: prompt files end in {', '.join(ENDINGS)} (also with .gz), or .parquet")


def is_prompt_file(text: str) -> bool:
    """Whether a text, given as a prompt, is the name of a file that `open_rows` would read."""
    path = Path(text)
    known = _ending(path) in ENDINGS or path.suffix.lower() == ".parquet"
    with suppress(InputError):  # it can be no file's name
        return known and is_file(path)
    return False


def _ending(path: Path) -> str:
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _of_kind(kind: str, pieces: Iterator[str], name: str, column: str | None) -> RowFile:
    if kind == ".json":
        return RowFile(name, "row", array_rows(pieces, name))
    lines = lines_in(pieces, name)
    if kind == ".jsonl":
        return RowFile(name, "line", line_rows(lines, name))
    if kind == ".txt":
        if column is not None:
            raise InputError(f"{name} holds a prompt per line and no columns; leave out --prompt-column")
        return RowFile(name, "line", _text_rows(lines, name), has_columns=False)
    find, missing = _column(column)
    marks = "\t" if kind == ".tsv" else ",;\t"
    return RowFile(name, "line", csv_rows(lines, name, find, missing, marks))


def _column(column: str | None) -> tuple[Any, Any]:
    """What finds the column of prompts, and the error where there is none."""
    return (
        lambda names, where: prompt_name(names, column, where),
        lambda names, where: no_prompts(names, column, where),
    )


def _stdin_pieces() -> Iterator[str]:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise InputError("standard input is closed; name a file with --prompts FILE")
    with reading(Path("standard input")):
        yield from pieces_of(stream, "standard input")


def _sniffed(pieces: Iterator[str], name: str, column: str | None) -> RowFile:
    """Rows of a stream that no ending tells the kind of."""
    taken: list[str] = []
    head = ""
    while "\n" not in head.lstrip() and len(head) < _HEAD and (piece := next(pieces, None)) is not None:
        taken.append(piece)
        head += piece
    whole = itertools.chain(taken, pieces)
    first = head.lstrip().partition("\n")[0]
    kind = ".txt"
    if _OBJECT.match(first):
        kind = ".jsonl"
    elif _ARRAY.match(first):
        kind = ".json"
    elif any(map(partial(_is_header, first, column), ",;\t")):
        kind = ".csv"
    return _of_kind(kind, whole, name, column)


def _is_header(line: str, column: str | None, mark: str) -> bool:
    """Whether a line is surely a header: it names the column of prompts as it should be, or another of ours beside one
    like it. Words such as "text" may begin a prompt, too."""
    names = [name.strip().strip('"') for name in line.split(mark)]
    if column is not None or "prompt" in names:
        return (column or "prompt") in names
    try:
        return any(map(is_known, names)) and prompt_name(names, None, "") is not None
    except InputError:  # several are like it, which the reader of tables has words for
        return True


def _text_rows(lines: Iterator[str], where: str) -> Numbered:
    for number, line in enumerate(lines, 1):
        prompt = line.strip()
        if prompt:
            if prompt.startswith(("--prompt", "--negative_prompt")):
                raise InputError(
                    f"{where}, line {number}: begins with an option of another program; write the prompts alone, one "
                    "per line"
                )
            yield number, {"prompt": prompt}
