"""Errors that a request may get instead of an image; `http.answers` translates them to HTTP.

SagediffError
|-- InputError
|   `-- RefusedByPipeline    the pipeline says that it does not take such a request
`-- ServingError             the server, not the request, is why there is no image
    |-- QueueFull            too many requests wait already; says when to try again
    |-- NotReady             the server is loading, draining or stopped
    |-- DeadlineExpired      it waited longer than its deadline allows
    |-- Cancelled            the client disconnected
    |-- ReplicaLost          the replicas that worked on it died, or none is left
    |-- OutOfMemory          it does not fit into memory even alone
    `-- ImageFailed          the pipeline failed on it alone
"""

from __future__ import annotations

from typing import Any

from sagediff.errors import InputError, SagediffError


class RefusedByPipeline(InputError):
    """The pipeline's own check of its arguments refused the request; the message is its."""


class ServingError(SagediffError):
    """Root of the serving errors."""


class QueueFull(ServingError):
    """No place in the queue. `retry_after`: whole seconds until there may be one, at least 1."""

    def __init__(self, waiting: int, limit: int, retry_after: int) -> None:
        super().__init__(
            f"{waiting} images are waiting and the queue holds {limit}; try again in {retry_after} s"
        )
        self.waiting, self.limit, self.retry_after = waiting, limit, retry_after

    def __reduce__(self) -> Any:  # pickle would hand the message to `__init__`
        return QueueFull, (self.waiting, self.limit, self.retry_after)


class NotReady(ServingError):
    """The server takes no requests: it is loading, draining or stopped. `state` is the engine's."""

    def __init__(self, state: str) -> None:
        super().__init__(f"the server takes no requests now: it is {state}")
        self.state = state

    def __reduce__(self) -> Any:
        return NotReady, (self.state,)


class DeadlineExpired(ServingError):
    """A request waited longer than its deadline allows."""


class Cancelled(ServingError):
    """The client disconnected, so the image was not made, or not delivered."""


class ReplicaLost(ServingError):
    """The replica that worked on a request died, and so did the next, or there was no other."""


class OutOfMemory(ServingError):
    """An image that does not fit into memory even alone and in the smallest micro-batches."""


class ImageFailed(ServingError):
    """The pipeline failed on this request alone; the cause is chained."""


def refused_by_pipeline(error: BaseException) -> bool:
    """Whether a pipeline raised this error about its arguments: a ValueError from code of diffusers itself."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    return isinstance(error, ValueError) and module.partition(".")[0] == "diffusers"
