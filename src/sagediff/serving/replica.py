"""What a fleet keeps of each replica: the way to it, and what it has in hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from sagediff.serving.engine import State, Ticket
from sagediff.serving.messages import Command, Event


class Link(Protocol):
    """The way to one replica."""

    def send(self, command: Command) -> None:
        """In order, without waiting. To one that has died it does nothing."""

    def close(self) -> None:
        """End the replica at once; nothing is heard of it any more."""


Start = Callable[[int, Callable[[Event], None], Callable[[str], None]], Link]
"""Starts the replica of a number; its events come in one thread each, and at last the words that say how it died."""


@dataclass
class Held:
    """A ticket under way, and whether a replica has died of it, or beside it."""

    ticket: Ticket
    previews: int
    tried: bool = False


@dataclass
class Replica:
    """One of a fleet's, under the fleet's lock."""

    link: Link | None = None  # None: not started yet, or not any more
    life: int = 0  # which of its processes: what an earlier one still says is passed over
    state: State = "loading"
    in_hand: dict[str, Held] = field(default_factory=dict)
    deaths: int = 0

    def close(self, state: State = "stopped") -> None:
        """End it, and say what it is from now on."""
        self.state = state
        if self.link is not None:
            self.link.close()
            self.link = None
