"""A share plan as JSON: its form, and the types of what is read. Whether the numbers make a plan, the plan checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sagediff.errors import InputError, PlanError
from sagediff.files.json_input import parse
from sagediff.plan.levels import check_ratios

_FORMAT, _VERSION = "sagediff.SharePlan", 1


def plan_text(fields: Mapping[str, Any]) -> str:
    return json.dumps({"format": _FORMAT, "version": _VERSION} | dict(fields))


def plan_fields(text: str) -> dict[str, Any]:
    """The fields of a plan, each of its own type.

    Raises:
        PlanError: no JSON, another format or version, a field that is missing or of another type.
    """
    try:
        data = parse(text, "the share plan")
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise PlanError(f"not a share plan: expected JSON with format {_FORMAT!r}")
        if data.get("version") != _VERSION:
            raise PlanError(
                f"share plan of version {data.get('version')!r}; this sagediff reads version {_VERSION}"
            )
        ratio, calls = data["share_ratio"], data["calls_per_step"]
        replayed = data.get("replayed_steps")  # not in plans that were written before there was replay
        guided_from, rows = data.get("guided_from"), data.get("rows_per_call")
        return {
            "num_steps": data["num_steps"],
            "levels": tuple((_whole(start), tuple(map(_whole, nodes))) for start, nodes in data["levels"]),
            "shared_guidance": _number(data["shared_guidance"]),
            "unguided_steps": data["unguided_steps"],
            "rows_per_prompt": _whole(data["rows_per_prompt"]),
            "calls_per_step": None if calls is None else tuple(map(_whole, calls)),
            "share_ratio": tuple(map(_ratio, ratio)) if isinstance(ratio, list) else _ratio(ratio),
            "replayed_steps": None if replayed is None else tuple(map(_whole, replayed)),
            "guided_from": None if guided_from is None else tuple(guided_from),
            "rows_per_call": None if rows is None else tuple(map(_whole, rows)),
        }
    except PlanError:
        raise
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise PlanError(f"not a share plan: {error}") from error


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"not a share plan: {value!r} should be a whole number")
    return value


def _number(value: object) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise PlanError(f"not a share plan: {value!r} should be a number or null")
    return value


def _ratio(value: object) -> Any:
    ratio = _number(value)
    if ratio is not None:
        check_ratios([ratio])
    return ratio
