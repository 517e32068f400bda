"""The one thread that owns the model: it loads it, takes waves from the batcher, and delivers images.

Any thread may submit requests and gets tickets for them. Only this thread touches the pipeline.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from sagediff.prompts.requests import QueuedRequest
from sagediff.sampling.sizes import size_multiple
from sagediff.serving.engine.batcher import Batcher, BatchPolicy, Waiting
from sagediff.serving.engine.recovery import Groups, Recovery
from sagediff.serving.engine.ticket import Listener, MadeImage, Outcome, Ticket
from sagediff.serving.engine.wave_runner import ModelSettings, WaveResult, WaveRunner
from sagediff.serving.failures import Cancelled, DeadlineExpired, ImageFailed, NotReady

log = logging.getLogger(__name__)

State: TypeAlias = Literal["loading", "ready", "draining", "stopped", "failed"]


@dataclass(frozen=True)
class WaveReport:
    """Measurements of a finished wave.

    Attributes:
        waited: seconds that each request waited before the wave began.
        seconds: that the wave took.
        group_sizes: of the pipeline calls that succeeded.
        evaluations, evaluations_independent: denoiser rows of those calls, and those that independent sampling would
            have run.
        cache_hits, cache_misses: requests that replayed a cached trajectory, and those that found none.
        evaluations_replayed: denoiser rows that the cache saved.
        outcomes: how many requests ended in each way: "image", or the name of the error's class.
        waiting: requests still waiting when it ended.
    """

    waited: tuple[float, ...]
    seconds: float
    group_sizes: tuple[int, ...]
    evaluations: int
    evaluations_independent: int
    outcomes: dict[str, int]
    waiting: int
    cache_hits: int = 0
    cache_misses: int = 0
    evaluations_replayed: int = 0


class Engine:
    """Starts with `start`, ends with `stop`; requests go in through `submit`.

    Args:
        load: makes the pipeline; called in the engine's thread.
        observe: called after every wave.
        clock: seconds, for windows and deadlines.
        on_failed: called if the pipeline cannot be loaded.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        settings: ModelSettings,
        policy: BatchPolicy,
        *,
        observe: Callable[[WaveReport], None] = lambda report: None,
        clock: Callable[[], float] = time.monotonic,
        on_failed: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.clock = clock
        self._load, self._settings = load, settings
        self._observe, self._on_failed = observe, on_failed
        self._batcher = Batcher(policy, clock)
        self._tickets: dict[str, Ticket] = {}  # of the requests that wait
        self._changed = threading.Condition()
        self._state: State = "loading"
        self._running: list[Ticket] = []
        self.size_multiple = 1  # of width and height; known once loaded
        self._thread = threading.Thread(target=self._run, name="sagediff-engine", daemon=True)

    # -- for any thread ----------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._state

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._batcher)

    @property
    def cache_bytes(self) -> int:
        """Bytes that its trajectory cache holds."""
        return 0 if self._settings.reuse is None else self._settings.reuse.cache.nbytes

    def start(self) -> None:
        self._thread.start()

    def wait_until_loaded(self, timeout: float | None = None) -> State:
        """Returns the state once the model is loaded, or could not be, or time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._state != "loading", timeout)
        return self._state

    def submit(
        self,
        requests: Sequence[QueuedRequest],
        previews: int = 0,
        on_preview: Listener | None = None,
        seeds: Sequence[int] = (),
    ) -> list[Ticket]:
        """Queue all of them or none.

        Args:
            previews: most previews per request.
            on_preview: called in the engine's thread; must be quick.
            seeds: one per request, for requests without a seed; drawn if not given.

        Raises:
            NotReady: the engine is loading, draining or stopped. QueueFull: no room for all of them.
        """
        tickets = [
            Ticket(request, previews, on_preview, seeds[i] if seeds else None)
            for i, request in enumerate(requests)
        ]
        with self._changed:
            if self._state != "ready":
                raise NotReady(self._state)
            self._batcher.submit(requests)
            self._tickets |= {ticket.request.id: ticket for ticket in tickets}
            self._changed.notify_all()
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """The clients are gone: requests that wait are removed, those that run are dropped at the next step, and the
        run stops when its whole wave is dropped. Finished tickets stay as they are."""
        dropped = []
        with self._changed:
            for ticket in tickets:
                ticket.gone = True
                if self._batcher.take_out(ticket.request.id):
                    dropped.append(self._tickets.pop(ticket.request.id))
            self._changed.notify_all()
        for ticket in dropped:
            ticket.finish(Cancelled("the client went away"))

    def drain(self) -> None:
        """Take no more requests; those taken are still carried out."""
        with self._changed:
            if self._state in ("loading", "ready"):
                self._state = "draining"
            self._batcher.drain()
            self._changed.notify_all()

    def stop(self, timeout: float | None = None) -> None:
        """Drain, and wait for the thread's end; after `timeout` seconds give up on what is not finished,
        which a running wave does at its next step."""
        self.drain()
        if not self._thread.is_alive():
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                unfinished = [*self._tickets.values(), *self._running]
            self.cancel(unfinished)
            self._thread.join(timeout)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            runner = WaveRunner(self._load(), self._settings)
            self.size_multiple = size_multiple(runner.pipe)
        except Exception as error:
            log.error("the model could not be loaded: %s", error)
            self._enter("failed")
            self._on_failed(error)
            return
        recovery = Recovery(runner, partial(self._run_smaller, Recovery(runner)))
        with self._changed:
            if self._state == "loading":
                self._state = "ready"
            self._changed.notify_all()
        while (wave := self._next_wave(runner)) is not None:
            self._run_wave(recovery, wave)
        self._enter("stopped")

    def _enter(self, state: State) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def _embed_waiting(self, runner: WaveRunner) -> None:
        """Where many requests wait, give the batcher their vectors; outside the lock, as a text encoder takes time."""
        with self._changed:
            requests = self._batcher.unplaced()
        if not requests:
            return
        try:
            vectors: list[Any] = list(runner.embed([request.prompt for request in requests]))
        except Exception as error:  # then waves are filled in order of arrival
            log.warning("waiting prompts could not be embedded: %r", error)
            vectors = [None] * len(requests)
        with self._changed:
            self._batcher.place({r.id: vector for r, vector in zip(requests, vectors, strict=True)})

    def _next_wave(self, runner: WaveRunner) -> list[tuple[Ticket, Waiting]] | None:
        """Waits for the next wave; None when draining has ended."""
        while True:
            self._embed_waiting(runner)
            late: list[Ticket] = []
            with self._changed:
                late = [self._tickets.pop(request.id) for request in self._batcher.expire()]
                wave = self._batcher.next_wave()
                if wave:
                    taken = self._taken(wave)
                    self._running = [ticket for ticket, _ in taken]
                elif not late:
                    if self._state == "draining" and not len(self._batcher):
                        return None
                    wake_at = self._batcher.wake_at()
                    self._changed.wait(None if wake_at is None else max(0.0, wake_at - self.clock()))
                    continue
            for ticket in late:  # outside the lock: their clients may submit again at once
                ticket.finish(DeadlineExpired("the request waited longer than its deadline allows"))
            if wave:
                return taken

    def _run_smaller(self, recovery: Recovery, large: QueuedRequest) -> None:
        """Run what waits now and is of a smaller size than a request for which memory ran out, while that is running:
        its next try may take long as well."""
        most, running = len(self._batcher), self._running
        while most > 0:
            with self._changed:
                taken = self._taken(self._batcher.next_wave(lambda request: _is_smaller(request, large)))
                self._running = running + [ticket for ticket, _ in taken]
            if not taken:
                return
            most -= len(taken)
            self._run_wave(recovery, taken)
            self._running = running

    def _taken(self, wave: list[Waiting]) -> list[tuple[Ticket, Waiting]]:
        return [(self._tickets.pop(waiting.request.id), waiting) for waiting in wave]

    def _run_wave(self, recovery: Recovery, wave: list[tuple[Ticket, Waiting]]) -> None:
        start = self.clock()
        sizes: list[int] = []
        rows = np.zeros(5, dtype=int)
        outcomes: dict[str, int] = {}

        for ticket, entry in wave:
            ticket.waited = start - entry.arrived

        def deliver(ticket: Ticket, outcome: Outcome) -> None:
            name = "image" if isinstance(outcome, MadeImage) else type(outcome).__name__
            outcomes[name] = outcomes.get(name, 0) + 1
            ticket.ran = self.clock() - start
            ticket.finish(outcome)

        def count(groups: Groups, result: WaveResult) -> None:
            sizes.extend(map(len, groups))
            rows[:] += (
                result.evaluations, result.evaluations_independent, result.cache_hits, result.cache_misses,
                result.evaluations_replayed,
            )  # fmt: skip

        try:
            recovery.carry_out([ticket for ticket, _ in wave], deliver, count)
        except Exception as error:  # a bug of ours must cost this wave only, not the server
            log.exception("a wave could not be carried out")
            for ticket in (ticket for ticket, _ in wave if not ticket.future.done()):
                failed = ImageFailed("the server failed on this request")
                failed.__cause__ = error
                ticket.finish(failed)
        seconds = self.clock() - start
        with self._changed:
            self._running = []
            self._batcher.wave_took(seconds)
            waiting = len(self._batcher)
        waited = tuple(start - entry.arrived for _, entry in wave)
        run, independent, *cached = rows.tolist()
        report = WaveReport(waited, seconds, tuple(sizes), run, independent, outcomes, waiting, *cached)
        try:
            self._observe(report)
        except Exception:  # a failing observer must not end the thread
            log.exception("a wave could not be reported")


def _is_smaller(one: QueuedRequest, other: QueuedRequest) -> bool:
    """Whether an image has fewer pixels than another; one of the model's own size is smaller than any other that did
    not fit."""
    if other.width is None or other.height is None:
        return False
    return one.width is None or one.height is None or one.width * one.height < other.width * other.height
