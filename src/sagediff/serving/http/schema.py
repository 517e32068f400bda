"""Request bodies: OpenAI's for one prompt, ours for many, and how they become requests."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sagediff.errors import InputError
from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.config import ServeConfig

OutputFormat = Literal["png", "jpeg", "webp"]
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_SEEDS = 2**63
_EXACT = 2**53  # from here on a number with a point may stand for another
CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # characters that no prompt holds: all but tab and line ends
_CONTROL = re.compile(f"[{CONTROL}]")


class RequestProblem(InputError):
    """A request that this server can never accept. `param` names the field, `code` is for programs."""

    def __init__(self, param: str | None, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param, self.code = param, code


def _whole(value: Any) -> Any:
    """JSON has one type of number: 1.0 is a whole number."""
    exact = isinstance(value, float) and value.is_integer() and abs(value) < _EXACT
    return int(value) if exact else value


Whole = BeforeValidator(_whole)


class BodyFields(BaseModel):
    """Fields of both bodies."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    n: Annotated[int, Field(ge=1), Whole] | None = None
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100), Whole] | None = None
    user: str | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3), Whole] | None = None
    negative_prompt: str | None = None
    num_inference_steps: Annotated[int, Field(ge=1), Whole] | None = None
    guidance_scale: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    seed: Annotated[int, Field(ge=0, lt=_SEEDS), Whole] | None = None
    share: bool | None = None


class GenerationBody(BodyFields):
    """OpenAI's fields, and those that diffusion servers add. Unknown fields are named in the answer; null means left
    out."""

    prompt: str


class BatchBody(BodyFields):
    """Many prompts, each as if it came alone with the same fields; the answer is always a stream."""

    prompts: list[str] = Field(min_length=1)


@dataclass(frozen=True)
class ParsedBody:
    """A body with defaults filled in: requests, one per image, and the form of the answer."""

    requests: list[QueuedRequest]
    output_format: OutputFormat
    compression: int
    by_url: bool
    stream: bool
    partial_images: int
    size: str
    warnings: list[str] = field(default_factory=list)


def parse_body(
    body: GenerationBody | BatchBody,
    config: ServeConfig,
    *,
    tenant: str,
    now: float,
    num_steps: int,
    size_multiple: int,
) -> ParsedBody:
    """Check a body against the operator's limits.

    Args:
        now: the engine's clock, for deadlines.
        num_steps: sampling steps where the body names none.
        size_multiple: width and height must be multiples of it.

    Raises:
        RequestProblem: a field that this server can never accept.
    """
    if body.model is not None and body.model != config.model_name:
        raise RequestProblem(
            "model",
            f"the model {body.model[:80]!r} does not exist here; this server has {config.model_name!r}",
            "model_not_found",
        )
    many = isinstance(body, BatchBody)
    prompts = (
        {f"prompts.{i}": text for i, text in enumerate(body.prompts)}
        if isinstance(body, BatchBody)
        else {"prompt": body.prompt}
    )
    for name, text in {**prompts, "negative_prompt": body.negative_prompt or ""}.items():
        if len(text) > config.max_prompt_length:
            raise RequestProblem(
                name, f"{name} has {len(text)} characters; at most {config.max_prompt_length} are taken"
            )
        if (found := _CONTROL.search(text)) is not None:
            raise RequestProblem(
                name, f"{name} holds the control character U+{ord(found[0]):04X} at place {found.start() + 1}"
            )
    for name, text in prompts.items():
        if not text.strip():
            raise RequestProblem(name, f"{name} must not be empty")
    count, steps = body.n or 1, body.num_inference_steps or num_steps
    if count > config.max_n:
        raise RequestProblem("n", f"n must be at most {config.max_n}, got {count}")
    if steps > config.max_steps:
        raise RequestProblem(
            "num_inference_steps", f"num_inference_steps must be at most {config.max_steps}, got {steps}"
        )
    most = config.most_images
    if many and len(prompts) * count > most:
        raise RequestProblem(
            "prompts", f"{len(prompts) * count} images in one request; at most {most} are taken"
        )
    if many and body.stream is False:
        raise RequestProblem("stream", "this route always answers with a stream")
    if (many or body.stream) and body.response_format == "url":
        raise RequestProblem("response_format", "a stream carries images as b64_json, not url")
    width, height = _size(body.size, config.max_side, size_multiple)
    requests = [
        QueuedRequest(
            id=uuid.uuid4().hex,
            prompt=prompt,
            negative_prompt=body.negative_prompt,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=body.guidance_scale,
            seed=None if body.seed is None else (body.seed + i) % _SEEDS,
            share=body.share,
            tenant=tenant,
            deadline=now + config.deadline_s,
        )
        for prompt in prompts.values()
        for i in range(count)
    ]
    return ParsedBody(
        requests,
        body.output_format or "png",
        95 if body.output_compression is None else body.output_compression,
        body.response_format == "url",
        many or bool(body.stream),
        body.partial_images or 0,
        body.size or "auto",
    )


def _size(text: str | None, max_side: int, multiple: int) -> tuple[int | None, int | None]:
    """(width, height), None for the model's own."""
    if text is None or text == "auto":
        return None, None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise RequestProblem("size", f"size must be 'auto' or WIDTHxHEIGHT like '512x512', got {text[:40]!r}")
    width, height = int(match[1]), int(match[2])
    if max(width, height) > max_side:
        raise RequestProblem("size", f"width and height must be at most {max_side}, got {text}")
    if width % multiple or height % multiple:
        raise RequestProblem("size", f"width and height must be multiples of {multiple}, got {text}")
    return width, height
