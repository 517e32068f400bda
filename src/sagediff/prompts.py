"""Prompts from the command line and from files (.txt, .jsonl, .csv)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

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
    """Prompts of a file, in order.

    .txt: one a line, blank lines skipped. .jsonl: an object a line with the key `prompt`. .csv: a column
    `prompt`.

    Raises:
        InputError: missing, not UTF-8, empty, of another kind, or a line without a prompt; the line is named.
    """
    if not path.is_file():
        raise InputError(f"no such prompt file: {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    readers = {".txt": _lines, ".jsonl": _json_lines, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: prompt files end in .txt, .jsonl or .csv")
    prompts = reader(text, path)
    if not prompts:
        raise InputError(f"{path} holds no prompts")
    return prompts


# Not splitlines(): it also breaks at characters that may stand inside a prompt (U+2028, U+0085, form feed).


def _lines(text: str, path: Path) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _json_lines(text: str, path: Path) -> list[str]:
    prompts = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error.msg})") from error
        prompt = record.get("prompt") if isinstance(record, dict) else None
        prompts.append(_checked(prompt, path, number))
    return prompts


def _csv(text: str, path: Path) -> list[str]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if reader.fieldnames is None:
            return []
        if "prompt" not in reader.fieldnames:
            raise InputError(f"{path}: no column `prompt`; the columns are {', '.join(reader.fieldnames)}")
        return [_checked(record["prompt"], path, reader.line_num) for record in reader]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num + 1}: {error}") from error


def _checked(prompt: object, path: Path, line: int) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{path}, line {line}: no text under `prompt`")
    return prompt.strip()
