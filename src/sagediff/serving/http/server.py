"""A server process: the app on uvicorn; after SIGTERM or SIGINT it finishes the requests it has taken, then ends."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from sagediff.serving.config import ServeConfig
from sagediff.serving.http.app import create_app
from sagediff.serving.http.connection import Connection, Patience
from sagediff.serving.http.listener import Listener, listening_sockets, most_connections
from sagediff.serving.image_service import ImageService
from sagediff.serving.metrics import Metrics

log = logging.getLogger(__name__)

_GRACE = 0.2  # seconds in which a server that drains still listens


class DrainingServer(uvicorn.Server):
    """Accepts connections within bounds, and drains the engine as soon as a signal comes, so that open windows close
    and waiting clients are not kept."""

    def __init__(self, config: uvicorn.Config, engine: ImageService, settings: ServeConfig) -> None:
        super().__init__(config)
        self._engine, self._settings = engine, settings
        self._listener: Listener | None = None
        self._sockets: list[socket.socket] = []

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn's own, does not raise the signal again at the end: a drained server exits with success."""
        if self.should_exit:
            self.force_exit = True  # the second signal: do not wait
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:  # first: an address that is taken is said before a model is loaded
            self._sockets = sockets or listening_sockets(self.config.host, self.config.port)
        except OSError as error:
            log.error("cannot listen: %s", error.strerror or error)
            sys.exit(1)
        await super().startup(sockets=[])  # none that uvicorn would accept connections of
        patience = Patience(self._settings.receive_s, self._settings.send_s)

        def make(on_lost: Callable[[Connection], None]) -> Connection:
            return Connection(self.config, self.server_state, self.lifespan.state, patience, on_lost)

        self._listener = Listener(make, most_connections(self._settings.max_connections))
        self._listener.start(self._sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.drain()  # not in the signal handler: the thread that it interrupted may hold the engine's lock
        # clients that have just connected, and whose request is not read yet, get a 503 instead of a reset
        await asyncio.sleep(_GRACE)
        if self._listener is not None:
            await self._listener.stop_accepting()
        for each in self._sockets:
            each.close()
        await super().shutdown()
        if self._listener is not None:
            await self._listener.end()


def server_for(engine: ImageService, config: ServeConfig, metrics: Metrics, num_steps: int) -> DrainingServer:
    """A server, not running yet; its `run()` blocks until it has drained."""
    app = create_app(engine, config, metrics, num_steps)
    return DrainingServer(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            # the same wherever it is installed, so that what is tested is what runs
            loop="asyncio",
            http="h11",
            ws="none",
            timeout_graceful_shutdown=round(config.drain_s) or 1,
            server_header=False,
            log_config=None,  # `serving.logs` configures it, and `request_log` says more than uvicorn's access log
            access_log=False,
        ),
        engine,
        config,
    )
