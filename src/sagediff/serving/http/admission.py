"""Admission of every request: its API key and the size of its body are checked. Plain ASGI, so that no route can be
added without it and no web framework is needed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

from sagediff.serving.config import ServeConfig
from sagediff.serving.http.answers import ErrorAnswer, bad_request
from sagediff.serving.metrics import Metrics

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class Admission:
    """Middleware. Behind it, `scope["state"]["tenant"]` is the request's tenant.

    Args:
        open_paths: paths that need no key.
    """

    def __init__(self, app: App, config: ServeConfig, metrics: Metrics, open_paths: frozenset[str]) -> None:
        self._app, self._config, self._metrics, self._open = app, config, metrics, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        refusal = None if scope["path"] in self._open else self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        self._metrics.refused(refusal.code)
        if "record" in scope.get("state", {}):
            scope["state"]["record"].outcome = refusal.code
        await _send_refusal(refusal, send)

    def _refusal(self, scope: Scope) -> ErrorAnswer | None:
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
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


async def _send_refusal(answer: ErrorAnswer, send: Send) -> None:
    body = json.dumps(answer.body).encode()
    headers = answer.headers | {"content-type": "application/json", "content-length": str(len(body))}
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
