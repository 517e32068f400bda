"""JSON objects from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sagediff.errors import InputError


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: no such file, or it holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file {file}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} should hold a JSON object")
    return found
