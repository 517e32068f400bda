"""After a wave failed: which part of it is tried again, and how, until each request has an image or an error."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from sagediff.errors import InputError, ModelError
from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.engine.reuse import Arrangement
from sagediff.serving.engine.ticket import Outcome, Ticket
from sagediff.serving.engine.wave_runner import WaveResult, WaveRunner
from sagediff.serving.failures import (
    Cancelled,
    ImageFailed,
    OutOfMemory,
    RefusedByPipeline,
    refused_by_pipeline,
)

log = logging.getLogger(__name__)

Groups: TypeAlias = list[list[int]]
_NOT_FINITE = "the model gave numbers that are not finite, so there is no image"


class Recovery:
    """Runs waves, and retries parts of those that fail.

    A failed wave is bisected by whole requests, with groups kept together while there are several, until the request
    that fails is alone and gets the error. If that request replayed a cached trajectory, it is first tried without, and
    if that works the trajectory is removed. Out of memory halves the micro-batch first (the size that fits is
    remembered for requests of that image size), then the wave. Before that is tried again, others may go.

    Args:
        let_others_go: called after memory ran out, with a request whose run did not fit and will be tried again.
    """

    def __init__(
        self, runner: WaveRunner, let_others_go: Callable[[QueuedRequest], None] = lambda request: None
    ) -> None:
        self._runner, self._let_others_go = runner, let_others_go
        self._micro: dict[tuple[int | None, int | None], int] = {}

    def carry_out(
        self,
        tickets: Sequence[Ticket],
        deliver: Callable[[Ticket, Outcome], None],
        on_result: Callable[[Groups, WaveResult], None],
    ) -> None:
        """Run compatible tickets; each is delivered exactly once.

        Args:
            deliver: called with each ticket and its image or error.
            on_result: called after every call of the pipeline that succeeded.
        """
        pending = [list(tickets)]
        suspect: Arrangement | None = None  # the replay that failed for the ticket that comes next, alone
        while pending:
            part = []
            for ticket in pending.pop():
                if ticket.gone:  # read once: it may change at any moment
                    deliver(ticket, Cancelled("the client went away"))
                else:
                    part.append(ticket)
            if not part:
                suspect = None
                continue
            arrangement, result = self._call(part, replay=suspect is None)
            if isinstance(result, Exception) and is_out_of_memory(result) and not all(t.gone for t in part):
                self._let_others_go(part[0].request)
            failed_replay, suspect = suspect, None
            if isinstance(result, WaveResult):
                if failed_replay is not None:
                    self._runner.discard(failed_replay)
                on_result(arrangement.groups, result)
                for ticket, image in zip(part, result.images, strict=True):
                    deliver(ticket, Cancelled("the client went away") if image is None else image)
            elif isinstance(result, Cancelled) or (is_out_of_memory(result) and self._shrink(part)):
                pending.append(part)
            elif len(part) == 1 and arrangement.replays and not is_out_of_memory(result):
                suspect = arrangement
                pending.append(part)
            elif len(part) == 1:
                deliver(part[0], _own_error(result))
            else:
                what = _NOT_FINITE if isinstance(result, ModelError) else repr(result)
                log.warning("wave of %d failed, tried again in two halves: %s", len(part), what)
                pending += reversed(halves(part, arrangement.groups))

    def _call(self, part: list[Ticket], replay: bool) -> tuple[Arrangement, WaveResult | Exception]:
        """What one call of the pipeline returned or raised; the arrangement is empty if making it failed."""
        arrangement = Arrangement([])
        try:
            arrangement = self._runner.arrange(part, replay)
            return arrangement, self._runner.run(part, arrangement, self._micro_batch(part))
        except Exception as error:
            failure = error
        if is_out_of_memory(failure):
            failure.__traceback__ = None  # its frames hold tensors whose memory the next try needs
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return arrangement, failure

    def _micro_batch(self, part: Sequence[Ticket]) -> int | None:
        return self._micro.get(_size(part[0].request), self._runner.settings.micro_batch_size)

    def _shrink(self, part: Sequence[Ticket]) -> bool:
        """Halve the micro-batch for requests of that size; False if it cannot get smaller."""
        now = self._micro_batch(part)
        rows = 2 * len(part) if now is None else min(now, 2 * len(part))  # guidance doubles the rows at most
        if rows <= 1:
            return False
        size = _size(part[0].request)
        self._micro[size] = rows // 2
        log.warning("out of memory with %d denoiser rows at once; from now on %d", rows, rows // 2)
        return True


def halves(part: Sequence[Ticket], groups: Groups) -> list[list[Ticket]]:
    """Two parts of at least two tickets; a group is cut only if it is the only one."""
    if len(groups) > 1:
        first: list[int] = []
        rest = [list(group) for group in groups]
        while len(rest) > 1 and (not first or len(first) + len(rest[0]) <= len(part) // 2):
            first += rest.pop(0)
        last = [i for group in rest for i in group]
    else:
        first, last = list(range(len(part) // 2)), list(range(len(part) // 2, len(part)))
    return [[part[i] for i in sorted(numbers)] for numbers in (first, last)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or in a library that raises plain errors."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text
    )


def _own_error(error: Exception) -> Exception:
    if isinstance(error, Cancelled | InputError):
        return error
    if isinstance(error, ModelError):  # without its message, which would bring the prompt into the log
        return ImageFailed(_NOT_FINITE)
    if refused_by_pipeline(error):
        refused = RefusedByPipeline(f"the model does not take this request: {str(error)[:500]}")
        refused.__cause__ = error
        return refused
    if is_out_of_memory(error):
        return OutOfMemory("the image does not fit into memory, even alone: ask for a smaller size")
    failed = ImageFailed("the pipeline failed on this request")
    failed.__cause__ = error
    return failed


def _size(request: QueuedRequest) -> tuple[int | None, int | None]:
    return request.width, request.height
