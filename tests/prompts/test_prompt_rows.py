"""Rows of prompt files: what their columns ask for, in every format, and what is the user's own."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagediff.errors import InputError
from sagediff.files.file_names import FIELDS
from sagediff.prompts.columns import COLUMNS, NOT_OBEYED
from sagediff.prompts.image_list import ImageList, RequestOptions, prompt_texts, read_images
from sagediff.prompts.requests import ImageRequest

ROWS: list[dict[str, Any]] = [
    {"prompt": "a cat", "seed": 7, "width": 64, "height": 32, "id": "x1", "shelf": "A"},
    {
        "prompt": "a dog, small",
        "negative_prompt": "blue\nred",
        "guidance_scale": 2.5,
        "num_images": 2,
        "shelf": "",
    },
    {"prompt": 'a "red" star; round', "seed": 2**62 + 1, "num_images": 3, "shelf": "ü"},
    {"prompt": "a cake"},
]
WANTED = [
    ImageRequest("a cat", seed=7, width=64, height=32),
    *[ImageRequest("a dog, small", negative_prompt="blue\nred", guidance_scale=2.5)] * 2,
    *[ImageRequest('a "red" star; round', seed=2**62 + 1 + i) for i in range(3)],
    ImageRequest("a cake"),
]
NAMES = list({name: None for row in ROWS for name in row})


def table(mark: str, rows: Sequence[Mapping[str, Any]] = ROWS) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=mark, lineterminator="\r\n")
    writer.writerows([NAMES, *([row.get(name, "") for name in NAMES] for row in rows)])
    return text.getvalue().encode()


FORMS: dict[str, Callable[[], bytes]] = {
    "p.jsonl": lambda: "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode(),
    "p.json": lambda: json.dumps(ROWS, indent=1).encode(),
    "p.csv": lambda: table(","),
    "semicolon.csv": lambda: b"\xef\xbb\xbfsep=;\r\n" + table(";"),
    "p.tsv": lambda: table("\t"),
}


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def read(file: Path, **options: Any) -> ImageList:
    return read_images((), file, RequestOptions(**options))


def refused(file: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        read(file, **options)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600
    return str(raised.value)


@pytest.mark.parametrize("name", FORMS)
def test_a_row_asks_for_the_same_in_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content = FORMS[name]()
    packed = written(tmp_path, f"{name}.gz", gzip.compress(content, mtime=0))
    for file in (written(tmp_path, name, content), packed, Path("-")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        if name == "semicolon.csv" and str(file) == "-":
            continue  # nothing but its ending tells that such a line begins a table
        images = read(file)
        assert images.requests == WANTED
        assert list(images.starts) == [0, 1, 3, 6] and list(images.ids) == ["x1", None, None, None]
        assert [images.row(i) for i in range(7)] == [0, 1, 1, 2, 2, 2, 3]
        assert [images.copy(i) for i in range(7)] == [0, 0, 1, 0, 1, 2, 0]
        assert [images.own[row].get("shelf", "") for row in range(4)] == ["A", "", "ü", ""]
        assert images.record(1) == {"negative_prompt": "blue\nred", "guidance_scale": 2.5, "shelf": ""}
        assert images.record(0) == {"id": "x1", "width": 64, "height": 32, "shelf": "A"}


def test_parquet_rows_and_what_json_has_no_word_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from datetime import date
    from decimal import Decimal

    from pyarrow import parquet

    file = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({name: [row.get(name) for row in ROWS] for name in NAMES}), file)
    assert read(file).requests == WANTED
    gaps = {  # as pandas writes whole numbers with gaps
        "caption": ["a", "b"], "width": [64.0, float("nan")], "height": [32.0, float("nan")], "id": [1.0, None],
        "bytes": [b"x", b"y"], "when": [date(2026, 1, 2), None], "cost": [Decimal("1.50"), None],
        "kind": pyarrow.array([date(2026, 1, 2)] * 2).dictionary_encode(), "a.b": [1, 2],
        "score": [float("nan"), 2.5], "tags": [["x", "y"], None], "at": [{"x": 1}, None],
    }  # fmt: skip
    parquet.write_table(pyarrow.table(gaps), file)
    images = read(file)
    assert images.requests == [ImageRequest("a", width=64, height=32), ImageRequest("b")]
    assert images.own[0] == {
        "when": "2026-01-02",
        "cost": "1.50",
        "score": None,
        "tags": ["x", "y"],
        "at": {"x": 1},
        "kind": "2026-01-02",
        "a.b": 1,
    }
    assert images.own[1]["score"] == 2.5 and list(images.ids) == [1, None]
    told = "\n".join(images.notes)
    assert "read from `caption`" in told and "`bytes` holds bytes" in told


def test_an_array_may_hold_texts_and_be_one_long_line(tmp_path: Path) -> None:
    texts = [f'a cat {i}, "{"x" * 300}" \\ é' for i in range(5000)]
    file = written(tmp_path, "p.json", json.dumps(texts).encode())
    assert file.stat().st_size > 1 << 20 and prompt_texts(file) == texts


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"prompt": "a"}\n{"prompt": "b"}', r"an array of objects or texts; if each line .* \.jsonl"),
        ("", "should hold an array"),
        ("[]", "holds no prompts"),
        ('["a", 3]', "row 2: should be an object or a text"),
        ('["a", {"prompt": "b"', "row 2: not JSON"),
        ('["a"', "ends in row 1"),
        ('["a",', "ends in row 2"),
        ('["a" "b"]', "row 1: not JSON .a comma"),
        ('["a",]', "a comma after the last entry"),
        ('["a"] x', "goes on after the end"),
        ('["a", {"x": 1}]', "row 2: no text under `prompt`"),
        ("[" * 100_000, "row 1: should be an object"),
        pytest.param('[{"prompt": "a", "x": ' + "[" * 100_000, "row 1: nested", id="nested"),
        pytest.param('["' + "a" * (2 << 20), "row 1: not JSON, or longer than 1,048,576", id="long"),
        ('[{"prompt": "a", "prompt": "b"}]', "'prompt' stands twice"),
        ("[\0\"a\"]", "UTF-16"),
    ],
)  # fmt: skip
def test_an_array_that_is_none(tmp_path: Path, text: str, says: str) -> None:
    message = refused(written(tmp_path, "p.json", text.encode()))
    assert re.search(says, message), message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=40), max_size=3), max_size=8),
    st.integers(1, 40),
)
def test_an_array_is_read_however_it_is_cut(rows: list[dict[str, str]], length: int) -> None:
    from sagediff.prompts.json_rows import array_rows

    text = json.dumps(rows, ensure_ascii=False, indent=length % 3)
    pieces = [text[i : i + length] for i in range(0, len(text), length)]
    assert [row for _, row in array_rows(pieces, "p.json")] == rows


# -- cells


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("width", "64.5", "`width` should be a whole number, got '64.5'"),
        ("width", True, "`width` should be a whole number"),
        ("width", "64px", "whole number"),
        ("seed", -1, "seed must lie in"),
        ("seed", 2**63, "seed must lie in"),
        ("seed", 1e18, "too large to be exact"),
        ("seed", "0x10", "whole number"),
        ("guidance_scale", "7,5", "decimal point"),
        ("guidance_scale", "inf", "should be a number"),
        ("guidance_scale", -1, "at least 0"),
        ("negative_prompt", 3, "should be text"),
        ("negative_prompt", "a \x1b[2J", "U+001B"),
        ("num_images", 0, "[1, 10,000]"),
        ("num_images", 10**9, "[1, 10,000]"),
        ("id", 1.5, "text or a whole number"),
        ("id", ["a"], "text or a whole number"),
        ("width", 0, "at least 1"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_with_its_place(
    tmp_path: Path, name: str, value: Any, says: str
) -> None:
    row = {"prompt": "b", name: value} | ({"height": 64} if name == "width" else {})
    lines = [json.dumps(each) for each in ({"prompt": "a", name: None}, row)]
    message = refused(written(tmp_path, "p.jsonl", "\n".join(lines).encode()))
    assert "p.jsonl, line 2: " in message and says in message, message


def test_cells_that_say_nothing_and_whole_numbers_of_spreadsheets(tmp_path: Path) -> None:
    text = "prompt,seed,width,height,negative_prompt,n\na,, , ,,\nb,3.0,64,64.0, blue ,2\n,,, ,,\n"
    assert read(written(tmp_path, "p.csv", text.encode())).requests == [
        ImageRequest("a"),
        ImageRequest("b", seed=3, width=64, height=64, negative_prompt="blue"),
        ImageRequest("b", seed=4, width=64, height=64, negative_prompt="blue"),
    ]


def test_two_columns_for_one_thing_are_refused_where_both_say_it(tmp_path: Path) -> None:
    text = "prompt,n,num_images\na,2,\nb,,3\nc,1,1\n"
    assert "line 4: `num_images` and another column both say" in refused(
        written(tmp_path, "p.csv", text.encode())
    )


def test_columns_are_known_whatever_their_case_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, "p.csv", b"Caption,Negative Prompt,SEED,Shop\na,blue,3,x\n")
    images = read(file)
    assert images.requests == [ImageRequest("a", negative_prompt="blue", seed=3)]
    assert images.own[0] == {"Shop": "x"}
    told = "\n".join(images.notes)
    for words in (
        "read from `Caption`",
        "`Negative Prompt` is read as `negative_prompt`",
        "`SEED` is read as `seed`",
    ):
        assert words in told
    assert len(images.notes) == 3 and capsys.readouterr().err == ""


def test_the_column_of_prompts(tmp_path: Path) -> None:
    file = written(tmp_path, "p.jsonl", b'{"prompt": "a", "text": "b", "caption": "c"}')
    assert read(file).prompts == ["a"] and read(file).own[0] == {"text": "b", "caption": "c"}
    named = read(file, prompt_column="caption")
    assert named.prompts == ["c"] and named.own[0] == {"prompt": "a", "text": "b"}
    assert "no text under `title`" in refused(file, prompt_column="title")
    several = written(tmp_path, "several.jsonl", b'{"text": "b", "Caption": "c"}')
    assert "line 1: the prompts may be in text, Caption" in refused(several)
    changing = written(tmp_path, "changing.jsonl", b'{"text": "a"}\n{"prompt": "b"}')
    assert "line 2: prompts stand under `prompt` here and under `text` before" in refused(changing)
    plain = written(tmp_path, "p.txt", b"a cat")
    assert "no columns; leave out --prompt-column" in refused(plain, prompt_column="x")


def test_standard_input_with_a_header_that_might_be_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, prompts in (
        ("text, caption and watermark\n", ["text, caption and watermark"]),
        ("[cat:dog:0.5] photo\n", ["[cat:dog:0.5] photo"]),
        ("seed,text\n3,a cat\n", ["a cat"]),
        ('["a cat", "a dog"]', ["a cat", "a dog"]),
        ('[\n{"prompt": "a cat"}\n]', ["a cat"]),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert read(Path("-")).prompts == prompts
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"seed,text,caption\n3,a,b\n")))
    assert "may be in text, caption" in refused(Path("-"))


# -- for all rows


def test_a_row_wins_over_the_options(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a"},
        {"prompt": "b", "width": 32, "negative_prompt": "red", "num_images": 1, "seed": 5},
    ]
    file = written(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows)).encode())
    images = read(file, width=64, height=48, negative_prompt="blue", images_per_prompt=2, share_seeded=True)
    assert images.requests == [
        *[ImageRequest("a", width=64, height=48, negative_prompt="blue")] * 2,
        ImageRequest("b", width=32, height=48, negative_prompt="red", seed=5, share=True),
    ]
    assert "line 2: width and height go together" in refused(file)
    for wrong, says in (({"width": 64}, "go together"), ({"images_per_prompt": 0}, "must lie in")):
        with pytest.raises(InputError, match=says):
            RequestOptions(**wrong)
    assert read_images(["a", "b"], None, RequestOptions(images_per_prompt=2)).prompts == ["a", "a", "b", "b"]


def test_more_images_than_can_be_listed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagediff.prompts.image_list.MAX_IMAGES", 25)
    file = written(tmp_path, "p.csv", b"prompt,n\na,10\nb,10\nc,10\n")
    assert "line 4: more than 25 images" in refused(file)


def test_other_commands_take_prompts_and_how_many(tmp_path: Path) -> None:
    assert prompt_texts(written(tmp_path, "p.csv", b"prompt,n,seed\na,2,\nb,,\n")) == ["a", "a", "b"]
    assert prompt_texts(written(tmp_path, "p.csv", b"text,caption\na,b\n"), "caption") == ["b"]
    with pytest.raises(InputError, match="line 3: `seed` of a single prompt is not supported here"):
        prompt_texts(written(tmp_path, "p.csv", b"prompt,seed\na,\nb,3\n"))


# -- what is the user's own


def test_names_that_metadata_needs_are_kept_beside(tmp_path: Path) -> None:
    both = written(tmp_path, "both.jsonl", b'{"prompt": "a", "group": 1, "row_group": 2}')
    assert "both `group` and `row_group`" in refused(both)
    assert read(written(tmp_path, "p.jsonl", b'{"prompt": "a", "group": 1}')).own[0] == {"group": 1}


def test_what_a_resumed_run_must_find_again(tmp_path: Path) -> None:
    def digests(**more: Any) -> dict[str, str]:
        row = json.dumps({"prompt": "a"} | more)
        return read(written(tmp_path, "p.jsonl", f'{{"prompt": "b"}}\n{row}'.encode())).digests()

    plain = digests()
    assert plain == read_images(["b", "a"], None).digests()
    for more, changed in (
        ({"seed": 1}, {"requests"}),
        ({"width": 8, "height": 8}, {"requests"}),
        ({"guidance_scale": 1}, {"requests"}),
        ({"negative_prompt": "x"}, {"requests"}),
        ({"num_images": 2}, {"prompts"}),
        ({"id": 3}, {"columns"}),
        ({"shelf": 3}, {"columns"}),
        ({"shelf": ""}, {"columns"}),
        ({"seed": None}, set()),
    ):
        now = digests(**more)
        assert {name for name in plain if now[name] != plain[name]} == changed, more
    assert digests(seed=1) != digests(seed=2) and digests(seed=1) != digests(width=1, height=1)


def test_many_rows_with_much_of_their_own_are_read_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagediff.prompts.kept_fields._IN_MEMORY", 1 << 20)
    note = "x" * 2000
    file = tmp_path / "p.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for number in range(10_000):
            stream.write(json.dumps({"prompt": "a cat", "note": f"{number}{note}"}) + "\n")
    tracemalloc.start()
    images = read(file)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert images.own[9999] == {"note": f"9999{note}"} and images.own[0] == {"note": f"0{note}"}


def test_every_column_is_said_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "prompt-files.md").read_text(encoding="utf-8")
    for column in COLUMNS:
        others = f" ({', '.join(f'`{name}`' for name in column.also)})" if column.also else ""
        assert f"| `{column.name}`{others} | {column.meaning} |" in page
    for field, meaning in FIELDS.items():
        assert f"| `{{{field}}}` | {meaning}" in page
    for name in sorted(NOT_OBEYED):
        assert f"`{name}`" in page
