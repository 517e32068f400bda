"""Many engines elsewhere behind the face of one: each request is a call to some replica, whose events come back here.

Knows not where replicas run, how they are kept alive, nor who chooses among them. A call that breaks off is made once
more, with the same seed, else answered with an error.
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
from sagediff.serving.engine.model_thread import Listener, State, Ticket, WaveReport
from sagediff.serving.engine.recovery import Outcome
from sagediff.serving.failures import Cancelled, DeadlineExpired, NotReady, QueueFull, ReplicaLost
from sagediff.serving.fleet.attempt import Attempt
from sagediff.serving.fleet.messages import Describe, Described, Event, Finished, Shown, Take, Waved
from sagediff.serving.fleet.prompt_vectors import Meanings
from sagediff.serving.fleet.replica_protocol import Replicas, Vector

log = logging.getLogger(__name__)

_TRIES = 2  # calls that a request may break off
_LAST_WORDS = 5.0  # seconds in which calls end once everything was given up
_REMEMBERED = 0.3  # weight of the latest wave in the running mean of how long one takes


class FleetWatch(Protocol):
    """Told what happens, from the fleet's thread; must be quick."""

    def waved(self, replica: int | None, report: WaveReport, cache_bytes: int) -> None: ...

    def broke(self, replica: int | None) -> None:
        """A call to it broke off."""


class Fleet:
    """An `EngineFront` of replicas.

    Args:
        replicas: not open yet; the fleet opens and closes them.
        max_batch, max_queue: of each replica; what runs counts as queued, since nobody says here when that begins.
        load_embed: makes what prompts are routed by; called in a thread of the fleet's.
        watch: told of what happens.
        clock: seconds, for deadlines.
        on_failed: called if the replicas cannot be opened.
    """

    def __init__(
        self,
        replicas: Replicas,
        *,
        max_batch: int,
        max_queue: int,
        load_embed: Callable[[], Embed],
        watch: FleetWatch,
        clock: Callable[[], float] = time.monotonic,
        on_failed: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.clock = clock
        self._replicas, self._load_embed = replicas, load_embed
        self._watch, self._on_failed = watch, on_failed
        self._max_batch, self._max_queue = max_batch, max_queue
        self._changed = threading.Condition()
        self._in_hand: dict[str, Ticket] = {}
        self._state: State = "loading"
        self._wave_seconds = 1.0
        self.size_multiple = 1  # of width and height; known once loaded
        self._loop = asyncio.new_event_loop()
        self._attempts: dict[str, Attempt] = {}  # of the fleet's thread, as all below
        self._arrived: list[tuple[Ticket, int]] = []  # with the previews wanted of each
        self._arrival = asyncio.Event()
        self._thread = threading.Thread(target=self._live, name="sagediff-fleet", daemon=True)

    # -- for any thread ----------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Ready as long as one replica is."""
        with self._changed:
            if self._state == "ready" and not self._replicas.loads():
                return "loading"  # all of them died, and are being replaced
            return self._state

    @property
    def waiting(self) -> int:
        """Requests in hand, those that run included."""
        with self._changed:
            return len(self._in_hand)

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
        shown = previews if on_preview is not None else 0
        with self._changed:
            if (state := self.state) != "ready":
                raise NotReady(state)
            replicas = max(1, len(self._replicas.loads()))
            waiting, limit = len(self._in_hand), self._max_queue * replicas
            if waiting + len(requests) > limit:
                raise QueueFull(waiting, limit, self._retry_after(waiting, replicas))
            self._in_hand |= {ticket.request.id: ticket for ticket in tickets}
            # under the lock, so that it comes before whatever is said to the loop after it, its end above all
            self._loop.call_soon_threadsafe(self._arrive, [(ticket, shown) for ticket in tickets])
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Their clients went away; see `Engine.cancel`."""
        with self._changed:
            for ticket in tickets:
                ticket.leave()
            left = [ticket.request.id for ticket in tickets if ticket.request.id in self._in_hand]
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
        self._wait_for_hands(timeout)
        with self._changed:
            left = list(self._in_hand.values())
        if left:
            self.cancel(left)
            self._wait_for_hands(_LAST_WORDS)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end)
            self._thread.join(_LAST_WORDS)
        self._replicas.close()
        with self._changed:
            if self._state != "failed":
                self._state = "stopped"
            abandoned = list(self._in_hand.values())
            self._in_hand.clear()
            self._changed.notify_all()
        for ticket in abandoned:
            ticket.finish(Cancelled("the server ended before the image was made"))

    def _wait_for_hands(self, timeout: float | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._in_hand or not self._thread.is_alive(), timeout)

    def _retry_after(self, waiting: int, replicas: int) -> int:
        waves = math.ceil(waiting / (self._max_batch * replicas))
        return max(1, min(300, math.ceil(waves * self._wave_seconds)))

    # -- the fleet's thread ------------------------------------------------------------------------

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._carry_out())
        with self._changed:  # nothing is said to a closed loop
            self._loop.close()
            self._changed.notify_all()

    def _end(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    async def _carry_out(self) -> None:
        with ThreadPoolExecutor(2, "sagediff-fleet-work") as threads:
            try:
                embed = await self._loaded(threads)
            except Exception as error:
                log.error("the replicas could not be started: %s", error)
                self._enter("failed")
                self._on_failed(error)
                return
            meanings = Meanings(embed)
            self._enter("ready")
            under_way: set[asyncio.Task[None]] = set()
            try:
                while True:
                    await self._arrival.wait()
                    self._arrival.clear()
                    arrived, self._arrived = self._arrived, []
                    requests = [ticket.request for ticket, _ in arrived]
                    vectors = await self._loop.run_in_executor(threads, meanings.of, requests)
                    for (ticket, previews), vector in zip(arrived, vectors, strict=True):
                        task = self._loop.create_task(self._see_through(ticket, previews, vector))
                        under_way.add(task)
                        task.add_done_callback(under_way.discard)
            finally:
                await asyncio.gather(*under_way, return_exceptions=True)  # cancelled with this one

    async def _loaded(self, threads: ThreadPoolExecutor) -> Embed:
        embed = self._loop.run_in_executor(threads, self._load_embed)
        opened = self._loop.run_in_executor(threads, self._replicas.open)
        await embed  # a model that cannot be found says so here, in its own words
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

    def _arrive(self, arrived: list[tuple[Ticket, int]]) -> None:
        self._arrived += arrived
        self._arrival.set()

    def _drop(self, ids: list[str]) -> None:
        for id_ in ids:
            if (attempt := self._attempts.get(id_)) is not None:
                attempt.cancel()

    async def _see_through(self, ticket: Ticket, previews: int, vector: Vector | None) -> None:
        """One request, until it is finished and its call has said all."""
        try:
            outcome = await self._tried(ticket, previews, vector)
        except Exception as error:  # a mistake of ours must cost this request only
            log.exception("a request could not be carried out")
            outcome = ReplicaLost(f"the server failed on this request: {type(error).__name__}")
        if outcome is not None:
            self._finish(ticket, outcome)

    def _finish(self, ticket: Ticket, outcome: Outcome) -> None:
        with self._changed:
            if self._in_hand.pop(ticket.request.id, None) is None:
                return  # given up, and told so
            self._changed.notify_all()
        ticket.finish(outcome)

    async def _tried(self, ticket: Ticket, previews: int, vector: Vector | None) -> Outcome | None:
        """What became of it, None if it has been finished."""
        for _ in range(_TRIES):
            if ticket.gone:
                break
            deadline = ticket.request.deadline
            seconds = None if deadline is None else deadline - self.clock()
            if seconds is not None and seconds <= 0:
                return DeadlineExpired("the request waited longer than its deadline allows")
            # without its deadline: clocks of two machines have nothing to do with each other
            take = Take(replace(ticket.request, deadline=None), ticket.seed, seconds, previews)
            attempt = Attempt(self._replicas.call(take, vector), partial(self._heard, ticket), seconds)
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
                self._watch.broke(attempt.replica)
        if ticket.gone:
            return Cancelled("the client went away")
        return ReplicaLost(f"{_TRIES} replicas died, or were lost, while they made the image")

    def _heard(self, ticket: Ticket, replica: int | None, event: Event) -> None:
        if isinstance(event, Shown):
            ticket.show(event.number, event.image)
        elif isinstance(event, Finished):
            ticket.waited, ticket.ran = event.waited, event.ran
            self._finish(ticket, event.opened())
        elif isinstance(event, Waved):
            self._wave_seconds += _REMEMBERED * (event.report.seconds - self._wave_seconds)
            self._watch.waved(replica, event.report, event.cache_bytes)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
