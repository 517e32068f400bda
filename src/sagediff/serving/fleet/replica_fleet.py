"""Many engines elsewhere, used like one: each request is a call to some replica, whose events come back here.

Does not know where replicas run, how they are kept alive, or how one is chosen. A call that breaks off is made once
more with the same seed; if that breaks off too, the request gets an error.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from sagediff.plan.compatibility import Embed
from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.engine.model_thread import State, WaveReport
from sagediff.serving.engine.ticket import Listener, Outcome, Preview, Ticket
from sagediff.serving.failures import Cancelled, DeadlineExpired, NotReady, QueueFull, ReplicaLost
from sagediff.serving.fleet.attempt import Attempt
from sagediff.serving.fleet.messages import (
    Describe,
    Described,
    Enqueue,
    Event,
    Finished,
    WaveDone,
)
from sagediff.serving.fleet.prompt_vectors import PromptVectors
from sagediff.serving.fleet.replica_protocol import ReplicaPool, Vector

log = logging.getLogger(__name__)

_TRIES = 2  # calls per request
_END_SECONDS = 5.0  # that calls get to end once they were cancelled
_LATEST_WEIGHT = 0.3  # of the latest wave in the running mean of a wave's seconds


class FleetObserver(Protocol):
    """Called in the fleet's thread; must be quick."""

    def wave_done(self, replica: int | None, report: WaveReport, cache_bytes: int) -> None: ...

    def cache_bytes(self) -> int:
        """Bytes that the trajectory caches of all replicas hold."""

    def call_broke(self, replica: int | None) -> None:
        """A call to this replica broke off; None if no replica had answered."""


class Fleet:
    """An `ImageService` of replicas.

    Args:
        replicas: not open yet; the fleet opens and closes them.
        max_batch, max_queue: of each replica. Requests that run count as queued, since replicas do not report when
            a wave begins.
        load_embed: loads the encoder whose vectors prompts are routed by; called in a thread of the fleet's.
        watch: observer of waves and broken calls.
        clock: seconds, for deadlines.
        on_failed: called if the replicas cannot be opened.
    """

    def __init__(
        self,
        replicas: ReplicaPool,
        *,
        max_batch: int,
        max_queue: int,
        load_embed: Callable[[], Embed],
        watch: FleetObserver,
        clock: Callable[[], float] = time.monotonic,
        on_failed: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.clock = clock
        self._replicas, self._load_embed = replicas, load_embed
        self._watch, self._on_failed = watch, on_failed
        self._max_batch, self._max_queue = max_batch, max_queue
        self._changed = threading.Condition()
        self._in_flight: dict[str, Ticket] = {}
        self._state: State = "loading"
        self._wave_seconds = 1.0
        self.size_multiple = 1  # of width and height; known once loaded
        self._loop = asyncio.new_event_loop()
        self._attempts: dict[str, Attempt] = {}  # used in the fleet's thread only, as all below
        # with the number of previews of each
        self._arrived: asyncio.Queue[list[tuple[Ticket, int]]] = asyncio.Queue()
        self._thread = threading.Thread(target=self._run_loop, name="sagediff-fleet", daemon=True)

    # -- for any thread ----------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Ready as long as one replica is ready."""
        with self._changed:
            if self._state == "ready" and not self._replicas.loads():
                return "loading"  # all of them died, and are being replaced
            return self._state

    @property
    def waiting(self) -> int:
        """Requests in flight, those that run included."""
        with self._changed:
            return len(self._in_flight)

    @property
    def cache_bytes(self) -> int:
        return self._watch.cache_bytes()

    def start(self) -> None:
        self._thread.start()

    def wait_until_loaded(self, timeout: float | None = None) -> State:
        """Returns the state once the first replicas are ready, or could not be, or time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._state != "loading", timeout)
        return self.state

    def submit(
        self, requests: Sequence[QueuedRequest], previews: int = 0, on_preview: Listener | None = None
    ) -> list[Ticket]:
        """Take all of them or none; see `Engine.submit`. The listener is called in the fleet's thread.

        Raises:
            NotReady: no replica is ready, or the fleet is draining or gone. QueueFull: no room for all of them.
        """
        tickets = [Ticket(request, previews, on_preview) for request in requests]
        count = previews if on_preview is not None else 0
        with self._changed:
            if (state := self.state) != "ready":
                raise NotReady(state)
            replicas = max(1, len(self._replicas.loads()))
            waiting, limit = len(self._in_flight), self._max_queue * replicas
            if waiting + len(requests) > limit:
                raise QueueFull(waiting, limit, self._retry_after(waiting, replicas))
            self._in_flight |= {ticket.request.id: ticket for ticket in tickets}
            # under the lock, so that the loop gets it before anything later, above all before its end
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, [(ticket, count) for ticket in tickets])
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Their clients went away; see `Engine.cancel`."""
        with self._changed:
            for ticket in tickets:
                ticket.gone = True
            left = [ticket.request.id for ticket in tickets if ticket.request.id in self._in_flight]
            if left and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._drop, left)

    def drain(self) -> None:
        """Take no more requests; those taken are still carried out, when the windows that they wait in close."""
        with self._changed:
            if self._state in ("loading", "ready"):
                self._state = "draining"
            self._changed.notify_all()

    def stop(self, timeout: float | None = None) -> None:
        """Drain, and wait for the end; after `timeout` seconds give up on what is not finished. Ends all replicas."""
        self.drain()
        self._wait_until_idle(timeout)
        with self._changed:
            left = list(self._in_flight.values())
        if left:
            self.cancel(left)
            self._wait_until_idle(_END_SECONDS)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end)
            self._thread.join(_END_SECONDS)
        self._replicas.close()
        with self._changed:
            if self._state != "failed":
                self._state = "stopped"
            abandoned = list(self._in_flight.values())
            self._in_flight.clear()
            self._changed.notify_all()
        for ticket in abandoned:
            ticket.finish(Cancelled("the server ended before the image was made"))

    def _wait_until_idle(self, timeout: float | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._in_flight or not self._thread.is_alive(), timeout)

    def _retry_after(self, waiting: int, replicas: int) -> int:
        waves = math.ceil(waiting / (self._max_batch * replicas))
        return max(1, min(300, math.ceil(waves * self._wave_seconds)))

    # -- the fleet's thread ------------------------------------------------------------------------

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serve())
        with self._changed:  # so that nobody calls a closed loop
            self._loop.close()
            self._changed.notify_all()

    def _end(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    async def _serve(self) -> None:
        with ThreadPoolExecutor(2, "sagediff-fleet-work") as threads:
            try:
                embed = await self._loaded(threads)
            except Exception as error:
                log.error("the replicas could not be started: %s", error)
                self._enter("failed")
                self._on_failed(error)
                return
            vectors_of = PromptVectors(embed).of
            self._enter("ready")
            under_way: set[asyncio.Task[None]] = set()
            try:
                while True:
                    arrived = await self._arrived.get()
                    while not self._arrived.empty():
                        arrived += self._arrived.get_nowait()
                    requests = [ticket.request for ticket, _ in arrived]
                    vectors = await self._loop.run_in_executor(threads, vectors_of, requests)
                    for (ticket, previews), vector in zip(arrived, vectors, strict=True):
                        task = self._loop.create_task(self._run_request(ticket, previews, vector))
                        under_way.add(task)
                        task.add_done_callback(under_way.discard)
            finally:
                await asyncio.gather(*under_way, return_exceptions=True)  # cancelled with this one

    async def _loaded(self, threads: ThreadPoolExecutor) -> Embed:
        embed = self._loop.run_in_executor(threads, self._load_embed)
        opened = self._loop.run_in_executor(threads, self._replicas.open)
        await embed  # first: an error about the model says more than one about replicas
        await opened
        async for _, event in self._replicas.call(Describe(), None):
            if isinstance(event, Described):
                self.size_multiple = event.size_multiple
        return embed.result()

    def _enter(self, state: State) -> None:
        with self._changed:
            if self._state == "loading":
                self._state = state
            self._changed.notify_all()

    def _drop(self, ids: list[str]) -> None:
        for id_ in ids:
            if (attempt := self._attempts.get(id_)) is not None:
                attempt.cancel()

    async def _run_request(self, ticket: Ticket, previews: int, vector: Vector | None) -> None:
        """One request, until it is finished and its call has ended."""
        try:
            outcome = await self._outcome_of(ticket, previews, vector)
        except Exception as error:  # a bug of ours must cost this request only
            log.exception("a request could not be carried out")
            outcome = ReplicaLost(f"the server failed on this request: {type(error).__name__}")
        if outcome is not None:
            self._finish(ticket, outcome)

    def _finish(self, ticket: Ticket, outcome: Outcome) -> None:
        with self._changed:
            if self._in_flight.pop(ticket.request.id, None) is None:
                return  # given up, and answered
            self._changed.notify_all()
        ticket.finish(outcome)

    async def _outcome_of(self, ticket: Ticket, previews: int, vector: Vector | None) -> Outcome | None:
        """The outcome, or None if the request is finished already."""
        for _ in range(_TRIES):
            if ticket.gone:
                break
            deadline = ticket.request.deadline
            seconds = None if deadline is None else deadline - self.clock()
            if seconds is not None and seconds <= 0:
                return DeadlineExpired("the request waited longer than its deadline allows")
            # without its deadline: clocks of two machines are not comparable
            command = Enqueue(replace(ticket.request, deadline=None), ticket.seed, seconds, previews)
            attempt = Attempt(self._replicas.call(command, vector), partial(self._on_event, ticket), seconds)
            self._attempts[ticket.request.id] = attempt
            why = "it ended without an outcome"
            try:
                await attempt.run()
            except Exception as error:
                why = _first_line(error)
            finally:
                self._attempts.pop(ticket.request.id, None)
            if attempt.finished:
                return None
            if attempt.late:
                return DeadlineExpired("the request waited longer than its deadline allows")
            if not ticket.gone:
                log.error("a call to replica %s broke off: %s", attempt.replica, why)
                self._watch.call_broke(attempt.replica)
        if ticket.gone:
            return Cancelled("the client went away")
        return ReplicaLost(f"{_TRIES} replicas died, or were lost, while they made the image")

    def _on_event(self, ticket: Ticket, replica: int | None, event: Event) -> None:
        if isinstance(event, Preview):
            ticket.show(event.number, event.image)
        elif isinstance(event, Finished):
            ticket.waited, ticket.ran = event.waited, event.ran
            self._finish(ticket, event.with_cause())
        elif isinstance(event, WaveDone):
            self._wave_seconds += _LATEST_WEIGHT * (event.report.seconds - self._wave_seconds)
            self._watch.wave_done(replica, event.report, event.cache_bytes)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
