"""HTTP around the engine; the only module that knows the web framework."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from sagediff.errors import SagediffError
from sagediff.serving.config import ServeConfig
from sagediff.serving.http.admission import Admission
from sagediff.serving.http.answers import ErrorAnswer, bad_request, base64_text, format_fields
from sagediff.serving.http.image_store import ImageStore
from sagediff.serving.http.json_body import Body, parse_fields, warnings_of
from sagediff.serving.http.openapi import complete_schema
from sagediff.serving.http.page_files import PAGE_HEADERS, page_files
from sagediff.serving.http.request_log import RequestLog
from sagediff.serving.http.schema import BatchBody, GenerationBody, ParsedBody, parse_body
from sagediff.serving.http.streams import (
    ImageStream,
    answer_for,
    encode_all,
    finished_images,
    sampling_fields,
    until_disconnect,
)
from sagediff.serving.image_service import ImageService
from sagediff.serving.metrics import Metrics
from sagediff.serving.tenants import Tenants

_LIVENESS = frozenset({"/health", "/ready"})
_PROBES = _LIVENESS | {"/metrics"}  # polled by machines
_TIMED = frozenset({"/v1/images/generations", "/v1/images/batches"})
_END = 5.0  # seconds for the engine to end once all answers are given or given up


def create_app(engine: ImageService, config: ServeConfig, metrics: Metrics, num_steps: int) -> FastAPI:
    """The server's routes. The engine is started with the app, and drained and stopped with it.

    Args:
        num_steps: sampling steps where a request names none.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop, min(_END, config.drain_s))

    # no documentation pages: they would load scripts from other servers
    app = FastAPI(title="sagediff", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.openapi = lambda: complete_schema(FastAPI.openapi(app), config)  # type: ignore[method-assign]
    page = page_files()
    tenants = Tenants(config.api_keys, on_disk=config.cache_dir is not None)
    app.add_middleware(
        Admission, config=config, tenants=tenants, metrics=metrics, open_paths=_LIVENESS | set(page),
        any_host=_LIVENESS,
    )  # fmt: skip
    app.add_middleware(
        RequestLog, config=config, tenants=tenants, metrics=metrics, quiet=_PROBES, timed=_TIMED
    )
    store = ImageStore(config.stored_bytes, config.stored_s, engine.clock)
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
        limits = {"steps": num_steps, "max_steps": config.max_steps, "max_images": config.most_images}
        return {"object": "list", "data": [model | limits]}

    @app.get("/v1/images/{name}")
    async def image(name: str, request: Request) -> Response:
        if request.url.path in fixed:  # another route's, which takes other methods
            raise HTTPException(405)
        found = store.get(name, request.state.tenant)
        if found is None:
            return _error(bad_request("no such image, or it is kept no longer", "name", "not_found", 404))
        return Response(found.data, media_type=found.media_type)

    @app.post("/v1/images/generations")
    async def generate(request: Request) -> Response:
        parsed = await parse(GenerationBody, request)
        if parsed.stream:
            return stream(parsed, request, each_alone=False)
        tenant: str = request.state.tenant
        tickets = request.state.record.tickets = engine.submit(parsed.requests)
        try:
            images = await until_disconnect(request.receive, finished_images(tickets))
        finally:
            engine.cancel(tickets)  # changes nothing for those that are finished
        if images is None:
            request.state.record.outcome = "client_gone"
            return Response(status_code=499)  # nobody reads it
        files = await asyncio.to_thread(encode_all, [made.image for made in images], parsed, metrics)
        data: list[dict[str, Any]] = []
        for file, made, asked in zip(files, images, parsed.requests, strict=True):
            more = sampling_fields(made, asked.num_inference_steps)
            if parsed.by_url:
                name = store.put(file, f"image/{parsed.output_format}", tenant)
                data.append({"url": str(request.url_for("image", name=name)), **more})
            else:
                data.append({"b64_json": await asyncio.to_thread(base64_text, file), **more})
        answer = {"created": int(time.time()), "data": data, **format_fields(parsed, *images)}
        return await asyncio.to_thread(JSONResponse, answer)

    @app.post("/v1/images/batches")
    async def generate_many(request: Request) -> Response:
        """Not OpenAI's: many prompts in one request, so that all of them arrive within one window."""
        return stream(await parse(BatchBody, request), request, each_alone=True)

    async def parse(kind: type[Body], request: Request) -> ParsedBody:
        content_type = request.headers.get("content-type", "")
        body = await asyncio.to_thread(parse_fields, request.state.body, content_type, kind)
        assert isinstance(body, GenerationBody | BatchBody)
        parsed = parse_body(
            body, config, tenant=request.state.tenant, now=engine.clock(), num_steps=num_steps,
            size_multiple=engine.size_multiple,
        )  # fmt: skip
        return replace(parsed, warnings=warnings_of(body))

    def stream(parsed: ParsedBody, request: Request, *, each_alone: bool) -> StreamingResponse:
        events = ImageStream(engine, parsed, metrics, request.state.record, each_alone=each_alone)
        lines = events.lines(request.receive)
        return StreamingResponse(lines, 200, {"Cache-Control": "no-store"}, "text/event-stream")

    async def show_page(request: Request) -> Response:
        data, media_type = page[request.url.path]
        return Response(data, 200, PAGE_HEADERS, media_type)

    for path in page:
        app.add_api_route(path, show_page, include_in_schema=False)

    fixed = {
        route.path: set(route.methods)
        for route in app.routes
        if isinstance(route, Route) and "{" not in route.path and route.methods
    }

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        allowed = fixed.get(request.url.path)
        if error.status_code == 405 and allowed is None and request.method != "OPTIONS":
            error = HTTPException(404)  # only a name of a stored image could have stood there
        elif error.status_code == 405:
            methods = ", ".join(sorted({*(allowed or {"GET"}), "OPTIONS"}))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"Allow": methods})
            error = HTTPException(405, headers={"Allow": methods})
        code = "not_found" if error.status_code == 404 else "invalid_request"
        answer = bad_request(
            f"{request.method} {request.url.path}: {error.detail}", None, code, error.status_code
        )
        metrics.refused(answer.code)
        request.state.record.outcome = answer.code
        return _error(answer, error.headers)

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        answer = answer_for(error, request.state.record)
        metrics.refused(answer.code)
        # unexpected errors are answered outside of the request log, which adds the id to all other answers
        outside = {} if isinstance(error, SagediffError) else {"x-request-id": request.state.record.id}
        return _error(answer, outside)

    for kind in (SagediffError, Exception):
        app.add_exception_handler(kind, refuse)
    return app


def _error(answer: ErrorAnswer, headers: Any = None) -> JSONResponse:
    return JSONResponse(answer.body, answer.status, headers=answer.headers | dict(headers or {}))
