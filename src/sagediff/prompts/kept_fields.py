"""What rows hold that is the user's own, kept for the metadata: on disk once it is much, so that memory is bounded."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Mapping
from typing import IO, Any, cast

from sagediff.errors import InputError
from sagediff.files.digest import RunningDigest
from sagediff.files.json_input import parse_object

_IN_MEMORY = 64 << 20  # bytes


class KeptFields:
    """A mapping for each row, in order; a row without fields takes eight bytes."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._ends = array("q")
        self._digest = RunningDigest()
        self._at_end = False  # of the file

    def add(self, fields: Mapping[str, Any]) -> None:
        """Keep those of the next row.

        Raises:
            InputError: there is no room for them on the disk.
        """
        end = self._ends[-1] if self._ends else 0
        if fields:
            text = json.dumps(fields, ensure_ascii=False).encode()
            try:
                if self._file is None:
                    self._file = cast("IO[bytes]", tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115
                if not self._at_end:
                    self._file.seek(end)
                    self._at_end = True
                self._file.write(text)
            except OSError as error:
                raise InputError(
                    f"the columns of the prompt file do not fit into {tempfile.gettempdir()}: {error.strerror}"
                ) from error
            self._digest.add(f"{len(self._ends)} ".encode() + text)
            end += len(text)
        self._ends.append(end)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> dict[str, Any]:
        start, end = (self._ends[row - 1] if row else 0), self._ends[row]
        if start == end or self._file is None:
            return {}
        self._at_end = False
        self._file.seek(start)
        return parse_object(self._file.read(end - start), f"row {row + 1}")

    @property
    def digest(self) -> str:
        """Of all that is kept."""
        return self._digest.value
