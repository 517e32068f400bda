"""Rows of a parquet file, in bounded memory whatever its dictionaries stand for. Needs pyarrow, and only here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from sagediff.errors import InputError, first_line
from sagediff.files.prompt_text import MAX_PROMPT
from sagediff.files.text_input import MAX_LINE, reading, shortened
from sagediff.prompts.columns import Header, is_known, quoted
from sagediff.prompts.csv_rows import FindPrompt, NoPrompt
from sagediff.prompts.json_rows import Numbered

_AT_ONCE = 4096  # rows
_ROOM, _EXPANSION = 4 << 20, 200  # bytes that a file may unpack to, and times its size


def parquet_rows(
    path: Path, find: FindPrompt, missing: NoPrompt, *, with_own: bool, tell: Callable[[str], None]
) -> Numbered:
    """Rows, numbered from 1; cells as JSON has them: dates and times as ISO texts, NaN as None.

    Args:
        with_own: whether to read the user's own columns.
        tell: told of columns that hold bytes, which are left out.

    Raises:
        InputError: no pyarrow, no parquet file, no column of prompts, or a file that unpacks to far more than it is.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError("prompts in .parquet need pyarrow: pip install 'sagediff[scale]'") from error
    where = shortened(path)
    try:
        with reading(path), ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
        names = list(schema.names)
        prompt = find(names, where)
        if prompt is None:
            raise missing(names, where)
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"{where}: several columns are called {quoted(twice)}; leave one")
        header = Header.of(names, prompt)
        chosen = [prompt, *header.known, *header.refused]
        if with_own:
            of_bytes = [name for name in header.own if _holds_bytes(schema.field(name).type)]
            for name in of_bytes:
                tell(f"{where}: the column {quoted(name)} holds bytes, which metadata cannot; it is left out")
            chosen += [name for name in header.own if name not in of_bytes]
        _check_expansion(path, metadata, set(names).difference(chosen))
        told = [name for name in (*header.known, *header.refused) if _holds_bytes(schema.field(name).type)]
        for name in told:
            raise InputError(f"{where}: the column {quoted(name)} holds bytes")
        texts = [name for name in chosen if _is_text(schema.field(name).type)]
        bound = max(_ROOM, _EXPANSION * path.stat().st_size)
        # texts that repeat come as numbers into a dictionary: a small file may stand for very many
        with reading(path), ParquetFile(path, read_dictionary=texts) as file:
            yield from _numbered(file, chosen, prompt, where, bound)
    except (pyarrow.ArrowException, KeyError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {where}: {first_line(error)}") from error


def _numbered(file: Any, names: Sequence[str], prompt: str, where: str, bound: int) -> Numbered:
    row, own_bytes = 0, 0
    for batch in file.iter_batches(batch_size=_AT_ONCE, columns=list(names)):
        columns: dict[str, Iterator[Any]] = {}
        for name in names:
            column = batch.column(batch.schema.get_field_index(name))
            longest = 4 * MAX_PROMPT if name == prompt or is_known(name) else 4 * MAX_LINE
            own_bytes += 0 if name == prompt else _text_bytes(column)
            columns[name] = _cells(column, name, where, row, longest)
        if own_bytes > bound:
            raise InputError(
                f"{where}: its columns unpack to more than {bound >> 20} MiB of text; write less of it"
            )
        for cells in zip(*columns.values(), strict=True):
            row += 1
            yield row, dict(zip(names, cells, strict=True))


def _cells(column: Any, name: str, where: str, start: int, longest: int) -> Iterator[Any]:
    """A column's values one by one; texts are those of its dictionary, each of which is made once."""
    if hasattr(column, "dictionary"):
        values = list(map(_plain, _checked(column.dictionary, name, where, start, longest)))
        return (None if number is None else values[number] for number in column.indices.to_pylist())
    return map(_plain, _checked(column, name, where, start, longest))


def _checked(column: Any, name: str, where: str, start: int, longest: int) -> list[Any]:
    """A column's values; no text longer than it may be becomes one of Python's."""
    from pyarrow import compute

    place = f"{where}, row {start + 1} or later"
    if _is_text(column.type) and (compute.max(compute.binary_length(column)).as_py() or 0) > longest:
        raise InputError(f"{place}: a text of more than {longest // 4:,} characters under {quoted(name)}")
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: the column {quoted(name)} holds bytes that are not UTF-8") from error


def _text_bytes(column: Any) -> int:
    """How many bytes of text a column stands for."""
    from pyarrow import compute

    if hasattr(column, "dictionary"):
        if not _is_text(column.dictionary.type):
            return int(column.nbytes)
        lengths = compute.binary_length(column.dictionary)
        return int(compute.sum(compute.take(lengths, column.indices)).as_py() or 0)
    return int(column.nbytes)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    inner += [kind.value_type] if types.is_dictionary(kind) else []
    return any(bool(test(kind)) for test in tests) or any(map(_holds_bytes, inner))


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value)


def _check_expansion(path: Path, metadata: Any, left_out: set[str]) -> None:
    """A file of some kilobytes may say that it holds billions of equal rows, or a text of a gigabyte."""
    size, rows, unpacked = path.stat().st_size, metadata.num_rows, 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        unpacked += sum(
            each.total_uncompressed_size
            for each in columns
            if each.path_in_schema.split(".")[0] not in left_out
        )
    if rows > max(1 << 20, 100 * size) or unpacked > max(_ROOM, _EXPANSION * size):
        raise InputError(
            f"{shortened(path)}: {size:,} bytes unpack to {rows:,} rows and {unpacked:,} bytes; write each prompt once"
        )
