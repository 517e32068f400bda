"""HTTP around the engine; the only module that knows the web framework."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from sagediff.errors import SagediffError
from sagediff.serving.answers import (
    ErrorAnswer,
    as_text,
    bad_request,
    details,
    encode,
    error_answer,
    stream_error,
    stream_event,
)
from sagediff.serving.config import ServeConfig
from sagediff.serving.description import described
from sagediff.serving.engine import Engine, Preview, Ticket
from sagediff.serving.metrics import Metrics
from sagediff.serving.runner import Picture
from sagediff.serving.schema import GenerationBody, Wanted, read_body
from sagediff.serving.store import PictureStore

log = logging.getLogger(__name__)

_OPEN = ("/health", "/ready")  # without a key
_KEEP_ALIVE = 15.0  # seconds between comments in a silent stream, so that proxies do not close it


def create_app(engine: Engine, config: ServeConfig, metrics: Metrics, num_steps: int) -> FastAPI:
    """The server's routes. The engine is started with the app, and drained and stopped with it.

    Args:
        num_steps: sampling steps where a request names none.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop, config.drain_s)

    # no pages of documentation: they would be fetched from elsewhere
    app = FastAPI(title="sagediff", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.openapi = lambda: described(FastAPI.openapi(app), config)  # type: ignore[method-assign]
    app.add_middleware(Gate, config=config, metrics=metrics)
    store = PictureStore(config.stored_bytes, config.stored_s, engine.clock)
    created = int(time.time())

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"status": engine.state}, 200 if engine.state == "ready" else 503)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": config.model_name, "object": "model", "created": created, "owned_by": "sagediff"}
        return {"object": "list", "data": [model]}

    @app.get("/v1/images/{name}")
    async def picture(name: str, request: Request) -> Response:
        found = store.get(name, request.state.tenant)
        if found is None:
            return _error(bad_request("no such picture, or it is kept no longer", "name", "not_found", 404))
        return Response(found.data, media_type=found.media_type)

    @app.post("/v1/images/generations")
    async def generate(body: GenerationBody, request: Request) -> Response:
        tenant: str = request.state.tenant
        wanted = read_body(
            body, config, tenant=tenant, now=engine.clock(), num_steps=num_steps,
            size_multiple=engine.size_multiple,
        )  # fmt: skip
        if wanted.stream:
            events = Events(asyncio.get_running_loop())
            tickets = engine.submit(wanted.requests, wanted.partial_images, events.preview)
            events.follow(tickets)
            lines = _stream(events, tickets, wanted, partial(engine.cancel, tickets), request)
            return StreamingResponse(lines, 200, {"Cache-Control": "no-store"}, "text/event-stream")
        tickets = engine.submit(wanted.requests)
        try:
            pictures = await _unless_gone(request, _all(tickets))
        finally:
            engine.cancel(tickets)  # changes nothing for those that are finished
        if pictures is None:
            return Response(status_code=499)  # nobody reads it
        files = await asyncio.to_thread(_encode_all, pictures, wanted)
        data = []
        for file, made in zip(files, pictures, strict=True):
            if wanted.by_url:
                name = store.put(file, f"image/{wanted.output_format}", tenant)
                data.append({"url": str(request.url_for("picture", name=name)), **_told(made)})
            else:
                data.append({"b64_json": as_text(file), **_told(made)})
        return JSONResponse({"created": int(time.time()), "data": data, **details(wanted)})

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part != "body"]
        param = ".".join(place) if first["type"] != "json_invalid" else None
        answer = bad_request(f"{param or 'the body'}: {first['msg']}", param)
        metrics.refused(answer.code)
        return _error(answer)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> JSONResponse:
        code = "not_found" if error.status_code == 404 else "invalid_request"
        answer = bad_request(
            f"{request.method} {request.url.path}: {error.detail}", None, code, error.status_code
        )
        return _error(answer, error.headers)

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        answer = _answer(error)
        metrics.refused(answer.code)
        return _error(answer)

    for kind in (SagediffError, Exception):
        app.add_exception_handler(kind, refuse)
    return app


class Gate:
    """What every request passes: the API key, and the size of its body. Inside, `request.state.tenant` says who asks.

    A middleware rather than a dependency, so that no route can be added without it.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        self._app, self._config, self._metrics = app, config, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        refusal = None if scope["path"] in _OPEN else self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            self._metrics.refused(refusal.code)
            await _error(refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ErrorAnswer | None:
        headers = dict(scope["headers"])
        scheme, _, key = headers.get(b"authorization", b"").decode("utf-8", "replace").partition(" ")
        tenant = self._config.tenant_of(key.strip() if scheme.lower() == "bearer" else None)
        if tenant is None:
            return ErrorAnswer(
                401, "give a valid API key: Authorization: Bearer KEY", "invalid_request_error",
                "invalid_api_key", None, {"x-should-retry": "false", "WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        scope.setdefault("state", {})["tenant"] = tenant
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            return bad_request("the body must come with a Content-Length", None, "length_required", 411)
        if int(length) > self._config.max_body_bytes:
            return bad_request(
                f"the body has {int(length)} bytes; at most {self._config.max_body_bytes} are taken", None,
                "too_large", 413,
            )  # fmt: skip
        return None


class Events:
    """What happens to tickets, handed from the engine's thread to the loop of a stream: previews, then ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.queue: asyncio.Queue[tuple[Ticket, Preview | None]] = asyncio.Queue()

    def follow(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            ticket.future.add_done_callback(partial(self._ended, ticket))

    def preview(self, ticket: Ticket, shown: Preview) -> None:
        self._tell(ticket, shown)

    def _ended(self, ticket: Ticket, future: object) -> None:
        self._tell(ticket, None)

    def _tell(self, ticket: Ticket, shown: Preview | None) -> None:
        with suppress(RuntimeError):  # the loop ended with its stream still open: nobody misses it
            self._loop.call_soon_threadsafe(self.queue.put_nowait, (ticket, shown))


async def _stream(
    events: Events, tickets: list[Ticket], wanted: Wanted, cancel: Callable[[], None], request: Request
) -> AsyncIterator[str]:
    """Server-sent events until all pictures are complete, one failed, or the client went away."""
    left = len(tickets)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        while left:
            following = asyncio.ensure_future(events.queue.get())
            await asyncio.wait({following, gone}, timeout=_KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                following.cancel()
                return
            if not following.done():
                following.cancel()
                yield ": still at work\n\n"
                continue
            ticket, shown = following.result()
            index = {"index": tickets.index(ticket)}
            if shown is not None:
                data = await asyncio.to_thread(encode, shown.image, wanted.output_format, wanted.compression)
                more = {"partial_image_index": shown.number, **index}
                yield stream_event("image_generation.partial_image", wanted, data, more)
                continue
            left -= 1
            error = ticket.future.exception()
            if error is not None:
                yield stream_error(_answer(error))
                return
            made = ticket.future.result()
            data = await asyncio.to_thread(encode, made.image, wanted.output_format, wanted.compression)
            yield stream_event("image_generation.completed", wanted, data, {**_told(made), **index})
    finally:
        gone.cancel()
        cancel()


def _encode_all(pictures: Sequence[Picture], wanted: Wanted) -> list[bytes]:
    return [encode(made.image, wanted.output_format, wanted.compression) for made in pictures]


async def _all(tickets: Sequence[Ticket]) -> list[Picture]:
    return list(await asyncio.gather(*(asyncio.wrap_future(ticket.future) for ticket in tickets)))


async def _unless_gone(request: Request, work: Awaitable[list[Picture]]) -> list[Picture] | None:
    """What the work gives; None as soon as the client has gone."""
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        gone.cancel()
        doing.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _told(made: Picture) -> dict[str, Any]:
    """What a client learns of its picture beyond OpenAI's fields."""
    return {
        "seed": made.seed,
        "evaluations": round(made.evaluations, 6),
        "group_size": made.group_size,
        "shared_steps": made.shared_steps,
        "replayed_steps": made.replayed_steps,
    }


def _answer(error: BaseException) -> ErrorAnswer:
    if not isinstance(error, Exception):
        raise error
    answer = error_answer(error)
    if answer.status == 500:
        log.error("a request failed", exc_info=error.__cause__ or error)
    return answer


def _error(answer: ErrorAnswer, headers: Any = None) -> JSONResponse:
    return JSONResponse(answer.body, answer.status, headers=answer.headers | dict(headers or {}))
