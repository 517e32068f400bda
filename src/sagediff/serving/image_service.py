"""What the app needs of whoever makes images: an engine here, or a fleet of them elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.engine.model_thread import Listener, State, Ticket


class EngineFront(Protocol):
    """`Engine` says what each of these does; a `Fleet` does the same with many."""

    clock: Callable[[], float]

    @property
    def state(self) -> State: ...

    @property
    def waiting(self) -> int: ...

    @property
    def size_multiple(self) -> int: ...

    def start(self) -> None: ...

    def submit(
        self, requests: Sequence[QueuedRequest], previews: int = 0, on_preview: Listener | None = None
    ) -> list[Ticket]: ...

    def cancel(self, tickets: Sequence[Ticket]) -> None: ...

    def drain(self) -> None: ...

    def stop(self, timeout: float | None = None) -> None: ...
