"""What a fleet needs from its replicas, wherever they run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sagediff.serving.fleet.messages import Command, Event

Vector = npt.NDArray[np.float32]


class Events(Protocol):
    """A replica's events for one message, each with the replica's number, None if that is not known. Breaks off with an
    error if the replica dies, and after `cancel`."""

    def __aiter__(self) -> AsyncIterator[tuple[int | None, Event]]: ...

    def cancel(self) -> None:
        """Stop the work on this message. Called in the thread that iterates."""


class ReplicaPool(Protocol):
    """Replicas that are started, replaced and scaled without the fleet's help."""

    def open(self) -> None:
        """Start, and block until requests can be taken.

        Raises:
            Exception: the replicas cannot be started.
        """

    def call(self, message: Command, vector: Vector | None) -> Events:
        """Send a message, without waiting, to the replica that last served similar prompts. While there is no replica,
        the message waits for one.

        Args:
            vector: of its prompt, (D,) of unit length; None: any replica will do.
        """

    def loads(self) -> dict[int, int]:
        """Messages in flight at each replica that takes any now, by its number. From any thread."""

    def close(self) -> None:
        """End all replicas at once."""
