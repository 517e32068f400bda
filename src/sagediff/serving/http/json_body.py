"""Bytes of a request's body to its fields. Bounded in what it may hold before it is parsed, since that cannot be
interrupted; called outside of the event loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from sagediff.errors import InputError
from sagediff.files.json_input import parse_object
from sagediff.serving.http.schema import BodyFields, RequestProblem

Body = TypeVar("Body", bound=BodyFields)

_MOST_VALUES = 10_000  # of a body; the largest has a few for each of its prompts
_MOST_QUOTES = 1_000_000
_SYNONYMS = {
    "steps": "num_inference_steps",
    "num_steps": "num_inference_steps",
    "inference_steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "width": "size",
    "height": "size",
    "num_images": "n",
    "num_images_per_prompt": "n",
    "batch_size": "n",
    "negative": "negative_prompt",
    "format": "output_format",
    "quality_level": "output_compression",
}
_MOST_NAMED, _LONGEST_NAME = 20, 40


def parse_fields(body: bytes, content_type: str, kind: type[Body]) -> Body:
    """The fields of a body.

    Args:
        content_type: the header; "" for none.

    Raises:
        RequestProblem: not JSON, or not these fields; `param` names the first that is wrong.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        given = f"it says {media_type[:80]!r}" if media_type else "there is none"
        raise RequestProblem(
            None, f"send the body as JSON, with the header Content-Type: application/json; {given}",
            "unsupported_media_type",
        )  # fmt: skip
    if _values(body) > _MOST_VALUES:
        raise RequestProblem(None, f"the body holds more than {_MOST_VALUES} values", "too_large")
    try:
        found = parse_object(body, "the body")
    except InputError as error:
        raise RequestProblem(_field_of_broken_text(body), str(error)) from None
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        message = "it is required" if first["type"] == "missing" else first["msg"]
        raise RequestProblem(param, f"{param or 'the body'}: {message}") from None


def warnings_of(body: BodyFields) -> list[str]:
    """A sentence for each field that was not understood; null counts as left out."""
    unknown = [name for name, value in (body.model_extra or {}).items() if value is not None]
    told = []
    for name in unknown[:_MOST_NAMED]:
        instead = f"; use {_SYNONYMS[name]}" if name in _SYNONYMS else ""
        told.append(f"{name[:_LONGEST_NAME]} is no field of this server and was ignored{instead}")
    if len(unknown) > _MOST_NAMED:
        told.append(f"so were {len(unknown) - _MOST_NAMED} more")
    return told


def _values(body: bytes) -> int:
    """About how many values a document holds, at most: commas and brackets that are not in texts. Some milliseconds for
    a million bytes, while to parse as many empty objects would keep the whole process busy for half a second."""
    if body.count(b'"') > _MOST_QUOTES:
        return _MOST_QUOTES
    parts = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')  # without quotes that are in texts
    outside = b"".join(parts[::2])
    return sum(map(outside.count, (b",", b"[", b"{")))


def _field_of_broken_text(body: bytes) -> str | None:
    """The field whose text holds half of a surrogate pair; None if the body is refused for another reason."""
    try:
        found = json.loads(body)
        fields = found.items() if isinstance(found, Mapping) else ()
        for name, value in fields:
            if isinstance(value, list):
                places = (f"{name}.{i}" for i, each in enumerate(value) if _is_broken(each))
            else:
                places = (place for place in (name,) if _is_broken(value))
            if (place := next(places, None)) is not None and not _is_broken(place):
                return place
        return None
    except (ValueError, RecursionError):
        return None


def _is_broken(value: Any) -> bool:
    return isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)
