"""Names of images' files: what the template says, and nothing that could not be one file each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagediff.errors import InputError
from sagediff.files.file_names import NameTemplate, slug

VALUES: dict[str, Any] = {
    "index": 7, "row": 3, "copy": 1, "id": "sku 1", "seed": 42, "prompt": "A large Cat, 東京!",
}  # fmt: skip


@pytest.mark.parametrize(
    "template, name",
    [
        ("{id}-{index}", "sku 1-7"),
        ("{index:06d}", "000007"),
        ("{row:03}_{copy}_{seed}", "003_1_42"),
        ("{prompt}", "a-large-cat-東京"),
        ("{{{index}}}.PNG", "{7}"),
    ],
)
def test_fields_are_filled_in(template: str, name: str) -> None:
    assert NameTemplate(template, ".png").name(VALUES, "row 3") == name


@pytest.mark.parametrize(
    "template, says",
    [
        ("{name}", "no field {name}; there are index, row"),
        ("{}", "no field {}"),
        ("{id.__class__}", "no field"),
        ("{id[0]}", "no field"),
        ("{index!r}", "fields are spelled"),
        ("{index:>9999999}", "fields are spelled"),
        ("{id:09d}", "fields are spelled"),
        ("{index:{row}}", "fields are spelled"),
        ("{index", "write braces"),
        ("../{index}", "no slash"),
        ("a\\{index}", "no slash"),
        ("{index}.jpg", "files of this run end in .png"),
    ],
)
def test_a_template_that_is_none(template: str, says: str) -> None:
    with pytest.raises(InputError) as raised:
        NameTemplate(template, ".png")
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "own, says",
    [
        (None, "no `id`"), ("../../x", "slash"), ("a\0", "control"), ("..", "dot"), (".x", "dot"), (" ", "empty"),
        ("a ", "space"), ("x" * 300, "300 bytes; at most 230"),
    ],
)  # fmt: skip
def test_a_row_that_gives_no_name_is_refused(own: str | None, says: str) -> None:
    with pytest.raises(InputError, match=r"p\.csv, line 3: ") as raised:
        NameTemplate("{id}", ".png").name(VALUES | {"id": own}, "p.csv, line 3")
    assert says in str(raised.value)


def test_two_that_would_be_one_file_are_refused() -> None:
    template = NameTemplate("{id}", ".png")
    template.check_distinct(["a", "b"], ["row 1", "row 2"])
    for pair in (["a", "a"], ["Ä", "a\u0308"]):
        with pytest.raises(InputError, match="row 1 and row 2 would both be"):
            template.check_distinct(pair, ["row 1", "row 2"])


@given(st.text())
def test_a_slug_is_a_name(text: str) -> None:
    assert NameTemplate("{prompt}", ".webp").name(VALUES | {"prompt": text}, "row") == slug(text)
