"""`benchmarks/serving_faults.py` on a smaller scale, its servers in this process: what can go wrong goes wrong, and
every good request is answered rightly once."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
from servers import SETTINGS, serving
from serving_faults import IMAGES, Clients, counters, make_faulty, requests_of, resident_mib, verdict

from sagediff.builtin.scenes.scene_perception import held_out_captions
from sagediff.serving.engine.reuse import CacheUse
from sagediff.serving.engine.trajectory_cache import TrajectoryCache

STEPS = 2


class ServerHere:
    """One in this process; told to end as a signal does."""

    def __init__(
        self, stack: ExitStack, small_demo: Any, cache: TrajectoryCache, earlier: list[ServerHere]
    ) -> None:
        before = [server.address.engine for server in earlier]

        def load() -> Any:
            while any(engine.state != "stopped" for engine in before):  # one pipeline for both of them
                time.sleep(0.01)
            return small_demo

        settings = replace(SETTINGS, reuse=CacheUse(cache, 0.5, lambda pipe: "demo"))
        self.address = stack.enter_context(serving(load, settings, max_batch=16))
        self.url = self.address.url
        self.memory: list[float] = []

    def terminate(self) -> None:
        self.address.server.should_exit = True

    def look(self) -> None:
        self.memory.append(resident_mib(os.getpid()))


def test_every_good_request_is_answered_rightly_once_whatever_happens(small_demo: Any) -> None:
    # over 10 s: with fewer requests some of the faults never happen
    requests = requests_of(120, held_out_captions(60), np.random.default_rng(3))
    cache = TrajectoryCache(1 << 18)
    servers: list[ServerHere] = []
    make_faulty(small_demo)
    try:
        with ExitStack() as stack:

            def start() -> ServerHere:
                servers.append(ServerHere(stack, small_demo, cache, servers))
                return servers[-1]

            clients = Clients(start, at_once=32)
            asyncio.run(clients.all(requests))
        made = sum(counters(server.address.metrics.text().decode())[IMAGES] for server in servers)
        told = verdict(
            clients, requests, made, small_demo, STEPS, worse=0.3
        )  # weights that were not trained to share
    finally:
        del small_demo.unet.forward
    assert clients.wrong == []
    assert told["answers"]["image_failed"] and told["answers"]["invalid_value"] and told["left"]
    assert told["replayed"] > 0 and clients.refused + len(servers) >= 2
    memory = servers[-1].memory
    middle, end = len(memory) // 2, 3 * len(memory) // 4
    assert statistics.median(memory[end:]) - statistics.median(memory[middle:end]) < 100  # MiB
