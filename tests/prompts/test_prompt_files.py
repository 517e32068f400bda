"""Prompt files: what was written is read back in order; what cannot be read is refused with its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagediff.errors import InputError
from sagediff.prompts.image_list import prompt_texts, read_images

ODD = ["two\u2028lines", "next\x85line", "form\x0cfeed", 'a "quoted", text', "東京 & cats", "# not a comment"]
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1).map(str.strip).filter(bool)
TEXTS = TEXTS.filter(
    lambda text: not text.startswith("--")
)  # which .txt refuses, as options of other programs
PROMPTS = st.lists(st.one_of(TEXTS, st.sampled_from(ODD)), min_size=1, max_size=6)
once_a_folder = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@once_a_folder
@given(PROMPTS, st.booleans())
def test_jsonl_reads_back(tmp_path: Path, prompts: list[str], ascii_only: bool) -> None:
    file = tmp_path / "p.jsonl"
    lines = [json.dumps({"n": 1, "prompt": prompt}, ensure_ascii=ascii_only) for prompt in prompts]
    file.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    assert prompt_texts(file) == prompts


@once_a_folder
@given(PROMPTS)
def test_csv_reads_back(tmp_path: Path, prompts: list[str]) -> None:
    file = tmp_path / "p.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("id", "prompt"), *enumerate(prompts)])
    assert prompt_texts(file) == prompts


@once_a_folder
@given(PROMPTS)
def test_text_reads_back(tmp_path: Path, prompts: list[str]) -> None:
    file = tmp_path / "p.txt"
    file.write_text("\n".join(f"  {prompt} \n" for prompt in prompts), encoding="utf-8")
    assert prompt_texts(file) == prompts


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_prompt(tmp_path: Path) -> None:
    for name, text in (
        ("p.txt", "a cat\r\na dog\r\n"),
        ("p.csv", "prompt\r\na cat\r\na dog\r\n"),
        ("p.JSONL", '{"prompt": "a cat"}\r\n{"prompt": "a dog"}'),
    ):
        file = tmp_path / name
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert prompt_texts(file) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("p.txt", b"", "holds no prompts"),
        ("p.txt", b" \n\n", "holds no prompts"),
        ("p.txt", b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
        ("p.md", b"a cat", "end in .txt, .jsonl, .json, .csv, .tsv"),
        ("p.jsonl", b'{"prompt": "a"}\n{', "line 2: not JSON"),
        ("p.jsonl", b'{"title": "a"}', "line 1: no text under `prompt`"),
        ("p.jsonl", b'{"prompt": 3}', "line 1: no text"),
        ("p.jsonl", b'"a cat"', "line 1: no text"),
        ("p.jsonl", b'\n{"prompt": " "}', "line 2: no text"),
        ("p.csv", b"", "holds no prompts"),
        ("p.csv", b"prompt\n", "holds no prompts"),
        (
            "p.csv",
            b"id,title\n1,a cat\n",
            "no column `prompt`; the columns are id, title; name .* --prompt-column",
        ),
        ("p.csv", b"id,prompt\n1,a cat\n2\n", "line 3: no text"),
        ("p.csv", b'"' + b"x" * 200_000, "line 1: field larger"),
        ("p.csv", b'prompt\n"' + b"x" * 200_000, "line 2: field larger"),
    ],
)
def test_what_cannot_be_read_is_refused_and_named(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        prompt_texts(file)
    assert str(file) in str(error.value)


def test_prompts_come_from_arguments_or_a_file_but_not_both(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("a cat\na cat\n", encoding="utf-8")
    assert read_images([], file).prompts == ["a cat", "a cat"]
    assert read_images([" a dog ", "a cat"], None).prompts == ["a dog", "a cat"]
    with pytest.raises(InputError, match="not both"):
        read_images(["a dog"], file)
    with pytest.raises(InputError, match="no prompts"):
        read_images([], None)
    with pytest.raises(InputError, match="prompt 2 is empty"):
        read_images(["a dog", " "], None)
    with pytest.raises(InputError, match="no such prompt file"):
        read_images([], tmp_path / "missing.txt")
    with pytest.raises(InputError, match="no such prompt file"):
        read_images([], tmp_path)
