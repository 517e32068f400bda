"""One call to a replica for one request, with the deadline kept until a replica has it in hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sagediff.serving.fleet.messages import Event, Finished, Taken
from sagediff.serving.fleet.replica_protocol import Events


class Attempt:
    """Of one event loop's thread.

    Args:
        events: what the replica says.
        heard: told each of them, with the replica's number.
        seconds: until the deadline; None for none.

    Attributes:
        replica: whose events came; None before any did.
        finished: whether the request's outcome came.
        late: whether the deadline passed before any replica had the request.
    """

    def __init__(
        self, events: Events, heard: Callable[[int | None, Event], None], seconds: float | None
    ) -> None:
        self._events, self._heard, self._seconds = events, heard, seconds
        self.replica: int | None = None
        self.finished = self.late = False

    async def run(self) -> None:
        """Until the replica has said all.

        Raises:
            Exception: it broke off: the replica died, or this was cancelled, or late.
        """
        timer = None
        if self._seconds is not None:
            timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)
        try:
            async for replica, event in self._events:
                if replica is not None:
                    self.replica = replica
                if isinstance(event, Taken) and timer is not None:
                    timer.cancel()  # from now on the replica keeps it
                self.finished |= isinstance(event, Finished)
                self._heard(self.replica, event)
        finally:
            if timer is not None:
                timer.cancel()

    def cancel(self) -> None:
        self._events.cancel()

    def _expire(self) -> None:
        self.late = True
        self.cancel()
