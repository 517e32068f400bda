"""Completes the OpenAPI document that the web framework derives: errors, files, and the operator's limits. Knows no web
framework."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from sagediff.serving.config import ServeConfig
from sagediff.serving.http.schema import CONTROL, BatchBody, BodyFields, GenerationBody

_GENERATIONS = "/v1/images/generations"
_BATCHES = "/v1/images/batches"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_FILE = {"schema": {"type": "string", "format": "binary"}}
_TEXT = {"schema": {"type": "string"}}
_EVENT = {  # of a stream, one by one
    "schema": {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    }
}
_BODIES: dict[str, type[BodyFields]] = {_GENERATIONS: GenerationBody, _BATCHES: BatchBody}
_PROMPT = rf"^[^{CONTROL}]*[^{CONTROL}\s][^{CONTROL}]*$"
_CONTENT: dict[str, dict[str, Any]] = {  # of answers that are not, or not only, JSON
    "/metrics": {"text/plain": _TEXT},
    "/v1/images/{name}": {"image/png": _FILE, "image/jpeg": _FILE, "image/webp": _FILE},
    _GENERATIONS: {"application/json": {"schema": {"type": "object"}}, "text/event-stream": _EVENT},
    _BATCHES: {"text/event-stream": _EVENT},
}


def complete_schema(schema: dict[str, Any], config: ServeConfig) -> dict[str, Any]:
    """The framework's OpenAPI document, completed."""
    schema = deepcopy(schema)
    parts = schema.setdefault("components", {}).setdefault("schemas", {})
    parts["Error"] = _ERROR
    for name in ("HTTPValidationError", "ValidationError"):  # errors have OpenAI's form instead
        parts.pop(name, None)
    refused = {
        "description": "Refused, or failed",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for path, kind in _BODIES.items():
        name = kind.__name__
        parts[name] = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        del parts[name][
            "additionalProperties"
        ]  # others are read and named, within bounds that no schema can say
        schema["paths"][path]["post"]["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
        }
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            answers = operation["responses"]
            answers.pop("422", None)
            if path == "/ready":
                answers["503"] = {**answers["200"], "description": "Not ready"}
            elif path != "/health":
                answers |= {"4XX": refused, "5XX": refused}
            if path in _CONTENT:
                answers["200"]["content"] = _CONTENT[path]
    prompt = {"minLength": 1, "maxLength": config.max_prompt_length, "pattern": _PROMPT}
    for kind in _BODIES.values():
        body = parts[kind.__name__]["properties"]
        _limit(body, "prompt", **prompt)
        _limit(body, "prompts", maxItems=config.most_images)
        _limit(body.get("prompts", {}), "items", **prompt)
        _limit(body, "negative_prompt", maxLength=config.max_prompt_length, pattern=rf"^[^{CONTROL}]*$")
        _limit(body, "model", enum=[config.model_name])
        _limit(body, "n", maximum=config.max_n)
        _limit(body, "num_inference_steps", maximum=config.max_steps)
        _limit(body, "size", pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")
    _limit(parts["BatchBody"]["properties"], "stream", enum=[True])
    return schema


def _limit(properties: dict[str, Any], name: str, **limits: Any) -> None:
    """Add limits to each type of a field but null."""
    field = properties.get(name, {})
    for kind in field.get("anyOf", [field] if field else []):
        if kind.get("type") != "null":
            kind.update(limits)
