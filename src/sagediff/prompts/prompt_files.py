"""Prompts from the command line and from files (.txt, .jsonl, .csv, each also as .gz, and .parquet)."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sagediff.errors import InputError


def gather_prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """The prompts given as arguments, or those of a file; never both.

    Raises:
        InputError: none or both given, an empty prompt, or a file that cannot be read.
    """
    if given and file is not None:
        raise InputError("give prompts as arguments or --prompts FILE, not both")
    prompts = list(given) if file is None else read_prompts(file)
    if not prompts:
        raise InputError("no prompts: give some as arguments, or a file with --prompts FILE")
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise InputError(f"prompt {number} is empty")
    return [prompt.strip() for prompt in prompts]


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file, in order (`iter_prompts`).

    Raises:
        InputError: as `iter_prompts`, and a file without prompts.
    """
    prompts = list(iter_prompts(path))
    if not prompts:
        raise InputError(f"{path} holds no prompts")
    return prompts


def iter_prompts(path: Path) -> Iterator[str]:
    """Prompts of a file one by one, in order; the file is never in memory as a whole.

    .txt: one per line, blank lines skipped. .jsonl: an object per line with the key `prompt`. .csv: a column `prompt`.
    Each of them may be compressed, as .txt.gz and so on. .parquet: a column `prompt`; needs pyarrow.

    Raises:
        InputError: missing, not UTF-8, of another kind, or a line without a prompt; the line is named.
    """
    if not path.is_file():
        raise InputError(f"no such prompt file: {path}")
    kind = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path)
        return
    readers: dict[str, Callable[[Iterable[str], Path], Iterator[str]]]
    readers = {".txt": _lines, ".jsonl": _json_lines, ".csv": _csv}
    if kind not in readers:
        raise InputError(f"{path}: prompt files end in .txt, .jsonl or .csv (also with .gz), or .parquet")
    try:
        yield from readers[kind](_text_lines(path), path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {_bad_byte(path)}); save it as UTF-8") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _text_lines(path: Path) -> Iterator[str]:
    """Lines with their ends. Not splitlines(): it also breaks at characters that may stand inside a prompt."""
    with _open(path)(path, "rt", encoding="utf-8-sig", newline=None) as file:
        yield from file


def _open(path: Path) -> Any:
    return gzip.open if path.suffix.lower() == ".gz" else open


def _bad_byte(path: Path) -> int:
    """Where a file that is not UTF-8 ceases to be."""
    start = 0
    with _open(path)(path, "rb") as file:
        for line in file:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return start + error.start
            start += len(line)
    return start


def _lines(lines: Iterable[str], path: Path) -> Iterator[str]:
    return (line.strip() for line in lines if line.strip())


def _json_lines(lines: Iterable[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error.msg})") from error
        prompt = record.get("prompt") if isinstance(record, dict) else None
        yield _checked(prompt, f"{path}, line {number}")


def _csv(lines: Iterable[str], path: Path) -> Iterator[str]:
    reader = csv.DictReader(lines)
    try:
        if reader.fieldnames is None:
            return
        if "prompt" not in reader.fieldnames:
            raise InputError(f"{path}: no column `prompt`; the columns are {', '.join(reader.fieldnames)}")
        for record in reader:
            yield _checked(record["prompt"], f"{path}, line {reader.line_num}")
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num + 1}: {error}") from error


def _parquet(path: Path) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError("prompts in .parquet need pyarrow: pip install 'sagediff[scale]'") from error
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "prompt" not in names:
                raise InputError(f"{path}: no column `prompt`; the columns are {', '.join(names)}")
            row = 0
            for batch in file.iter_batches(columns=["prompt"]):
                for prompt in batch.column(0).to_pylist():
                    row += 1
                    yield _checked(prompt, f"{path}, row {row}")
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _checked(prompt: object, where: str) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where}: no text under `prompt`")
    return prompt.strip()
