"""Images and errors in OpenAI's form; knows no web framework."""

from __future__ import annotations

import base64
import io
import json
import time
from dataclasses import dataclass, field
from typing import Any

from sagediff.errors import InputError
from sagediff.serving.engine.ticket import MadeImage
from sagediff.serving.failures import (
    Cancelled,
    DeadlineExpired,
    NotReady,
    OutOfMemory,
    QueueFull,
    RefusedByPipeline,
    ReplicaLost,
    ServingError,
)
from sagediff.serving.http.schema import OutputFormat, ParsedBody, RequestProblem

_NO_RETRY = {"x-should-retry": "false"}
_STATUS = {"model_not_found": 404, "unsupported_media_type": 415}
_RETRY = {"Retry-After": "5"}  # seconds


@dataclass(frozen=True)
class ErrorAnswer:
    """Status, OpenAI's error object, and headers."""

    status: int
    message: str
    type: str
    code: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def bad_request(
    message: str, param: str | None = None, code: str = "invalid_value", status: int = 400
) -> ErrorAnswer:
    """For a request that can never succeed; tells clients not to retry."""
    return ErrorAnswer(status, message, "invalid_request_error", code, param, _NO_RETRY)


def error_answer(error: Exception) -> ErrorAnswer:
    """The answer for an error. Errors of the server's own are answered without details."""
    if isinstance(error, RequestProblem):
        return bad_request(str(error), error.param, error.code, _STATUS.get(error.code, 400))
    if isinstance(error, RefusedByPipeline):
        return bad_request(str(error))
    if isinstance(error, InputError):  # well-formed, but not for this model
        return bad_request(str(error), code="unprocessable", status=422)
    if isinstance(error, QueueFull):
        after = {"Retry-After": str(error.retry_after)}
        return ErrorAnswer(429, str(error), "rate_limit_error", "queue_full", None, after)
    if isinstance(error, NotReady):
        return ErrorAnswer(503, str(error), "server_error", error.state, None, _RETRY)
    if isinstance(error, ReplicaLost):
        return ErrorAnswer(503, str(error), "server_error", "replica_lost", None, _RETRY)
    if isinstance(error, OutOfMemory):
        return ErrorAnswer(503, str(error), "server_error", "out_of_memory", None, _NO_RETRY)
    if isinstance(error, Cancelled):  # anyone still reads this only if the server gave up while it ended
        ended = "the server ended before the image was made"
        return ErrorAnswer(503, ended, "server_error", "stopped", None, _RETRY)
    if isinstance(error, DeadlineExpired):
        return ErrorAnswer(503, str(error), "server_error", "deadline_expired")
    message = str(error) if isinstance(error, ServingError) else "the server failed on this request"
    return ErrorAnswer(500, message, "server_error", "image_failed", None, _NO_RETRY)


def encode(image: Any, output_format: OutputFormat, compression: int) -> bytes:
    """A PIL image as the bytes of a file; `compression` is the quality, 0 to 100, of the lossy formats."""
    buffer = io.BytesIO()
    options = {} if output_format == "png" else {"quality": compression}
    image.convert("RGB").save(buffer, output_format.upper(), **options)
    return buffer.getvalue()


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def format_fields(body: ParsedBody, *made: MadeImage) -> dict[str, Any]:
    """The fields of the request that OpenAI repeats in every answer, and `warnings` if there is something to say of
    others, or of the images that it answers with."""
    cut = sorted({image.cut_at for image in made if image.cut_at is not None})
    told = [
        *body.warnings,
        *(
            f"the prompt is longer than the {limit} tokens that the model reads; its end changes nothing"
            for limit in cut
        ),
    ]
    warnings = {"warnings": told} if told else {}
    return {
        "background": "auto",
        "output_format": body.output_format,
        "quality": "auto",
        "size": body.size,
        **warnings,
    }


def stream_event(
    kind: str, body: ParsedBody, data: bytes, more: dict[str, Any], made: MadeImage | None = None
) -> str:
    """A server-sent event that carries an image, finished if it is `made`."""
    event = {
        "type": kind,
        "b64_json": base64_text(data),
        "created_at": int(time.time()),
        **format_fields(body, *(() if made is None else (made,))),
        **more,
    }
    return f"event: {kind}\ndata: {json.dumps(event)}\n\n"


def stream_error(answer: ErrorAnswer, more: dict[str, Any] | None = None) -> str:
    """The error that ends a stream; with `more`, which names the image, one after which the others go on."""
    kind = "error" if more is None else "image_generation.failed"
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **answer.body, **(more or {})})}\n\n"
