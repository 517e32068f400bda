"""Admission of every request: the name by which it addresses the server, its API key, and its body, of which no more
is read than is taken. Plain ASGI, so that no route can be added without it and no web framework is needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

from sagediff.serving.config import ServeConfig
from sagediff.serving.http.answers import ErrorAnswer, bad_request
from sagediff.serving.http.hosts import AllowedHosts
from sagediff.serving.metrics import Metrics
from sagediff.serving.tenants import Tenants

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_NO_BODY = ("GET", "HEAD", "OPTIONS")
_LINGER = (
    2.0  # seconds in which a refused body is read and forgotten, as most clients send all before they listen
)


class Admission:
    """Middleware. Behind it, `scope["state"]["tenant"]` is the request's tenant, and `scope["state"]["body"]` its body.

    Args:
        open_paths: paths that need no key.
        any_host: paths that answer under any name.
    """

    def __init__(
        self,
        app: App,
        config: ServeConfig,
        tenants: Tenants,
        metrics: Metrics,
        open_paths: frozenset[str],
        any_host: frozenset[str],
    ) -> None:
        self._app, self._config, self._tenants, self._metrics = app, config, tenants, metrics
        self._open, self._any_host = open_paths, any_host
        self._hosts = AllowedHosts(config.host, config.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal is None and scope["method"] not in _NO_BODY:
            body = await self._body(receive)
            if body is None:
                scope["state"]["record"].outcome = "client_gone"
                return
            if isinstance(body, bytes):
                scope["state"]["body"] = body
                receive = _after(body, receive)
            else:
                refusal = body
        if refusal is None:
            await self._app(scope, receive, send)
            return
        self._metrics.refused(refusal.code)
        if "record" in scope.get("state", {}):
            scope["state"]["record"].outcome = refusal.code
        unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        await _send_refusal(refusal, receive if unread else None, send)

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> ErrorAnswer | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if scope["path"] not in self._any_host and not self._hosts.allows(host):
            return bad_request(
                f"this server does not answer to the name {host[:80]!r}: address it by its IP address or, if that "
                f"name is its own, start it with SAGEDIFF_ALLOWED_HOSTS",
                None, "invalid_host",
            )  # fmt: skip
        if b"transfer-encoding" in headers and b"content-length" in headers:
            return bad_request("a body has either Content-Length or Transfer-Encoding, not both")
        if scope["path"] in self._open and scope["method"] in _NO_BODY:
            return None
        scheme, _, key = headers.get(b"authorization", b"").decode("utf-8", "replace").partition(" ")
        tenant = self._tenants.of(key.strip() if scheme.lower() == "bearer" else None)
        if tenant is None:
            return ErrorAnswer(
                401, "give a valid API key: Authorization: Bearer KEY", "invalid_request_error",
                "invalid_api_key", None, {"x-should-retry": "false", "WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        scope.setdefault("state", {})["tenant"] = tenant
        if scope["method"] in _NO_BODY:
            return None
        length = headers.get(b"content-length", b"")
        if not length and b"transfer-encoding" not in headers and scope["method"] != "POST":
            return None  # it has no body
        if not length.isdigit():
            return bad_request("the body must come with a Content-Length", None, "length_required", 411)
        if len(length) > 20 or int(length) > self._config.max_body_bytes:
            return self._too_large()
        return None

    async def _body(self, receive: Receive) -> bytes | ErrorAnswer | None:
        """All of it, counted as it arrives, whatever its headers say; None if the client has left."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._config.receive_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._config.max_body_bytes:
                        return self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            return bad_request(
                f"the body did not arrive within {self._config.receive_s:g} seconds", None, "too_slow", 408
            )

    def _too_large(self) -> ErrorAnswer:
        most = self._config.max_body_bytes
        return bad_request(f"the body is too large: at most {most} bytes are taken", None, "too_large", 413)


def _after(body: bytes, receive: Receive) -> Receive:
    """The body at once, then what comes after it."""
    left = [body]

    async def replayed() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return replayed


async def _send_refusal(answer: ErrorAnswer, receive: Receive | None, send: Send) -> None:
    """Answer, and end the connection where there may be a body that was not read: its rest is no request.

    Args:
        receive: where there may be one.
    """
    body = json.dumps(answer.body).encode()
    headers = answer.headers | {"content-type": "application/json", "content-length": str(len(body))}
    if receive is not None:
        headers["connection"] = "close"
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if receive is not None:  # closed with bytes unread, the system would drop the answer on its way
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                    pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
