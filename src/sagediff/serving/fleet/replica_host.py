"""An engine in a process of its own: a message in, its events out. Knows not how they travel."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Protocol

from sagediff.serving.engine.model_thread import Engine, Preview, Ticket, WaveReport
from sagediff.serving.failures import NotReady
from sagediff.serving.fleet.messages import (
    Command,
    Describe,
    Described,
    Event,
    Finished,
    Shown,
    Take,
    Taken,
    Waved,
    cause_of,
    portable,
)

_REPORT_PATIENCE = 5.0  # seconds that a finished request waits for its wave's report, which follows at once


class MakeEngine(Protocol):
    """Makes a replica's engine, not started, and what says how many bytes its cache holds."""

    def __call__(
        self, observe: Callable[[WaveReport], None], on_failed: Callable[[Exception], None]
    ) -> tuple[Engine, Callable[[], int]]: ...


class Host:
    """Starts the engine, and waits until it is ready.

    Reports of waves go out with the events of whoever was in them: a request's events end after its wave's report, and
    one of those that end then brings it.

    Raises:
        Exception: what made the model impossible to load.
    """

    def __init__(self, make: MakeEngine) -> None:
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._unsaid: deque[Waved] = deque()
        self._wave_over: list[Callable[[], None]] = []  # for those whose wave has not been reported
        self._engine, self._cache_bytes = make(self._waved, self._failed)
        self._engine.start()
        state = self._engine.wait_until_loaded()
        if state != "ready":
            raise self._failure or NotReady(state)

    async def answer(self, command: Command) -> AsyncIterator[Event]:
        """A message's events. What goes wrong is among them. Closed before the end, its request is forgotten."""
        if isinstance(command, Describe):
            yield Described(self._engine.size_multiple)
            return
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Event | None] = asyncio.Queue()

        def put(event: Event | None) -> None:
            loop.call_soon_threadsafe(inbox.put_nowait, event)

        try:
            ticket = self._taken(command, put)
        except Exception as error:
            yield Finished(portable(error), cause=cause_of(error))
            return
        try:
            yield Taken()
            while not isinstance(event := await inbox.get(), Finished):
                assert event is not None
                yield event
            yield event
            if ticket.ran:  # else it never was in a wave
                await asyncio.wait_for(inbox.get(), _REPORT_PATIENCE)
            for waved in self._reports():
                yield waved
        except TimeoutError:  # figures are missing; the image is not
            return
        finally:
            if not ticket.future.done():
                self._engine.cancel([ticket])

    def stop(self, timeout: float | None = None) -> None:
        """End the engine; see `Engine.stop`."""
        self._engine.stop(timeout)

    def _taken(self, command: Take, put: Callable[[Event | None], None]) -> Ticket:
        seconds = command.seconds
        request = replace(
            command.request, deadline=None if seconds is None else self._engine.clock() + seconds
        )

        def show(_: Ticket, shown: Preview) -> None:
            put(Shown(shown.number, shown.image))

        listener = show if command.previews else None
        (ticket,) = self._engine.submit([request], command.previews, listener, [command.seed])

        def finished(_: object) -> None:
            if ticket.ran:
                with self._lock:
                    self._wave_over.append(lambda: put(None))
            put(_finished(ticket))

        ticket.future.add_done_callback(finished)
        return ticket

    def _reports(self) -> list[Waved]:
        with self._lock:
            reports = list(self._unsaid)
            self._unsaid.clear()
        return reports

    # -- from the engine's thread

    def _waved(self, report: WaveReport) -> None:
        with self._lock:
            self._unsaid.append(Waved(report, self._cache_bytes()))
            waiting, self._wave_over = self._wave_over, []
        for tell in waiting:
            try:
                tell()
            except RuntimeError:  # its loop has ended, and nobody waits there
                continue

    def _failed(self, error: Exception) -> None:
        self._failure = error


def _finished(ticket: Ticket) -> Finished:
    error = ticket.future.exception()
    if error is None:
        return Finished(ticket.future.result(), ticket.waited, ticket.ran)
    assert isinstance(error, Exception)
    return Finished(portable(error), ticket.waited, ticket.ran, cause_of(error))
