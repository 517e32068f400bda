"""Many engines elsewhere behind the face of one: requests go where the router says, what comes back to their clients.

Knows not where replicas run nor how messages travel: it is handed what starts one. A replica that dies is replaced;
what it had in hand is tried once more elsewhere, with the same seeds, else answered with an error.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

from sagediff.serving.affinity import How, Router, Vector
from sagediff.serving.engine import Listener, State, Ticket, WaveReport
from sagediff.serving.errors import Cancelled, DeadlineExpired, NotReady, QueueFull, ReplicaLost
from sagediff.serving.grouping import Embed
from sagediff.serving.meanings import Meanings
from sagediff.serving.messages import Changed, Drain, Event, Finished, Leave, Shown, Take, Waved
from sagediff.serving.recovery import Outcome
from sagediff.serving.replica import Held, Replica, Start
from sagediff.serving.requests import PictureRequest

log = logging.getLogger(__name__)

MAX_DEATHS = 3  # in a row, without a picture between them; then a replica is given up
_LAST_WORDS = 5.0  # seconds in which replicas answer once everything was given up
_REMEMBERED = 0.3  # weight of the latest wave in the running mean of how long one takes


class FleetWatch(Protocol):
    """Told what happens, from any thread; must be quick."""

    def routed(self, how: How) -> None: ...

    def waved(self, replica: int, report: WaveReport, cache_bytes: int) -> None: ...

    def lost(self, replica: int) -> None: ...


class Fleet:
    """An `EngineFront` of `count` replicas.

    Args:
        start: starts one.
        router: where requests go.
        max_batch, max_queue: of each replica; what runs counts as queued, since nobody says here when that begins.
        load_embed: makes what prompts are routed by; called in the fleet's thread.
        watch: told of what happens.
        clock: seconds, for deadlines.
        on_failed: called when no replica is left that could ever make pictures.
    """

    def __init__(
        self,
        start: Start,
        count: int,
        router: Router,
        *,
        max_batch: int,
        max_queue: int,
        load_embed: Callable[[], Embed],
        watch: FleetWatch,
        clock: Callable[[], float] = time.monotonic,
        on_failed: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.clock = clock
        self._start, self._router, self._watch, self._on_failed = start, router, watch, on_failed
        self._max_batch, self._max_queue, self._load_embed = max_batch, max_queue, load_embed
        self._replicas = {number: Replica() for number in range(count)}
        self._inbox: dict[str, Held] = {}  # not sent yet
        self._changed = threading.Condition(threading.RLock())
        self._embed: Embed | None = None
        self._ending: State | None = None  # "draining", "stopped" or "failed"
        self._wave_seconds = 1.0
        self.size_multiple = 1
        self._thread = threading.Thread(target=self._live, name="sagediff-fleet", daemon=True)

    # -- for any thread ----------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Ready as soon as one replica is."""
        with self._changed:
            if self._ending is not None:
                return self._ending
            return "ready" if self._embed is not None and self._ready() else "loading"

    @property
    def waiting(self) -> int:
        """Requests in hand, those that run included."""
        with self._changed:
            return len(self._inbox) + sum(len(replica.in_hand) for replica in self._replicas.values())

    def loads(self) -> dict[int, int]:
        """Requests in hand of every replica."""
        with self._changed:
            return {number: len(replica.in_hand) for number, replica in self._replicas.items()}

    def start(self) -> None:
        self._thread.start()

    def wait_until(self, replicas: int, timeout: float) -> bool:
        """Whether so many replicas were ready within `timeout` seconds."""

        def enough() -> bool:
            return self._embed is not None and len(self._ready()) >= replicas

        with self._changed:
            self._changed.wait_for(lambda: enough() or self._ending is not None, timeout)
            return enough()

    def submit(
        self, requests: Sequence[PictureRequest], previews: int = 0, on_preview: Listener | None = None
    ) -> list[Ticket]:
        """Take all of them or none; see `Engine.submit`. The listener is called in a replica's thread.

        Raises:
            NotReady: no replica is ready, or the fleet is draining or gone. QueueFull: no room for all of them.
        """
        tickets = [Ticket(request, previews, on_preview) for request in requests]
        with self._changed:
            if self.state != "ready":
                raise NotReady(self.state)
            waiting, limit = self.waiting, self._max_queue * len(self._ready())
            if waiting + len(requests) > limit:
                raise QueueFull(waiting, limit, self._retry_after(waiting))
            shown = previews if on_preview is not None else 0
            self._inbox |= {ticket.request.id: Held(ticket, shown) for ticket in tickets}
            self._changed.notify_all()
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Their clients went away; see `Engine.cancel`."""
        dropped: list[Ticket] = []
        with self._changed:
            for ticket in tickets:
                ticket.leave()
                if self._inbox.pop(ticket.request.id, None) is not None:
                    dropped.append(ticket)
            ids = [ticket.request.id for ticket in tickets]
            for replica in self._replicas.values():
                if replica.link is not None and (
                    leaving := tuple(id_ for id_ in ids if id_ in replica.in_hand)
                ):
                    replica.link.send(Leave(leaving))
            self._changed.notify_all()
        for ticket in dropped:
            ticket.finish(Cancelled("the client went away"))

    def drain(self) -> None:
        """Take no more requests; those taken are still carried out."""
        with self._changed:
            if self._ending is None:
                self._ending = "draining"
            self._changed.notify_all()

    def stop(self, timeout: float | None = None) -> None:
        """Drain, and wait for the end; after `timeout` seconds give up on what is not finished. Ends all replicas."""
        self.drain()
        if self._thread.is_alive():
            self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                left = [held.ticket for held in self._all_held()]
            self.cancel(left)
            self._thread.join(_LAST_WORDS)
        with self._changed:
            if self._ending != "failed":
                self._ending = "stopped"
            abandoned = self._all_held()
            self._inbox.clear()
            for replica in self._replicas.values():
                replica.in_hand.clear()
                replica.close()
            self._changed.notify_all()
        for held in abandoned:
            held.ticket.finish(Cancelled("the server ended before the picture was made"))

    # -- the fleet's thread ------------------------------------------------------------------------

    def _live(self) -> None:
        for number in self._replicas:
            self._begin(number)
        try:
            embed = self._load_embed()
        except Exception as error:
            log.error("what prompts are routed by could not be loaded: %s", error)
            self._fail(error)
            return
        with self._changed:
            self._embed = embed
            self._changed.notify_all()
        meanings = Meanings(embed)
        drained = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._inbox or self._turns(drained))  # noqa: B023  (called at once)
                if self._ending in ("stopped", "failed"):
                    return
                arrived = list(self._inbox.values())
                if not arrived and drained:
                    self._ending = "stopped"
                    self._changed.notify_all()
                    return
            if arrived:
                self._send(arrived, meanings.of([held.ticket.request for held in arrived]))
            else:
                drained = True
                self._drain_replicas()

    def _turns(self, drained: bool) -> bool:
        """Whether there is something to do besides sending requests: to drain the replicas, or to end."""
        if self._ending == "draining" and drained:
            return all(replica.link is None for replica in self._replicas.values())
        return self._ending is not None

    def _send(self, arrived: Sequence[Held], vectors: Sequence[Vector | None]) -> None:
        finished: list[tuple[Ticket, Exception]] = []
        going: dict[tuple[int, int], list[Held]] = defaultdict(list)  # by replica and previews
        with self._changed:
            loads = {number: len(self._replicas[number].in_hand) for number in self._ready()}
            for held, vector in zip(arrived, vectors, strict=True):
                ticket = held.ticket
                if self._inbox.pop(ticket.request.id, None) is None:
                    continue  # cancelled while it was embedded
                deadline = ticket.request.deadline
                if deadline is not None and deadline <= self.clock():
                    late = DeadlineExpired("the request waited longer than its deadline allows")
                    finished.append((ticket, late))
                elif not loads:
                    finished.append(
                        (ticket, ReplicaLost("no replica is left to make the picture; try again"))
                    )
                else:
                    choice = self._router.route(vector, loads)
                    loads[choice.replica] += 1
                    going[choice.replica, held.previews].append(held)
                    self._watch.routed(choice.how)
            now = self.clock()
            for (number, previews), taken in going.items():
                replica = self._replicas[number]
                replica.in_hand |= {held.ticket.request.id: held for held in taken}
                assert replica.link is not None
                requests = tuple(held.ticket.request for held in taken)
                seconds = tuple(None if r.deadline is None else r.deadline - now for r in requests)
                replica.link.send(
                    Take(requests, tuple(held.ticket.seed for held in taken), seconds, previews)
                )
        for ticket, error in finished:
            ticket.finish(error)

    def _drain_replicas(self) -> None:
        with self._changed:
            for replica in self._replicas.values():
                if replica.state == "ready" and replica.link is not None:
                    replica.link.send(Drain())
                else:  # it loads, for nothing
                    replica.close()

    # -- from the replicas' threads ----------------------------------------------------------------

    def _begin(self, number: int) -> None:
        """Start a replica, for the first time or again."""
        replica = self._replicas[number]
        with self._changed:
            if self._ending is not None:
                return
            replica.life += 1
            life = replica.life
            replica.state = "loading"
        link = self._start(
            number,
            lambda event: self._heard(number, life, event),
            lambda words: self._died(number, life, words),
        )
        with self._changed:
            if replica.life == life and self._ending is None:
                replica.link = link
                self._changed.notify_all()  # it may have said that it is ready
                return
        link.close()

    def _heard(self, number: int, life: int, event: Event) -> None:
        replica = self._replicas[number]
        if isinstance(event, Waved):
            with self._changed:
                self._wave_seconds += _REMEMBERED * (event.report.seconds - self._wave_seconds)
            self._watch.waved(number, event.report, event.cache_bytes)
        elif isinstance(event, Shown):
            with self._changed:
                shown = replica.in_hand.get(event.id) if replica.life == life else None
            if shown is not None:
                shown.ticket.show(event.number, event.image)
        elif isinstance(event, Finished):
            with self._changed:
                held = replica.in_hand.pop(event.id, None) if replica.life == life else None
                replica.deaths = 0
                self._changed.notify_all()
            if held is not None:
                held.ticket.waited, held.ticket.ran = event.waited, event.ran
                held.ticket.finish(event.opened())
        elif isinstance(event, Changed):
            self._became(number, life, event)

    def _became(self, number: int, life: int, event: Changed) -> None:
        replica = self._replicas[number]
        with self._changed:
            if replica.life != life:
                return
            replica.state = event.state
            if event.state == "ready":
                self.size_multiple = event.size_multiple
            elif event.state in ("failed", "stopped"):
                replica.close(event.state)
            self._changed.notify_all()
        if event.state == "failed":
            log.error("replica %d could not load the model: %s", number, event.error)
            self._fail_if_alone(event.error or ReplicaLost("a replica could not load the model"))

    def _died(self, number: int, life: int, words: str) -> None:
        replica = self._replicas[number]
        lost: list[tuple[Ticket, Outcome]] = []
        with self._changed:
            if replica.life != life or replica.state in ("stopped", "failed"):
                return
            replica.deaths += 1
            again = replica.deaths < MAX_DEATHS and self._ending is None
            replica.close("loading" if again else "failed")
            self._router.remove(number)
            retried = 0
            for id_, held in replica.in_hand.items():
                if held.ticket.gone:
                    lost.append((held.ticket, Cancelled("the client went away")))
                elif held.tried or not self._ready():
                    why = "died twice" if held.tried else "died, and no other is ready"
                    lost.append((held.ticket, ReplicaLost(f"the replica that made the picture {why}")))
                else:
                    held.tried = True
                    self._inbox[id_] = held
                    retried += 1
            replica.in_hand.clear()
            self._changed.notify_all()
        log.error(
            "replica %d died (%s); %d requests are tried elsewhere, %d are lost",
            number,
            words,
            retried,
            len(lost),
        )
        self._watch.lost(number)
        for ticket, outcome in lost:
            ticket.finish(outcome)
        if again:
            self._begin(number)
        else:
            self._fail_if_alone(ReplicaLost(f"replicas died {MAX_DEATHS} times in a row, at last: {words}"))

    # -- under the lock, or without need of it

    def _ready(self) -> list[int]:
        return [n for n, r in self._replicas.items() if r.state == "ready" and r.link is not None]

    def _all_held(self) -> list[Held]:
        held = [held for replica in self._replicas.values() for held in replica.in_hand.values()]
        return [*self._inbox.values(), *held]

    def _retry_after(self, waiting: int) -> int:
        waves = math.ceil(waiting / (self._max_batch * max(1, len(self._ready()))))
        return max(1, min(300, math.ceil(waves * self._wave_seconds)))

    def _fail_if_alone(self, error: Exception) -> None:
        with self._changed:
            if self._ending is not None or any(r.state != "failed" for r in self._replicas.values()):
                return
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._ending = "failed"
            abandoned = self._all_held()
            self._inbox.clear()
            for replica in self._replicas.values():
                replica.in_hand.clear()
                replica.close("failed")
            self._changed.notify_all()
        for held in abandoned:
            held.ticket.finish(ReplicaLost("no replica is left"))
        self._on_failed(error)
