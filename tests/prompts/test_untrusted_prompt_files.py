"""Prompt files of others: what is not surely one prompt per row is refused with its place, in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from sagediff.errors import InputError
from sagediff.files.prompt_text import MAX_PROMPT
from sagediff.prompts.image_list import prompt_texts, read_images


def refused(file: Path) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(InputError) as raised:
        prompt_texts(file)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600
    return str(raised.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("prompt\na large cat, at the top\n", "line 2: 2 fields, the header has 1; put quotes around"),
        ('id,prompt\n1, "a cat, at the top"\n', "line 2: a quote inside a field that does not begin with one"),
        ('id,prompt\n1,a 5" nail\n', "line 2: a quote inside a field"),
        ("prompt,id\na cat\n", "line 2: 1 field, the header has 2"),
        ('prompt\na cat\n"a dog\na ball\na cake\n', "line 3: unexpected end of data; close the quote"),
        ('id,prompt\n"1\n2","a dog\na ball\n', "line 3: unexpected end of data"),
        ('prompt\n"a dog\n"a ball"\n', "line 2: ',' expected after '\"'"),
        ('prompt\n"a "red" cat"\n', "line 2: ',' expected after '\"'"),
        ("prompt,prompt\na,b\n", "several columns are called `prompt`"),
        ("Prompt,Caption\na,b\n", "the prompts may be in Prompt, Caption; name the column with --prompt-column"),
        ("prompt,x,x\na,b,c\n", "several columns are called `x`"),
        ("prompt,,\na,,b\n", "line 2: a text in a column without a name"),
        ("prompt," * 20_000, "20,001 columns"),
        ("id;prompt\n1;a cat; at the top\n", "line 2: 3 fields, the header has 2; put quotes around .* semicolon"),
        ("prompt\n" + '"a\n",' * 20 + "\n", "21 fields"),
    ],
)  # fmt: skip
def test_csv_that_may_mean_something_else_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    message = refused(tmp_path / "p.csv")
    assert re.search(says, message), message


def test_a_row_over_endless_lines_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("a,prompt\n" + ('"' + "a" * 1000 + '\n",') * 5000, encoding="utf-8")
    assert "line 2: a row of more than 4,194,304 characters" in refused(tmp_path / "p.csv")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_is_read_by_the_mark_of_its_header(tmp_path: Path, mark: str) -> None:
    rows = [("id", " prompt"), ("1", '"a ""red"" cat, small; round\tthing"'), (), ("2", '"two\nlines"')]
    (tmp_path / "p.csv").write_text("\n".join(mark.join(row) for row in rows), encoding="utf-8")
    assert prompt_texts(tmp_path / "p.csv") == ['a "red" cat, small; round\tthing', "two\nlines"]


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_named(tmp_path: Path, name: str, encoding: str) -> None:
    text = {"p.txt": "a cat\n", "p.csv": "prompt\na cat\n", "p.jsonl": '{"prompt": "a cat"}\n'}[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    message = refused(tmp_path / name)
    assert "UTF-16" in message or "UTF-32" in message


@pytest.mark.parametrize(
    "content, says",
    [
        ("a café".encode("cp1252"), r"byte 5.*cp1252"),
        ("“quoted” naïve café".encode("cp1252"), "Windows-1252"),
        ("большой рыжий кот".encode("cp1251"), "Windows-1251"),
        ("赤い背景の大きな猫".encode("shift_jis"), "Shift-JIS"),
        ("红色背景上的大猫".encode("gbk"), "GB18030"),
        ("빨간 배경의 큰 고양이".encode("euc_kr"), "EUC-KR"),
        (gzip.compress(b"a cat", mtime=0), "compressed with gzip"),
        (b"PK\x03\x04rest", "zip archive or a spreadsheet"),
        (b"a cat\n\x1b[2Jb", r"line 2: the prompt holds the control character U\+001B"),
        (b"a cat\xc2\x9b2J", r"line 1: the prompt holds the control character U\+009B"),
        pytest.param(
            b"a" * (MAX_PROMPT + 1), "line 1: the prompt has 100,001 characters; at most 100,000", id="long"
        ),
        (b'--prompt "a cat" --steps 4', "line 1: begins with an option of another program"),
    ],
)
def test_bytes_that_are_no_prompts(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    assert re.search(says, refused(tmp_path / "p.txt"))


@pytest.mark.parametrize(
    "line, says",
    [
        (r'{"prompt": "a \ud83d cat"}', "line 1: half of a surrogate pair"),
        pytest.param('{"prompt": ' + "[" * 100_000, "line 1: nested more than", id="nested"),
        pytest.param(
            '{"prompt": "a", "x": ' + "9" * 5000 + "}", "a whole number of 5000 digits", id="digits"
        ),
        ('{"prompt": "a", "prompt": "b"}', "'prompt' stands twice"),
        (r'{"prompt": "a\u0000b"}', "NUL character"),
    ],
)
def test_json_rows_out_of_bounds(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "p.jsonl").write_text(line, encoding="utf-8")
    assert says in refused(tmp_path / "p.jsonl")


@pytest.mark.parametrize("name", ["p.txt.gz", "p.jsonl.gz", "p.csv.gz"])
def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"a" * (1 << 20))
    tracemalloc.start()
    assert "line 1: longer than 1,048,576 characters" in refused(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_a_small_file_does_not_stand_for_endless_lines(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "p.txt.gz", "wb") as file:
        file.write(b"\n" * (5 << 20))
    assert "bytes unpack to more than 4 MiB" in refused(tmp_path / "p.txt.gz")


FIELDS = ["prompt_2", "cfg_scale", "Steps", "scheduler"]


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_not_obeyed_is_refused(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "a", name: None}, {"prompt": "b", name: ""}, {"prompt": "c", name: 3}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert f"line 3: `{name}` of a single prompt is not supported" in refused(tmp_path / "p.jsonl")
    (tmp_path / "p.csv").write_text(f"prompt,{name}\na,\nb,3\n", encoding="utf-8")
    assert f"line 3: `{name}`" in refused(tmp_path / "p.csv")


def test_other_fields_are_left_alone_and_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "a", "id": 1, "title": "y"}, {"prompt": "b", "id": 2, "note": "x"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert prompt_texts(tmp_path / "p.jsonl") == ["a", "b"]
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "title, note" in shown


@pytest.mark.parametrize("ending", ["", ".txt", ".jsonl", ".csv"])
def test_a_pipe_is_read_to_its_end(tmp_path: Path, ending: str) -> None:
    text = {
        ".jsonl": '\n{"prompt": "a cat"}\n',
        ".csv": "id,prompt\n1,a cat\n",
        ".txt": "a cat\n",
        "": "a cat\n",
    }
    pipe = tmp_path / f"pipe{ending}"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(text[ending],))
    writer.start()
    assert prompt_texts(pipe) == ["a cat"]
    writer.join()


@pytest.mark.parametrize(
    "text, prompts",
    [
        ("a cat\na {red|blue} dog\n", ["a cat", "a {red|blue} dog"]),
        ("\n{red|blue} dog\n", ["{red|blue} dog"]),
        ('\n{"prompt": "a cat"}\n', ["a cat"]),
        ('id;prompt\n1;"a cat"\n', ["a cat"]),
    ],
)
def test_standard_input(monkeypatch: pytest.MonkeyPatch, text: str, prompts: list[str]) -> None:
    for name in ("-", "/dev/stdin"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert prompt_texts(Path(name)) == prompts


def test_names_that_are_no_files(tmp_path: Path) -> None:
    for name in ("x" * 5000, "nul\0", "\udcff.txt", "/dev/zero", "none.txt", "."):
        message = refused(tmp_path / name)
        assert len(message) < 400
    locked = tmp_path / "locked.txt"
    locked.write_text("a cat", encoding="utf-8")
    locked.chmod(0)
    if os.geteuid():
        assert "Permission denied" in refused(locked)


def test_arguments_that_are_no_text() -> None:
    for prompt, says in (("a \udcff", "surrogate"), ("a \x1b[2J", "U+001B"), ("a" * 200_000, "at most")):
        with pytest.raises(InputError, match="prompt 2") as raised:
            read_images(["a cat", prompt], None)
        assert says in str(raised.value)


def test_parquet_of_others(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "p.parquet"
    broken = pyarrow.Array.from_buffers(  # b"\xff\xfe" and "b" as texts, which no check of UTF-8 has seen
        pyarrow.string(),
        2,
        [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"\xff\xfeb")],
    )
    endless = pyarrow.DictionaryArray.from_arrays(np.zeros(2_000_000, np.int8), ["a cat" * 1000])
    for columns, says in (
        ({"prompt": broken}, "UTF-8"),
        ({"prompt": ["a", "b\0"]}, "row 2: the prompt holds a NUL"),
        ({"prompt": ["a", None]}, "row 2: no text"),
        ({"prompt": [1, 2]}, "row 1: no text"),
        ({"prompt": ["a", "b"], "seed": [None, 3]}, "row 2: `seed`"),
        ({"prompt": ["a"], "lora": [b"x"]}, "the column `lora` holds bytes"),
        ({"prompt": ["a" * (8 << 20)]}, "more than 100,000 characters"),
        ({"prompt": endless}, "unpack to 2,000,000 rows"),
        ({"title": ["a"]}, "no column `prompt`"),
    ):
        parquet.write_table(pyarrow.table(columns), file)
        assert says in refused(file)
    file.write_bytes(b"PAR1 and then nothing")
    refused(file)
    parquet.write_table(pyarrow.table({"prompt": ["a", "b", "a"], "id": [1, 2, 3]}), file)
    assert prompt_texts(file) == ["a", "b", "a"]
