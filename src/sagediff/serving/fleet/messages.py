"""Messages between a fleet and its replicas. All can be pickled; causes of errors travel as text."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass
from typing import TypeAlias

from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.engine.model_thread import WaveReport
from sagediff.serving.engine.ticket import Outcome, Preview
from sagediff.serving.failures import ImageFailed


class CauseElsewhere(Exception):
    """The traceback, as text, of an error in a replica; chained to the error that it caused."""


# -- to a replica


@dataclass(frozen=True)
class Enqueue:
    """Queue a request.

    Attributes:
        request: without its deadline, as clocks of two machines are not comparable.
        seed: of its noise, drawn if the request has none, so that a second try starts from the same noise.
        seconds: until its deadline; None for none.
        previews: number of unfinished images to send.
    """

    request: QueuedRequest
    seed: int
    seconds: float | None
    previews: int


@dataclass(frozen=True)
class Describe:
    """Ask a replica for what the fleet must know of its model."""


Command: TypeAlias = Enqueue | Describe

# -- from a replica, in answer to a command


@dataclass(frozen=True)
class Described:
    """`size_multiple`: width and height must be multiples of it."""

    size_multiple: int


@dataclass(frozen=True)
class Enqueued:
    """The engine has the request, and keeps its deadline from now on."""


@dataclass(frozen=True)
class Finished:
    """A request's outcome.

    Attributes:
        outcome: its image, or the error.
        waited, ran: seconds until its wave began, and from then to its end.
        cause: the traceback behind an error, "" for none.
    """

    outcome: Outcome
    waited: float = 0.0
    ran: float = 0.0
    cause: str = ""

    def with_cause(self) -> Outcome:
        """The outcome; an error with its cause chained."""
        if self.cause and isinstance(self.outcome, Exception):
            self.outcome.__cause__ = CauseElsewhere(f"in a replica:\n{self.cause}")
        return self.outcome


@dataclass(frozen=True)
class WaveDone:
    """A wave is over; `cache_bytes`: size of the replica's trajectory cache now."""

    report: WaveReport
    cache_bytes: int


Event: TypeAlias = Described | Enqueued | Preview | Finished | WaveDone


def portable(error: Exception) -> Exception:
    """The error itself if pickling keeps it, else an `ImageFailed` with its message."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    if type(copy) is type(error) and str(copy) == str(error):
        return error
    return ImageFailed(f"{type(error).__name__}: {error}")


def cause_of(error: Exception) -> str:
    """The traceback of what an error was raised from; "" for none."""
    cause = error.__cause__
    return "" if cause is None else "".join(traceback.format_exception(cause))
