"""An engine in a process of its own: a message in, its events out. Does not know how they travel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

from sagediff.serving.engine.model_thread import Engine, WaveReport
from sagediff.serving.engine.ticket import Preview, Ticket
from sagediff.serving.failures import NotReady
from sagediff.serving.fleet.messages import (
    Command,
    Describe,
    Described,
    Enqueue,
    Enqueued,
    Event,
    Finished,
    WaveDone,
    cause_of,
    portable,
)

_REPORT_PATIENCE = 5.0  # seconds that a finished request waits for its wave's report, which follows at once


MakeEngine: TypeAlias = Callable[[Callable[[WaveReport], None], Callable[[Exception], None]], Engine]
"""Makes a replica's engine, not started, which calls the two as its `observe` and `on_failed`."""


class ReplicaHost:
    """Starts the engine, and waits until it is ready.

    The report of a wave travels with the events of one of its requests: a request's events end only after its wave was
    reported.

    Raises:
        Exception: the model could not be loaded; the loader's own error.
    """

    def __init__(self, make: MakeEngine) -> None:
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._unsent: list[WaveDone] = []
        # of finished requests whose wave has not been reported
        self._on_wave_done: list[Callable[[], None]] = []
        self._engine = make(self._wave_done, self._failed)
        self._engine.start()
        state = self._engine.wait_until_loaded()
        if state != "ready":
            raise self._failure or NotReady(state)

    async def answer(self, command: Command) -> AsyncIterator[Event]:
        """A message's events; errors are among them. If it is closed before the end, the request is cancelled."""
        if isinstance(command, Describe):
            yield Described(self._engine.size_multiple)
            return
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Event | None] = asyncio.Queue()

        def put(event: Event | None) -> None:
            loop.call_soon_threadsafe(inbox.put_nowait, event)

        try:
            ticket = self._enqueue(command, put)
        except Exception as error:
            yield Finished(portable(error), cause=cause_of(error))
            return
        try:
            yield Enqueued()
            while not isinstance(event := await inbox.get(), Finished):
                assert event is not None
                yield event
            yield event
            if ticket.ran:  # else it was never in a wave
                await asyncio.wait_for(inbox.get(), _REPORT_PATIENCE)
            for report in self._reports():
                yield report
        except TimeoutError:  # figures are missing; the image is not
            return
        finally:
            if not ticket.future.done():
                self._engine.cancel([ticket])

    def stop(self, timeout: float | None = None) -> None:
        """End the engine; see `Engine.stop`."""
        self._engine.stop(timeout)

    def _enqueue(self, command: Enqueue, put: Callable[[Event | None], None]) -> Ticket:
        seconds = command.seconds
        request = replace(
            command.request, deadline=None if seconds is None else self._engine.clock() + seconds
        )

        def show(_: Ticket, preview: Preview) -> None:
            put(preview)

        listener = show if command.previews else None
        (ticket,) = self._engine.submit([request], command.previews, listener, [command.seed])

        def finished(_: object) -> None:
            if ticket.ran:
                with self._lock:
                    self._on_wave_done.append(lambda: put(None))
            put(_finished(ticket))

        ticket.future.add_done_callback(finished)
        return ticket

    def _reports(self) -> list[WaveDone]:
        with self._lock:
            reports, self._unsent = self._unsent, []
        return reports

    # -- from the engine's thread

    def _wave_done(self, report: WaveReport) -> None:
        with self._lock:
            self._unsent.append(WaveDone(report, self._engine.cache_bytes))
            callbacks, self._on_wave_done = self._on_wave_done, []
        for callback in callbacks:
            with suppress(RuntimeError):  # its event loop has ended, and nobody waits there
                callback()

    def _failed(self, error: Exception) -> None:
        self._failure = error


def _finished(ticket: Ticket) -> Finished:
    error = ticket.future.exception()
    if error is None:
        return Finished(ticket.future.result(), ticket.waited, ticket.ran)
    assert isinstance(error, Exception)
    return Finished(portable(error), ticket.waited, ticket.ran, cause_of(error))
