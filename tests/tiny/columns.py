"""What a user may hold texts in, one for each prompt: lists, arrays, columns of tables, generators."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np


class Column:
    """A column of a table, as pandas has it: iterates in order, but `column[0]` is the entry labelled 0."""

    def __init__(self, values: list[Any], labels: list[int]) -> None:
        self._values, self._labels = values, labels

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, label: int) -> Any:
        return self._values[self._labels.index(label)]


class Arrow:
    """A column of pyarrow's, whose entries are no texts."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def __iter__(self) -> Any:
        return iter([SimpleNamespace(as_py=lambda value=value: value) for value in self._values])

    def to_pylist(self) -> list[Any]:
        return list(self._values)


HOLDERS: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "objects": lambda texts: np.array(texts, dtype=object),
    "column": lambda texts: Column(texts, [1, 0, 3, 2]),
    "arrow": Arrow,
    "generator": iter,
    "keys": lambda texts: dict.fromkeys(texts).keys(),
}
