"""Prompts from the command line, from standard input and from files (.txt, .jsonl, .csv, each also as .gz, .parquet).

Each prompt is checked here, with the name of its file and line. A field that would change the image and is not
obeyed is refused; other fields are left alone.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sagediff.errors import InputError, first_line
from sagediff.files.json_input import parse
from sagediff.files.prompt_text import MAX_PROMPT, text_fault
from sagediff.files.text_input import lines_of, read_lines, reading, regular_size, shortened, stat_of
from sagediff.prompts.csv_rows import csv_rows

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, for messages, and its fields by name."""

_STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
_OBJECT = re.compile(r'\s*\{\s*"')  # braces alone are none: prompts may hold them
_SINGLE = {"n", "num_images", "num_images_per_prompt", "images_per_prompt"}
# what would change a row's image: one of these that says anything is refused until it is obeyed
NOT_OBEYED = frozenset(
    (
        *_SINGLE, "negative_prompt", "prompt_2", "negative_prompt_2", "seed", "width", "height", "guidance",
        "guidance_scale", "cfg_scale", "steps", "num_inference_steps", "strength", "image", "mask_image", "lora",
    )
)  # fmt: skip


def gather_prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """The prompts given as arguments, or those of a file; never both.

    Raises:
        InputError: none or both given, a prompt that is empty or no text, or a file that cannot be read.
    """
    if file is not None and str(file).startswith("--"):
        raise InputError(f"--prompts needs a file, got the option {shortened(file)}")
    if given and file is not None:
        raise InputError("give prompts as arguments or --prompts FILE, not both")
    prompts = list(given) if file is None else read_prompts(file)
    if not prompts:
        raise InputError("no prompts: give some as arguments, or a file with --prompts FILE")
    for number, prompt in enumerate(prompts, 1):
        fault = text_fault(prompt) if prompt.strip() else "is empty"
        if fault:
            raise InputError(f"prompt {number} {fault}")
    return [prompt.strip() for prompt in prompts]


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file, in order (`iter_prompts`); names of fields that are left alone are printed to stderr once.

    Raises:
        InputError: as `iter_prompts`, and a file without prompts.
    """
    left_alone: dict[str, None] = {}
    prompts = list(iter_prompts(path, left_alone))
    if not prompts:
        raise InputError(f"{_named(path)} holds no prompts")
    if left_alone:
        names = [shortened(name, 40) for name in left_alone]
        shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        print(f"note: {_named(path)}: fields beside `prompt` are not used: {shown!r}"[:600], file=sys.stderr)
    return prompts


def iter_prompts(path: Path, left_alone: dict[str, None] | None = None) -> Iterator[str]:
    """Prompts of a file one by one, in order; the file is never in memory as a whole.

    .txt: one per line, blank lines skipped. .jsonl: an object per line with the key `prompt`. .csv: a column `prompt`.
    Each of them may be compressed, as .txt.gz and so on. .parquet: a column `prompt`; needs pyarrow. "-" is standard
    input, and it and pipes without such an ending are read as what their first line is of: an object with the key
    `prompt`, a header with a column `prompt`, else text.

    Args:
        left_alone: takes the names of fields that are not used.

    Raises:
        InputError: missing, not UTF-8, of another kind, a line or row that is none, without a prompt or with one that
            is no text, or a field that asks for what cannot be done; the line is named.
    """
    left = {} if left_alone is None else left_alone
    for where, fields in _rows(path):
        for name, value in fields.items():
            if name == "prompt":
                continue
            if name in NOT_OBEYED and not _says_nothing(name, value):
                raise InputError(
                    f"{where}: `{name}` of a single prompt is not supported: remove it, or give it for the whole run "
                    "with the command's own option, if there is one"
                )
            if name not in NOT_OBEYED and len(left) < 1000:
                left[name] = None
        yield _checked(fields.get("prompt"), where)


def _rows(path: Path) -> Iterator[Row]:
    if str(path) in _STDIN:
        yield from _stdin_rows()
        return
    if stat_of(path) is None or path.is_dir():
        raise InputError(f"no such prompt file: {_named(path)}" + (" (a folder)" if path.is_dir() else ""))
    is_pipe = regular_size(path) is None
    if path.suffix.lower() == ".parquet" and not is_pipe:
        yield from _parquet(path)
        return
    kind = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    readers = {".txt": _lines, ".jsonl": _json_lines, ".csv": _csv}
    if kind in readers:
        yield from readers[kind](read_lines(path), _named(path))
    elif is_pipe:
        yield from _sniffed(read_lines(path), _named(path))
    else:
        raise InputError(
            f"{_named(path)}: prompt files end in .txt, .jsonl or .csv (also with .gz), or .parquet"
        )


def _stdin_rows() -> Iterator[Row]:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise InputError("standard input is closed; name a file with --prompts FILE")
    with reading(Path("standard input")):
        yield from _sniffed(lines_of(stream, "standard input"), "standard input")


def _sniffed(lines: Iterator[str], where: str) -> Iterator[Row]:
    """Rows of a stream that no ending tells the kind of."""
    blank, first = 0, ""
    for line in lines:
        if line.strip():
            first = line
            break
        blank += 1
    whole = itertools.chain(itertools.repeat("\n", blank), [first] if first else [], lines)
    names = {name.strip().strip('"') for mark in ",;\t" for name in first.split(mark)}
    if _OBJECT.match(first):
        return _json_lines(whole, where)
    return _csv(whole, where) if "prompt" in names else _lines(whole, where)


def _lines(lines: Iterable[str], where: str) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        prompt = line.strip()
        if prompt:
            place = f"{where}, line {number}"
            if prompt.startswith(("--prompt", "--negative_prompt")):
                raise InputError(
                    f"{place}: begins with an option of another program; write the prompts alone, one per line"
                )
            yield place, {"prompt": prompt}


def _json_lines(lines: Iterable[str], where: str) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{where}, line {number}"
            record = parse(line, place)
            yield place, record if isinstance(record, dict) else {}


def _csv(lines: Iterable[str], where: str) -> Iterator[Row]:
    return ((f"{where}, line {number}", row) for number, row in csv_rows(lines, where))


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError("prompts in .parquet need pyarrow: pip install 'sagediff[scale]'") from error
    try:
        with reading(path), ParquetFile(path) as file:
            names, metadata = file.schema_arrow.names, file.metadata
        if names.count("prompt") != 1:
            fault = (
                "several columns are called `prompt`; leave one"
                if "prompt" in names
                else "no column `prompt`"
            )
            raise InputError(f"{_named(path)}: {fault}; the columns are {', '.join(names)}")
        _check_expansion(path, metadata)
        others = [name for name in names if name != "prompt"]
        told = [name for name in others if name in NOT_OBEYED]
        row = 0
        # texts that repeat come as numbers into a dictionary: a small file may stand for very many
        with reading(path), ParquetFile(path, read_dictionary=["prompt"]) as file:
            for batch in file.iter_batches(batch_size=4096, columns=["prompt", *told]):
                for fields in _batch_rows(batch, told, _named(path), row):
                    row += 1
                    yield f"{_named(path)}, row {row}", dict.fromkeys(others) | fields
    except (pyarrow.ArrowException, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {_named(path)}: {first_line(error)}") from error


def _batch_rows(batch: Any, told: Sequence[str], where: str, start: int) -> Iterator[dict[str, Any]]:
    column = batch.column(batch.schema.get_field_index("prompt"))
    texts: list[Any]
    if hasattr(column, "dictionary"):
        values = _texts(column.dictionary, where, start)
        texts = [None if number is None else values[number] for number in column.indices.to_pylist()]
    else:
        texts = _texts(column, where, start)
    more = {name: batch.column(batch.schema.get_field_index(name)).to_pylist() for name in told}
    for i, text in enumerate(texts):
        yield {"prompt": text} | {name: found[i] for name, found in more.items()}


def _texts(column: Any, where: str, start: int) -> list[Any]:
    """A column's values; no text longer than a prompt may be becomes one of Python's."""
    import pyarrow
    from pyarrow import compute

    place = f"{where}, row {start + 1} or later"
    text_kinds = (pyarrow.types.is_string, pyarrow.types.is_large_string)
    if not any(is_kind(column.type) for is_kind in text_kinds):
        return [None] * len(column)
    if (compute.max(compute.binary_length(column)).as_py() or 0) > 4 * MAX_PROMPT:  # bytes
        raise InputError(f"{place}: a prompt of more than {MAX_PROMPT:,} characters")
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: the column `prompt` holds bytes that are not UTF-8") from error


def _check_expansion(path: Path, metadata: Any) -> None:
    """A file of some kilobytes may say that it holds billions of equal rows, or a text of a gigabyte."""
    size, rows, unpacked = path.stat().st_size, metadata.num_rows, 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        unpacked += sum(each.total_uncompressed_size for each in columns if each.path_in_schema == "prompt")
    if rows > max(1 << 20, 100 * size) or unpacked > max(4 << 20, 200 * size):
        raise InputError(
            f"{_named(path)}: {size:,} bytes unpack to {rows:,} rows and {unpacked:,} bytes of prompts; write each "
            "prompt once"
        )


def _says_nothing(name: str, value: object) -> bool:
    """Whether a field asks for what is done anyway."""
    if name in _SINGLE and str(value).strip() in ("1", "1.0"):
        return True
    return value is None or (isinstance(value, str) and not value.strip()) or value == []


def _checked(prompt: object, where: str) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where}: no text under `prompt`")
    fault = text_fault(prompt)
    if fault:
        raise InputError(f"{where}: the prompt {fault}")
    return prompt.strip()


def _named(path: Path) -> str:
    return "standard input" if str(path) in _STDIN else shortened(path)
