"""A server process: the app on uvicorn; after SIGTERM or SIGINT it finishes the requests it has taken, then ends."""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import Any

import uvicorn

from sagediff.serving.config import ServeConfig
from sagediff.serving.http.app import create_app
from sagediff.serving.image_service import ImageService
from sagediff.serving.metrics import Metrics

_GRACE = 0.2  # seconds in which a server that drains still listens


class DrainingServer(uvicorn.Server):
    """Drains the engine as soon as a signal comes, so that open windows close and waiting clients are not kept."""

    def __init__(self, config: uvicorn.Config, engine: ImageService) -> None:
        super().__init__(config)
        self._engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn's own, does not raise the signal again at the end: a drained server exits with success."""
        if self.should_exit:
            self.force_exit = True  # the second signal: do not wait
        self.should_exit = True

    async def shutdown(self, sockets: Any = None) -> None:
        self._engine.drain()  # not in the signal handler: the thread that it interrupted may hold the engine's lock
        # clients that have just connected, and whose request is not read yet, get a 503 instead of a reset
        await asyncio.sleep(_GRACE)
        await super().shutdown(sockets)


def server_for(engine: ImageService, config: ServeConfig, metrics: Metrics, num_steps: int) -> DrainingServer:
    """A server, not running yet; its `run()` blocks until it has drained."""
    app = create_app(engine, config, metrics, num_steps)
    return DrainingServer(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            timeout_graceful_shutdown=round(config.drain_s) or 1,
            server_header=False,
            log_config=None,  # `serving.logs` configures it, and `request_log` says more than uvicorn's access log
            access_log=False,
        ),
        engine,
    )
