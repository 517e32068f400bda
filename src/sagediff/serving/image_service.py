"""What HTTP needs of the maker of images: an engine in this process, or a fleet of them elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.engine.model_thread import State
from sagediff.serving.engine.ticket import Listener, Ticket


class ImageService(Protocol):
    """The part of `Engine` that `Fleet` has too; documented there."""

    clock: Callable[[], float]

    @property
    def state(self) -> State: ...

    @property
    def waiting(self) -> int: ...

    @property
    def cache_bytes(self) -> int: ...

    @property
    def size_multiple(self) -> int: ...

    def start(self) -> None: ...

    def submit(
        self, requests: Sequence[QueuedRequest], previews: int = 0, on_preview: Listener | None = None
    ) -> list[Ticket]: ...

    def cancel(self, tickets: Sequence[Ticket]) -> None: ...

    def drain(self) -> None: ...

    def stop(self, timeout: float | None = None) -> None: ...
