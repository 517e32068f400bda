"""`sagediff.json`: how a model, a LoRA or a set of prompts is best sampled; written by hand or by `sagediff tune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sagediff.errors import InputError
from sagediff.plan.ladder import ladder

DEFAULTS_FILE = "sagediff.json"
_NUMBERS = ("threshold", "share_ratio", "guidance_scale", "shared_guidance", "unguided", "handover_noise")


def policy_defaults(file: Path) -> dict[str, Any]:
    """What a file says of sampling: any of the numbers above, `max_group_size`, `rungs` and `parting`.

    `rungs` are pairs [threshold, share ratio] above the first, which `threshold` and `share_ratio` are; a file that has
    rungs must have both, and one that has either without rungs says that there are none. Other keys are for readers
    (`tuned`) or for other commands (`scheduler`).

    Raises:
        InputError: the file is missing, is not JSON, or holds a value of the wrong kind.
    """
    if not file.is_file():
        raise InputError(f"there is no policy file {file}")
    found = json_object(file)
    own: dict[str, Any] = {key: found[key] for key in _NUMBERS if key in found}
    for key, value in own.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{file}: `{key}` should be a number, got {value!r}")
    size = found.get("max_group_size")
    if size is not None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"{file}: `max_group_size` should be a whole number of at least 1, got {size!r}")
        own["max_group_size"] = size
    if found.get("rungs"):
        own["rungs"] = _rungs(file, found)
    elif "threshold" in own or "share_ratio" in own:
        own["rungs"] = ()
    parting = found.get("parting", "tree")
    if parting not in ("tree", "together"):
        raise InputError(f"{file}: `parting` should be 'tree' or 'together', got {parting!r}")
    return own | ({"parting": parting} if own.get("rungs") else {})


def folder_defaults(folder: Path | None) -> dict[str, Any]:
    """The same of the file in a model's or a LoRA's folder; nothing where there is none."""
    if folder is None or not (folder / DEFAULTS_FILE).is_file():
        return {}
    return policy_defaults(folder / DEFAULTS_FILE)


def json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file.

    Raises:
        InputError: the file holds something else.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} should hold a JSON object")
    return found


def _rungs(file: Path, found: dict[str, Any]) -> tuple[tuple[float, float], ...]:
    rungs = found["rungs"]
    pairs = isinstance(rungs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) in (int, float) for n in pair)
        for pair in rungs
    )
    if not pairs or "threshold" not in found or "share_ratio" not in found:
        raise InputError(
            f"{file}: `rungs` should be pairs [threshold, share ratio], beside a `threshold` and a `share_ratio`, "
            f"which are the first rung; got {rungs!r}"
        )
    try:
        ladder([(found["threshold"], found["share_ratio"]), *rungs])
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return tuple((float(threshold), float(ratio)) for threshold, ratio in rungs)
