"""What goes between a fleet and its replicas. All of it can be pickled; causes of errors travel as text."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass
from typing import Any, TypeAlias

from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.engine.model_thread import WaveReport
from sagediff.serving.engine.recovery import Outcome
from sagediff.serving.failures import ImageFailed


class CauseElsewhere(Exception):
    """The traceback, as text, of what made a replica fail; chained to the error that it explains."""


# -- to a replica


@dataclass(frozen=True)
class Take:
    """A request to queue.

    Attributes:
        request: its deadline left out, as clocks of two machines have nothing to do with each other.
        seed: of its noise, drawn if it brought none, so that a second try is made of the same noise.
        seconds: until its deadline.
        previews: images on their way wanted of it.
    """

    request: QueuedRequest
    seed: int
    seconds: float | None
    previews: int


@dataclass(frozen=True)
class Describe:
    """Say what you are."""


Command: TypeAlias = Take | Describe

# -- from a replica, about what it was sent


@dataclass(frozen=True)
class Described:
    """What sizes must be multiples of."""

    size_multiple: int


@dataclass(frozen=True)
class Taken:
    """The engine has it, and keeps its deadline."""


@dataclass(frozen=True)
class Shown:
    """An image on its way: which of its previews, and the PIL image."""

    number: int
    image: Any


@dataclass(frozen=True)
class Finished:
    """What became of a request; `cause` is the traceback behind an error, "" for none."""

    outcome: Outcome
    waited: float = 0.0
    ran: float = 0.0
    cause: str = ""

    def opened(self) -> Outcome:
        """The outcome with its cause chained."""
        if self.cause and isinstance(self.outcome, Exception):
            self.outcome.__cause__ = CauseElsewhere(f"in a replica:\n{self.cause}")
        return self.outcome


@dataclass(frozen=True)
class Waved:
    """A wave is over; `cache_bytes`: what the replica's trajectory cache holds now."""

    report: WaveReport
    cache_bytes: int


Event: TypeAlias = Described | Taken | Shown | Finished | Waved


def portable(error: Exception) -> Exception:
    """The error itself if it survives a journey, else one that says its words."""
    try:
        came = pickle.loads(pickle.dumps(error))
    except Exception:
        came = None
    if type(came) is type(error) and str(came) == str(error):
        return error
    return ImageFailed(f"{type(error).__name__}: {error}")


def cause_of(error: Exception) -> str:
    """The traceback of what an error was raised from; "" for none."""
    cause = error.__cause__
    return "" if cause is None else "".join(traceback.format_exception(cause))
