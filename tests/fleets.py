"""What tests of the fleet share: replicas in threads of this process, each with an engine and a pipeline of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engines import POLICY, SETTINGS

from sagediff import embed_prompts
from sagediff.serving.affinity import AffinityPolicy, AffinityRouter, How
from sagediff.serving.batcher import BatchPolicy
from sagediff.serving.engine import Engine, WaveReport
from sagediff.serving.fleet import Fleet
from sagediff.serving.host import Host
from sagediff.serving.messages import Command, Event
from sagediff.serving.replica import Link
from sagediff.serving.runner import ModelSettings


class LocalLink:
    """Commands and events through queues, so that both sides have threads of their own, as elsewhere."""

    def __init__(
        self, make: Callable[..., Any], on_event: Callable[[Event], None], on_died: Callable[[str], None]
    ) -> None:
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._died, self.closed = on_died, False
        host = self._host = Host(make, self._events.put)

        def work() -> None:
            while (command := self._commands.get()) is not None:
                host.handle(command)

        def listen() -> None:
            while (event := self._events.get()) is not None and not self.closed:
                on_event(event)

        for target in (work, listen):
            threading.Thread(target=target, daemon=True).start()

    def send(self, command: Command) -> None:
        if not self.closed:
            self._commands.put(command)

    def close(self) -> None:
        self.closed = True
        self._events.put(None)

    def end(self) -> None:
        """Wait until the engine is off its pipeline, which the next one may want."""
        self._host._engine.stop(0.0)
        self._host._engine._thread.join(30)

    def die(self) -> None:
        self.close()
        self.end()
        self._died("killed by a test")


class Watch:
    """Remembers what a fleet tells."""

    def __init__(self) -> None:
        self.routes: list[How] = []
        self.reports: list[tuple[int, WaveReport]] = []
        self.deaths: list[int] = []

    def routed(self, how: How) -> None:
        self.routes.append(how)

    def waved(self, replica: int, report: WaveReport, cache_bytes: int) -> None:
        self.reports.append((replica, report))

    def lost(self, replica: int) -> None:
        self.deaths.append(replica)


class LocalFleet:
    """A fleet that runs, what it told, and the links that it has opened, by replica."""

    def __init__(
        self,
        pipes: list[Any],
        settings: ModelSettings = SETTINGS,
        policy: BatchPolicy = POLICY,
        affinity: AffinityPolicy = AffinityPolicy(0.35, 8),  # noqa: B008
        load: Callable[[int], Any] | None = None,
    ) -> None:
        self.watch, self.failures = Watch(), list[Exception]()
        self.links: dict[int, list[LocalLink]] = {number: [] for number in range(len(pipes))}

        def start(number: int, on_event: Callable[[Event], None], on_died: Callable[[str], None]) -> Link:
            def make(observe: Any, on_failed: Any) -> tuple[Engine, Callable[[], int]]:
                def loaded() -> Any:
                    return pipes[number] if load is None else load(number)

                engine = Engine(loaded, settings, policy, observe=observe, on_failed=on_failed)
                return engine, lambda: 0

            link = LocalLink(make, on_event, on_died)
            self.links[number].append(link)
            return link

        self.fleet = Fleet(
            start, len(pipes), AffinityRouter(affinity), max_batch=policy.max_batch, max_queue=policy.max_queue,
            load_embed=lambda: lambda texts: embed_prompts(texts, pipes[0]).vectors,
            watch=self.watch, on_failed=self.failures.append,
        )  # fmt: skip

    def stop(self) -> None:
        self.fleet.stop(60)
        for links in self.links.values():
            for link in links:
                link.end()


@contextmanager
def fleet_of(pipes: list[Any], **options: Any) -> Iterator[LocalFleet]:
    local = LocalFleet(pipes, **options)
    local.fleet.start()
    assert local.fleet.wait_until(len(pipes), 60)
    try:
        yield local
    finally:
        local.stop()
        assert local.fleet.state == "stopped" and local.fleet.waiting == 0


def until(true: Callable[[], Any], seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "it did not come to pass"
        time.sleep(0.005)
