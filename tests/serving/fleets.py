"""What tests of the fleet share: replicas in threads of this process, each with an engine and a pipeline of its own."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from engines import POLICY, SETTINGS, SHARING

from sagediff import embed_prompts
from sagediff.distributed.affinity import AffinityPolicy, AffinityRouter, RouteReason
from sagediff.distributed.dispatch import Dispatcher
from sagediff.serving.engine.batcher import BatchPolicy
from sagediff.serving.engine.model_thread import Engine, WaveReport
from sagediff.serving.engine.wave_runner import ModelSettings
from sagediff.serving.fleet.messages import Command, Event
from sagediff.serving.fleet.replica_fleet import Fleet
from sagediff.serving.fleet.replica_host import ReplicaHost

_COPIES = replace(SHARING, repeats="share")
COPIES_SHARE = replace(SETTINGS, sharing=_COPIES, guided=_COPIES)
PATIENCE = 300.0  # seconds that anything may take beside busy cores


class LocalCall:
    """Iterates over what a host says, and breaks off as Ray's does: when it is cancelled, or the replica dies."""

    def __init__(self, replicas: LocalReplicas, name: str, command: Command) -> None:
        self._replicas, self.name, self._command = replicas, name, command
        self.heard = False
        self._broken: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()

    async def __aiter__(self) -> AsyncIterator[tuple[int | None, Event]]:
        replicas = self._replicas
        while not replicas.hosts and not self._broken.done():
            await asyncio.sleep(0.01)  # Ray waits for one too
        number = None
        try:
            if not self._broken.done():
                chosen = replicas.dispatcher.choose(self.name, sorted(replicas.hosts))
                number = replicas.dispatcher.number(chosen)
                events = replicas.hosts[chosen].answer(self._command)
                replicas.calls.setdefault(chosen, []).append(self)
            while True:
                if self._broken.done():
                    self._broken.result()
                coming = asyncio.ensure_future(events.__anext__())
                await asyncio.wait({coming, self._broken}, return_when=asyncio.FIRST_COMPLETED)
                if self._broken.done():  # whatever the host says by now, nobody hears it
                    coming.cancel()
                    await asyncio.wait({coming})
                    await events.aclose()
                    self._broken.result()
                try:
                    event = coming.result()
                except StopAsyncIteration:
                    return
                yield number, event
                self.heard = True  # whoever reads has dealt with an event, and knows the host
        finally:
            self._broken.cancel()
            replicas.dispatcher.end(self.name)

    def cancel(self) -> None:
        self._break(RuntimeError("cancelled"))

    def fail(self) -> None:
        self._loop.call_soon_threadsafe(self._break, ConnectionError("killed by a test"))

    def _break(self, error: Exception) -> None:
        if not self._broken.done():
            self._broken.set_exception(error)


class LocalReplicas:
    """Hosts by name, which a test may kill and start."""

    def __init__(self, count: int, make: Callable[[int], Any], dispatcher: Dispatcher) -> None:
        self._count, self._make, self.dispatcher = count, make, dispatcher
        self.hosts: dict[str, ReplicaHost] = {}
        self.calls: dict[str, list[LocalCall]] = {}
        self._names = itertools.count()
        self._ended: list[ReplicaHost] = []

    def open(self) -> None:
        for number in range(self._count):
            self.begin(number)

    def begin(self, pipe: int) -> None:
        for host in self._ended:
            host._engine._thread.join(PATIENCE)  # off its pipeline, which the new one may want
        self.hosts[f"r{next(self._names)}"] = ReplicaHost(self._make(pipe))
        self.dispatcher.set_replicas(sorted(self.hosts))

    def kill(self, number: int) -> None:
        """Of the dispatcher's number: its calls break off, and nobody replaces it."""
        name = next(name for name in self.hosts if self.dispatcher.number(name) == number)
        host = self.hosts.pop(name)
        self.dispatcher.set_replicas(sorted(self.hosts))
        for call in self.calls.pop(name, []):
            call.fail()
        host.stop(0.0)
        self._ended.append(host)

    def call(self, message: Command, vector: Any) -> LocalCall:
        name = f"call-{next(self._names)}"
        self.dispatcher.announce(name, vector)
        return LocalCall(self, name, message)

    def loads(self) -> dict[int, int]:
        return self.dispatcher.loads()

    def all_heard(self) -> bool:
        """Whether every call has told its caller where it runs."""
        return all(call.heard for calls in self.calls.values() for call in calls)

    def close(self) -> None:
        for host in [*self.hosts.values(), *self._ended]:
            host.stop(0.0)
            host._engine._thread.join(PATIENCE)  # off its pipeline, which the next one may want


class Watch:
    """Remembers what a fleet tells."""

    def __init__(self) -> None:
        self.routes: list[RouteReason] = []
        self.reports: list[tuple[int | None, WaveReport]] = []
        self.broken: list[int | None] = []

    def wave_done(self, replica: int | None, report: WaveReport, cache_bytes: int) -> None:
        self.reports.append((replica, report))

    def cache_bytes(self) -> int:
        return 0

    def call_broke(self, replica: int | None) -> None:
        self.broken.append(replica)


class LocalFleet:
    """A fleet, what it told, and its replicas."""

    def __init__(
        self,
        pipes: list[Any],
        settings: ModelSettings = COPIES_SHARE,
        policy: BatchPolicy = POLICY,
        affinity: AffinityPolicy = AffinityPolicy(0.35, 8),  # noqa: B008
        load: Callable[[int], Any] | None = None,
    ) -> None:
        self.watch, self.failures = Watch(), list[Exception]()

        def make(number: int) -> Any:
            def engine(observe: Any, on_failed: Any) -> Engine:
                def loaded() -> Any:
                    return pipes[number] if load is None else load(number)

                return Engine(loaded, settings, policy, observe=observe, on_failed=on_failed)

            return engine

        self.dispatcher = Dispatcher(AffinityRouter(affinity), self.watch.routes.append)
        self.replicas = LocalReplicas(len(pipes), make, self.dispatcher)
        self.fleet = Fleet(
            self.replicas, max_batch=policy.max_batch, max_queue=policy.max_queue,
            load_embed=lambda: lambda texts: embed_prompts(texts, pipes[0]).vectors,
            watch=self.watch, on_failed=self.failures.append,
        )  # fmt: skip


@contextmanager
def fleet_of(pipes: list[Any], **options: Any) -> Iterator[LocalFleet]:
    local = LocalFleet(pipes, **options)
    local.fleet.start()
    assert local.fleet.wait_until_loaded(PATIENCE) == "ready"
    local.watch.routes.clear()  # of what was asked to get ready
    try:
        yield local
    finally:
        local.fleet.stop(PATIENCE)
        assert local.fleet.state == "stopped" and local.fleet.waiting == 0
        assert not any(local.dispatcher.loads().values())


def until(true: Callable[[], Any], every: float = 0.005) -> None:
    """Looks at it every so many seconds; patient, as it ends early only where it happened."""
    give_up = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < give_up, "it did not come to pass"
        time.sleep(every)
