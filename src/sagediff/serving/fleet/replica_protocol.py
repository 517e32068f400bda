"""What a fleet needs of its replicas, wherever they run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sagediff.serving.fleet.messages import Command, Event

Vector = npt.NDArray[np.float32]


class Events(Protocol):
    """What a replica says of one message, each with the replica's number, None if that is not known. Breaks off with an
    error if the replica dies, and after `cancel`."""

    def __aiter__(self) -> AsyncIterator[tuple[int | None, Event]]: ...

    def cancel(self) -> None:
        """Whoever asked has gone. Called in the thread that iterates."""


class Replicas(Protocol):
    """They are started, replaced where they died, and more or fewer, without the fleet having a hand in it."""

    def open(self) -> None:
        """Start, and block until requests can be taken.

        Raises:
            Exception: that will never be.
        """

    def call(self, message: Command, vector: Vector | None) -> Events:
        """Send a message, without waiting, to the replica where what it means, (D,) of unit length, is at home; None
        for nothing to go by. While there is none, it waits for one."""

    def loads(self) -> dict[int, int]:
        """Messages in hand of each replica that takes any now, by number. From any thread."""

    def close(self) -> None:
        """End them at once."""
