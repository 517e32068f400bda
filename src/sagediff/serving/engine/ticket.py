"""A client's handle of one request, from its arrival to its image or its error."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeAlias

from sagediff.prompts.requests import QueuedRequest

EXACT_IN_JSON = (
    2**53
)  # whole numbers below it come back from a client whose numbers are all doubles (JavaScript)

Listener: TypeAlias = Callable[["Ticket", "Preview"], None]
Outcome: TypeAlias = "MadeImage | Exception"


@dataclass(frozen=True)
class Preview:
    """An unfinished image: which of the request's previews it is, from 0, and the PIL image."""

    number: int
    image: Any


@dataclass(frozen=True)
class MadeImage:
    """A finished image.

    Attributes:
        image: PIL.
        seed: the seed that its request brought or was given.
        evaluations: its part of the denoiser rows, a group's divided evenly.
        evaluations_alone: rows that it would have run without others, with the same guidance.
        group: a random name of its group, equal for its members and for nobody else; tells nothing of them.
        group_size: members of its group, itself included.
        shared_steps: steps that it took together with others, earlier requests included.
        replayed_steps: those of them that were replayed from an earlier request's.
        cut_at: tokens that the text encoders read of its prompt, where it is longer; None where they read it all.
    """

    image: Any
    seed: int
    evaluations: float
    evaluations_alone: float
    group: str
    group_size: int
    shared_steps: int
    replayed_steps: int = 0
    cut_at: int | None = None


class Ticket:
    """A client's handle of its request.

    Attributes:
        future: gives the `MadeImage`, or raises the error.
        seed: the request's, else the one given, else drawn.
        previews: steps after which the client wants to see how far the image is, counted from 1.
        gone: whether the client is gone; set from any thread.
        waited, ran: seconds until its wave began, and from then to its end; known once it is finished.
    """

    def __init__(
        self, request: QueuedRequest, previews: int, on_preview: Listener | None, seed: int | None = None
    ) -> None:
        self.request = request
        if request.seed is not None:
            seed = request.seed
        self.seed = secrets.randbelow(EXACT_IN_JSON) if seed is None else seed
        self.future: Future[MadeImage] = Future()
        self.waited = self.ran = 0.0
        self._next_preview = 0
        self.gone = False
        self._listener = on_preview
        # cancelling goes through `Engine.cancel`, never through the future: it is running from the start
        self.future.set_running_or_notify_cancel()
        self.previews = preview_steps(0 if on_preview is None else previews, request.num_inference_steps)

    def finish(self, outcome: Outcome) -> None:
        """Called once."""
        if isinstance(outcome, MadeImage):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)

    def show(self, number: int, image: Any) -> None:
        """Pass on a preview, unless the client is gone or has it already."""
        if self._listener is not None and not self.gone and number >= self._next_preview:
            self._next_preview = number + 1  # a wave that is tried again sends no preview twice
            self._listener(self, Preview(number, image))


def preview_steps(count: int, num_steps: int) -> tuple[int, ...]:
    """After which steps, counted from 1, up to `count` previews are shown: evenly spread, the last step left out, whose
    image comes anyway."""
    wanted = {round((i + 1) * num_steps / (count + 1)) for i in range(count)}
    return tuple(sorted(step for step in wanted if 0 < step < num_steps))
