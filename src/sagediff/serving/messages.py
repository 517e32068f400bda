"""What goes between a fleet and its replicas. All of it can be pickled; causes of errors travel as text."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass
from typing import Any, TypeAlias

from sagediff.serving.engine import State, WaveReport
from sagediff.serving.errors import PictureFailed
from sagediff.serving.recovery import Outcome
from sagediff.serving.requests import PictureRequest


class CauseElsewhere(Exception):
    """The traceback, as text, of what made a replica fail; chained to the error that it explains."""


# -- to a replica


@dataclass(frozen=True)
class Take:
    """Requests to queue, all with the same number of previews.

    Attributes:
        requests: their deadlines left out, as clocks of two machines have nothing to do with each other.
        seeds: of their noise, drawn for those that brought none, so that a second try is made of the same noise.
        seconds: until each one's deadline.
        previews: pictures on their way wanted of each.
    """

    requests: tuple[PictureRequest, ...]
    seeds: tuple[int, ...]
    seconds: tuple[float | None, ...]
    previews: int


@dataclass(frozen=True)
class Leave:
    """The clients of requests with these ids have gone."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class Drain:
    """Finish what was taken, then say "stopped"."""


Command: TypeAlias = Take | Leave | Drain

# -- from a replica


@dataclass(frozen=True)
class Changed:
    """Its state; once loaded what sizes must be multiples of, and the error if it could not be."""

    state: State
    size_multiple: int = 1
    error: Exception | None = None


@dataclass(frozen=True)
class Shown:
    """A picture on its way: whose, which of its previews, and the PIL picture."""

    id: str
    number: int
    image: Any


@dataclass(frozen=True)
class Finished:
    """What became of a request; `cause` is the traceback behind an error, "" for none."""

    id: str
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


Event: TypeAlias = Changed | Shown | Finished | Waved


def portable(error: Exception) -> Exception:
    """The error itself if it survives a journey, else one that says its words."""
    try:
        came = pickle.loads(pickle.dumps(error))
    except Exception:
        came = None
    if type(came) is type(error) and str(came) == str(error):
        return error
    return PictureFailed(f"{type(error).__name__}: {error}")


def cause_of(error: Exception) -> str:
    """The traceback of what an error was raised from; "" for none."""
    cause = error.__cause__
    return "" if cause is None else "".join(traceback.format_exception(cause))
