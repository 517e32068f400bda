"""An engine in a process of its own: commands in, events out. Knows not how they travel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from sagediff.serving.engine import Engine, Preview, Ticket, WaveReport
from sagediff.serving.messages import (
    Changed,
    Command,
    Drain,
    Event,
    Finished,
    Leave,
    Shown,
    Take,
    Waved,
    cause_of,
    portable,
)


class MakeEngine(Protocol):
    """Makes a replica's engine, not started, and what says how many bytes its cache holds."""

    def __call__(
        self, observe: Callable[[WaveReport], None], on_failed: Callable[[Exception], None]
    ) -> tuple[Engine, Callable[[], int]]: ...


class Host:
    """Starts the engine at once. Commands come from one thread; events go out from any.

    Args:
        emit: takes an event; must be quick and safe between threads.
    """

    def __init__(self, make: MakeEngine, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._failure: Exception | None = None
        self._tickets: dict[str, Ticket] = {}
        self._engine, self._cache_bytes = make(self._waved, self._failed)
        self._engine.start()
        threading.Thread(target=self._say_when_loaded, daemon=True).start()

    def handle(self, command: Command) -> None:
        """Carry out a command. What goes wrong comes back as the requests' outcome."""
        if isinstance(command, Take):
            self._take(command)
        elif isinstance(command, Leave):
            self._engine.cancel([self._tickets[id_] for id_ in command.ids if id_ in self._tickets])
        elif isinstance(command, Drain):
            self._engine.drain()
            threading.Thread(target=self._say_when_stopped, daemon=True).start()

    def _take(self, command: Take) -> None:
        now = self._engine.clock()
        requests = [
            replace(request, deadline=None if seconds is None else now + seconds)
            for request, seconds in zip(command.requests, command.seconds, strict=True)
        ]
        listener = self._shown if command.previews else None
        try:
            tickets = self._engine.submit(requests, command.previews, listener, command.seeds)
        except Exception as error:
            for request in requests:
                self._emit(Finished(request.id, portable(error), cause=cause_of(error)))
            return
        self._tickets |= {ticket.request.id: ticket for ticket in tickets}
        for ticket in tickets:
            ticket.future.add_done_callback(lambda _, ticket=ticket: self._finished(ticket))  # type: ignore[misc]

    # -- from the engine's thread

    def _finished(self, ticket: Ticket) -> None:
        self._tickets.pop(ticket.request.id, None)
        error = ticket.future.exception()
        if error is None:
            event = Finished(ticket.request.id, ticket.future.result(), ticket.waited, ticket.ran)
        else:
            assert isinstance(error, Exception)
            event = Finished(ticket.request.id, portable(error), ticket.waited, ticket.ran, cause_of(error))
        self._emit(event)

    def _shown(self, ticket: Ticket, shown: Preview) -> None:
        self._emit(Shown(ticket.request.id, shown.number, shown.image))

    def _waved(self, report: WaveReport) -> None:
        self._emit(Waved(report, self._cache_bytes()))

    def _failed(self, error: Exception) -> None:
        self._emit(Changed("failed", error=portable(error)))

    # -- from threads of its own

    def _say_when_loaded(self) -> None:
        state = self._engine.wait_until_loaded()
        if state != "failed":  # which `_failed` says, with the reason
            self._emit(Changed(state, self._engine.size_multiple))

    def _say_when_stopped(self) -> None:
        self._engine.stop()
        self._emit(Changed("stopped"))
