"""What tests of the server share: one on a free port of this machine, and how it is asked."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai

from sagediff.plan.sharing import Sharing
from sagediff.serving.config import ServeConfig
from sagediff.serving.engine.model_thread import Engine
from sagediff.serving.engine.wave_runner import ModelSettings
from sagediff.serving.http.server import server_for
from sagediff.serving.metrics import Metrics

# copies of a prompt share, so that few prompts are enough for groups
SHARED = Sharing(threshold=0.35, share_ratio=0.5, unguided=1.0, handover_noise=1.0, repeats="share")
GUIDED = Sharing(threshold=0.35, share_ratio=0.5, repeats="share")
SETTINGS = ModelSettings(SHARED, GUIDED, guidance_scale=4.0)

LEAVES = httpx.Timeout(300, read=0.3)  # a client that has asked, and does not wait for the answer


class Address:
    """A server that runs: its URL, its engine, its metrics, and a client."""

    def __init__(self, url: str, engine: Engine, server: Any, metrics: Metrics) -> None:
        self.url, self.engine, self.server, self.metrics = url, engine, server, metrics

    def client(self, key: str = "any", retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=retries, timeout=300)

    def post(self, key: str | None = None, **body: Any) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{self.url}/v1/images/generations", json=body, headers=headers, timeout=300)


@contextmanager
def serving(load: Any, settings: ModelSettings = SETTINGS, **config: Any) -> Iterator[Address]:
    chosen = ServeConfig.of(**{"port": 0, "window_ms": 30.0, "max_steps": 8, "max_n": 4} | config)
    metrics = Metrics(lambda: engine.waiting)
    engine = Engine(load, settings, chosen.batch_policy(True), observe=metrics.wave_done)
    server = server_for(engine, chosen, metrics, num_steps=2)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        give_up = time.monotonic() + 300
        while not server.started and time.monotonic() < give_up:
            time.sleep(0.01)
        try:
            yield Address(f"http://127.0.0.1:{port}", engine, server, metrics)
        finally:
            server.should_exit = True
            thread.join(300)
            assert not thread.is_alive()
