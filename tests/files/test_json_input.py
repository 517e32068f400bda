"""The one parser of JSON that somebody else wrote."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagediff.errors import InputError
from sagediff.files.json_input import parse, parse_object, read_object


@contextmanager
def one_line() -> Iterator[None]:
    """An InputError says where on one line."""
    try:
        yield
    except InputError as error:
        if not str(error).startswith("here: ") or "\n" in str(error):
            raise AssertionError(str(error)) from error
        raise


_texts = st.text(st.characters(exclude_categories=["Cs"]))
_numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
_values = st.recursive(
    st.none() | st.booleans() | _numbers | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=20,
)


@given(_values, st.booleans())
def test_what_json_writes_is_read_back(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse(text, "here") == parse(text.encode(), "here") == value


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:0123456789eE+-.\\ud', max_size=60))
def test_anything_else_is_one_line(text: str | bytes) -> None:
    with suppress(InputError), one_line():
        parse(text, "here")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested"),
        ("[" * 33 + "]" * 33, "nested"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested"),
        ("9" * 5000, "5000 digits"),
        ("[NaN]", "not finite"),
        ("-Infinity", "not finite"),
        ("1e999", "not finite"),
        (r'{"a": "\ud83d"}', "surrogate"),
        (r'{"\udc00": 1}', "surrogate"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        (b"\xff\xfe{}", "not UTF-8"),
        ('{"a": 1', "line 1, column 8"),
        ("[" + " " * 200 + "]", "longer than 100 bytes"),
    ],
)
def test_out_of_bounds(text: str | bytes, says: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match=says) as raised:
        parse(text, "here", max_bytes=100 if "longer" in says else 1 << 20)
    assert str(raised.value).startswith("here: ") and len(str(raised.value)) < 200
    assert time.process_time() - start < 2


@pytest.mark.parametrize("text", ["[]", "null", "3", '"a"', "true"])
def test_an_object_is_asked_for(text: str) -> None:
    with pytest.raises(InputError, match="here: should hold a JSON object, holds"):
        parse_object(text, "here")


def test_files(tmp_path: Path) -> None:
    (tmp_path / "marked.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(tmp_path / "marked.json") == {"a": 1}
    os.mkfifo(tmp_path / "pipe")
    for name in ("none.json", "pipe", ".", "x" * 5000, "nul\0"):
        with pytest.raises(InputError) as raised:
            read_object(tmp_path / name)
        assert "\n" not in str(raised.value)
    (tmp_path / "large.json").write_bytes(b"{" + b" " * 200 + b"}")
    with pytest.raises(InputError, match="longer than 100"):
        read_object(tmp_path / "large.json", max_bytes=100)
