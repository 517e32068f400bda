"""When a wave fails: which part of it is tried again, and how, until everyone has an image or an error."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from sagediff.errors import InputError
from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.engine.reuse import Arrangement
from sagediff.serving.engine.wave_runner import Job, MadeImage, WaveResult, WaveRunner
from sagediff.serving.failures import Cancelled, ImageFailed, OutOfMemory

log = logging.getLogger(__name__)

Outcome: TypeAlias = MadeImage | Exception
Groups: TypeAlias = list[list[int]]


@dataclass(frozen=True)
class Tried:
    """One call of the pipeline: how the jobs were arranged, as far as they were, and what it made or raised."""

    arrangement: Arrangement
    result: WaveResult | None
    error: Exception | None
    out_of_memory: bool = False


class Recovery:
    """Carries out waves on a runner that may fail.

    A failure is bisected by whole requests, groups kept together as long as there are several, until the culprit stands
    alone and gets the error. One that replayed is tried without the cache first, and if that helps, what it replayed is
    removed. Out of memory halves the micro-batches first (what fits is remembered for requests of that size), then the
    wave.
    """

    def __init__(self, runner: WaveRunner) -> None:
        self._runner = runner
        self._micro: dict[tuple[int | None, int | None], int] = {}

    def carry_out(
        self,
        jobs: Sequence[Job],
        deliver: Callable[[Job, Outcome], None],
        ran: Callable[[Groups, WaveResult], None],
    ) -> None:
        """Run compatible jobs; each is delivered exactly once.

        Args:
            deliver: told what became of a job: its image, or the error that is its own.
            ran: told of every call of the pipeline that succeeded.
        """
        pending = [list(jobs)]
        suspect: Arrangement | None = None  # what the job tried next, alone, failed to replay
        while pending:
            part = []
            for job in pending.pop():
                if job.gone():  # asked once: it may change at any moment
                    deliver(job, Cancelled("the client went away"))
                else:
                    part.append(job)
            if not part:
                suspect = None
                continue
            tried = self._try(part, replay=suspect is None)
            failed, suspect = suspect, None
            if tried.result is not None:
                if failed is not None:
                    self._runner.discard(failed)
                ran(tried.arrangement.groups, tried.result)
                for job, image in zip(part, tried.result.images, strict=True):
                    deliver(job, Cancelled("the client went away") if image is None else image)
            elif isinstance(tried.error, Cancelled) or (tried.out_of_memory and self._shrink(part)):
                pending.append(part)
            elif len(part) == 1 and tried.arrangement.replays and not tried.out_of_memory:
                suspect = tried.arrangement
                pending.append(part)
            elif len(part) == 1:
                deliver(part[0], _own_error(tried))
            else:
                log.warning("wave of %d failed, tried again in two halves: %r", len(part), tried.error)
                pending += reversed(halves(part, tried.arrangement.groups))

    def _try(self, part: list[Job], replay: bool) -> Tried:
        arrangement = Arrangement([])
        try:
            arrangement = self._runner.arrange(part, replay)
            return Tried(arrangement, self._runner.run(part, arrangement, self._micro_batch(part)), None)
        except Exception as error:
            tried = Tried(arrangement, None, error, is_out_of_memory(error))
            if tried.out_of_memory:
                # the traceback holds the frames, and they the tensors that the next try needs the room of
                error.__traceback__ = None
        if tried.out_of_memory:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return tried

    def _micro_batch(self, part: Sequence[Job]) -> int | None:
        return self._micro.get(_size(part[0].request), self._runner.settings.micro_batch_size)

    def _shrink(self, part: Sequence[Job]) -> bool:
        """Halve the micro-batch for requests of that size; False if it cannot get smaller."""
        now = self._micro_batch(part)
        rows = 2 * len(part) if now is None else min(now, 2 * len(part))  # guidance doubles the rows at most
        if rows <= 1:
            return False
        size = _size(part[0].request)
        self._micro[size] = rows // 2
        log.warning("out of memory with %d denoiser rows at once; from now on %d", rows, rows // 2)
        return True


def halves(part: Sequence[Job], groups: Groups) -> list[list[Job]]:
    """Two parts of two or more jobs; a group is cut only where it is the only one."""
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
    """Whether the device, or a library that raises plain errors, says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text
    )


def _own_error(tried: Tried) -> Exception:
    error = tried.error
    if isinstance(error, Cancelled | InputError):
        return error
    if tried.out_of_memory:
        return OutOfMemory("the image does not fit into memory, even alone: ask for a smaller size")
    failed = ImageFailed("the pipeline failed on this request")
    failed.__cause__ = error
    return failed


def _size(request: QueuedRequest) -> tuple[int | None, int | None]:
    return request.width, request.height
