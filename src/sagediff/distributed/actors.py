"""One Ray actor that takes messages and gives others back, until it dies. Knows not what they say.

Messages are handled in the order in which they were sent. What the actor gives is fetched by a thread here, which
also hears of its death.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sagediff.distributed.cluster import PoolOptions, last_line

M = TypeVar("M")
E = TypeVar("E")

log = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds that an actor with nothing to say keeps who asks waiting


class ActorLink(Generic[M, E]):
    """Starts the actor; never restarts it.

    Args:
        ray: as `connected` gives it.
        make: called in the actor with what takes events there, from any thread; returns what handles a message. It
            travels there, with what it holds.
        on_event: told of each event, in order, in a thread of the link's.
        on_died: told once, in the same thread and after all events that came through, unless the link was closed.
    """

    def __init__(
        self,
        ray: Any,
        make: Callable[[Callable[[E], None]], Callable[[M], None]],
        options: PoolOptions,
        on_event: Callable[[E], None],
        on_died: Callable[[str], None],
    ) -> None:
        self._ray, self._on_event, self._on_died = ray, on_event, on_died
        self._closed = threading.Event()
        # whoever waits for events must not keep messages waiting: each has a thread of the actor's
        started = ray.remote(concurrency_groups={"events": 1})(_Actor).options(
            num_cpus=options.cpus_a_worker, num_gpus=options.gpus, max_restarts=0, max_task_retries=0
        )
        self._actor = started.remote(make)
        threading.Thread(target=self._listen, name="sagediff-link", daemon=True).start()

    def send(self, message: M) -> None:
        """Does not wait. To an actor that has died, nothing happens."""
        self._actor.handle.remote(message)

    def close(self) -> None:
        """Kill it."""
        self._closed.set()
        self._ray.kill(self._actor)

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                events = self._ray.get(self._actor.events.options(concurrency_group="events").remote())
            except (
                Exception
            ) as error:  # it died, or gave something that cannot travel: either way it is of no more use
                if not self._closed.is_set():
                    self.close()
                    self._on_died(f"{type(error).__name__}: {last_line(error)}")
                return
            for event in events:
                try:
                    self._on_event(event)
                except Exception:  # a mistake of ours must cost this event only
                    log.exception("an event of a replica could not be taken in")


class _Actor:
    def __init__(self, make: Callable[[Callable[[Any], None]], Callable[[Any], None]]) -> None:
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._handle = make(self._events.put)

    def handle(self, message: Any) -> None:
        self._handle(message)

    def events(self) -> list[Any]:
        """What there is, once there is anything; nothing after a while, so that the caller sees that this is alive."""
        try:
            found = [self._events.get(timeout=_PATIENCE)]
        except queue.Empty:
            return []
        while not self._events.empty():
            found.append(self._events.get())
        return found
