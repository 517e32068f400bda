"""A server process: the app on uvicorn, ended by SIGTERM or SIGINT after what was taken is finished."""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import Any

import uvicorn

from sagediff.serving.config import ServeConfig
from sagediff.serving.http.app import create_app
from sagediff.serving.image_service import EngineFront
from sagediff.serving.metrics import Metrics

_GRACE = 0.2  # seconds in which a server that drains still listens


class DrainingServer(uvicorn.Server):
    """Tells the engine of a signal at once, so that open windows close and waiting clients are not kept."""

    def __init__(self, config: uvicorn.Config, engine: EngineFront) -> None:
        super().__init__(config)
        self._engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn's own, does not raise the signal again at the end: a drained server has ended well."""
        if self.should_exit:
            self.force_exit = True  # told twice: do not wait
        self.should_exit = True

    async def shutdown(self, sockets: Any = None) -> None:
        self._engine.drain()  # not in the signal handler: the thread that it interrupted may hold the engine's lock
        # who has just connected, and whose request is not read yet, would be cut off: he is told 503 instead
        await asyncio.sleep(_GRACE)
        await super().shutdown(sockets)


def server_for(engine: EngineFront, config: ServeConfig, metrics: Metrics, num_steps: int) -> DrainingServer:
    """A server that is not running yet: `run()` blocks until it has drained."""
    app = create_app(engine, config, metrics, num_steps)
    return DrainingServer(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            timeout_graceful_shutdown=round(config.drain_s) or 1,
            server_header=False,
            log_config=None,  # `logs` decides, and `requestlog` says more than uvicorn's access log
            access_log=False,
        ),
        engine,
    )
