"""One call to a replica for one request, with the deadline kept until a replica has queued it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sagediff.serving.fleet.messages import Enqueued, Event, Finished
from sagediff.serving.fleet.replica_protocol import Events


class Attempt:
    """Used in one event loop's thread.

    Args:
        events: of the call.
        on_event: called with the replica's number and each event.
        seconds: until the deadline; None for none.

    Attributes:
        replica: number of the replica that sent events; None before any came.
        finished: whether the request's outcome came.
        late: whether the deadline passed before any replica had queued the request.
    """

    def __init__(
        self, events: Events, on_event: Callable[[int | None, Event], None], seconds: float | None
    ) -> None:
        self._events, self._on_event, self._seconds = events, on_event, seconds
        self.replica: int | None = None
        self.finished = self.late = False

    async def run(self) -> None:
        """Pass on events until the last.

        Raises:
            Exception: the call broke off: the replica died, or this was cancelled, or late.
        """
        timer = None
        if self._seconds is not None:
            timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)
        try:
            async for replica, event in self._events:
                if replica is not None:
                    self.replica = replica
                if isinstance(event, Enqueued) and timer is not None:
                    timer.cancel()  # from now on the replica keeps the deadline
                self.finished |= isinstance(event, Finished)
                self._on_event(self.replica, event)
        finally:
            if timer is not None:
                timer.cancel()

    def cancel(self) -> None:
        self._events.cancel()

    def _expire(self) -> None:
        self.late = True
        self.cancel()
