"""Digests: they tell contents apart, and never change, since files are named by them."""

from __future__ import annotations

from pathlib import Path

from sagediff.files.digest import (
    bytes_digest,
    cache_name,
    file_digest,
    number_of,
    object_digest,
    texts_digest,
)


def test_digests_tell_lists_of_texts_apart() -> None:
    lists = [["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a"], []]
    assert len({texts_digest(parts) for parts in lists}) == len(lists)
    assert texts_digest(["a", "b"]) == texts_digest(("a", "b"))


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file") == bytes_digest(data)


def test_the_order_of_keys_changes_no_digest() -> None:
    assert object_digest({"a": 1, "b": [2, None]}) == object_digest({"b": [2, None], "a": 1})
    assert object_digest({"a": 1}) != object_digest({"a": 2})


def test_digests_are_those_of_earlier_versions() -> None:
    assert texts_digest(["a cat", "ein Löwe"]) == "5f726301e3ef63f89082c51177e3753b"
    assert object_digest({"num_steps": 5}, size=4) == "5470c34c"
    assert number_of("7") == 16667848380713045890
    assert cache_name(b"content") == "ed7002b439e9ac845f22357d822bac1444730fbd"
