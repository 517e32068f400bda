"""One client's connection: uvicorn's, which also ends once its client has kept the server waiting for too long.

uvicorn closes a connection that is idle after an answer. It waits without end for the first request, for the rest of a
request, and for a client that does not read its answer; the bound on those is here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_SEND_BUFFER = 256 << 10  # bytes that the kernel holds of an answer: what it sends shows soon, and is bounded
_COMMENTS = 1024  # bytes; a stream writes that much, to show that it lives, also to who reads nothing
_TOO_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\nx-should-retry: false\r\n\r\n"
)


@dataclass(frozen=True)
class Patience:
    """Seconds for which a client may keep the server waiting.

    Attributes:
        receive: until a request's head has arrived, from its first byte on, or without one from the connection on.
        send: without reading anything of an answer.
    """

    receive: float
    send: float


class Connection(H11Protocol):
    """HTTP/1.1 with one client.

    Args:
        on_lost: called with it when it has ended.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        app_state: dict[str, Any],
        patience: Patience,
        on_lost: Callable[[Connection], None],
    ) -> None:
        super().__init__(config, state, app_state, asyncio.get_running_loop())
        self._patience, self._on_lost = patience, on_lost
        self._begun = False  # bytes have come since the last answer, or since the connection
        self._unread = 0  # bytes of answers that the client has not taken, when last looked at
        self.since = self.read_at = self.loop.time()
        self.ended = False

    # -- what the server looks at

    @property
    def at_work(self) -> bool:
        """A whole request has arrived, and its answer has not been written."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    @property
    def unread(self) -> bool:
        """Its client has not taken all of its answer."""
        return self.transport.get_write_buffer_size() > 0

    def check(self, now: float) -> None:
        """End the connection if its client has kept the server waiting for too long; called every now and then."""
        unread = self.transport.get_write_buffer_size()
        if unread == 0 or unread < self._unread or unread > self._unread + _COMMENTS:
            self._unread, self.read_at = unread, now
        elif now - self.read_at > self._patience.send:
            self.give_up()
        answering = self.cycle is not None and not self.cycle.response_complete  # its body: see `admission`
        if not answering and not self.transport.is_closing() and now - self.since > self._patience.receive:
            if self._begun and not unread:
                self.transport.write(_TOO_LATE)
            self.transport.close()

    def give_up(self) -> None:
        """End the connection now; what was not sent is lost."""
        self.transport.abort()

    # -- of asyncio's protocols

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        opened = transport.get_extra_info("socket")
        if opened is not None and opened.family in (socket.AF_INET, socket.AF_INET6):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.ended = True
        self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        if not self._begun:
            self._begun, self.since = True, self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self._begun, self.since = False, self.loop.time()
        super().on_response_complete()
