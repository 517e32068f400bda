"""Which requests wait, and which run together next. Knows neither HTTP, threads nor the model; the clock is handed in.

Requests wait in buckets of equal compatibility. A bucket's window opens with its first request and closes when
there are enough for a wave or when time is up; where nobody in it may share, waiting would gain nothing and it is
closed from the start. Of the closed buckets the one with the oldest request goes first. In a bucket the oldest requests
do, or, where more wait than a wave holds and their embeddings were handed in, the oldest one and those that mean most
nearly the same; nobody is passed over more than a few times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sagediff.errors import InputError
from sagediff.plan.compatibility import Key, run_key, share_key
from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.failures import NotReady, QueueFull

Vector = npt.NDArray[np.float32]
_REMEMBERED = 0.3  # weight of the latest wave in the running mean of how long one takes
_MOST_PASSED = 3  # waves that may take younger requests before an older one
_LONGEST_RETRY = 300  # seconds; an estimate beyond it says nothing


@dataclass(frozen=True)
class BatchPolicy:
    """How long requests wait for each other, and how many may.

    Attributes:
        window: seconds that a bucket's first request waits for others. Longer: more sharing, later images.
        max_batch: most requests in a wave.
        max_queue: most requests waiting; more are refused.
        sharing: False where the operator switched sharing off: then nobody waits for others.
        across_tenants: whether requests of several tenants may share.
        by_meaning: whether a wave takes similar prompts first, where more wait than it holds.

    Raises:
        InputError: a value out of range.
    """

    window: float = 0.05
    max_batch: int = 16
    max_queue: int = 256
    sharing: bool = True
    across_tenants: bool = False
    by_meaning: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.window) and self.window >= 0):
            raise InputError(f"the window must be at least 0 seconds, got {self.window}")
        if self.max_batch < 1:
            raise InputError(f"max_batch must be at least 1, got {self.max_batch}")
        if self.max_queue < 1:
            raise InputError(f"max_queue must be at least 1, got {self.max_queue}")


@dataclass(frozen=True)
class Waiting:
    """A request and the time at which it came."""

    request: QueuedRequest
    arrived: float


class Batcher:
    """The queue. Not safe between threads: whoever owns it locks.

    Args:
        clock: seconds, never going back; also what deadlines are measured in.
    """

    def __init__(self, policy: BatchPolicy, clock: Callable[[], float]) -> None:
        self.policy = policy
        self._clock = clock
        self._waiting: dict[str, Waiting] = {}  # in the order of arrival
        self._vectors: dict[str, Vector | None] = {}  # None: there is none to be had
        self._passed: dict[str, int] = {}  # waves that took younger ones of the same bucket
        self._draining = False
        self._wave_seconds = 1.0

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, requests: Sequence[QueuedRequest]) -> None:
        """Take all of them or none.

        Raises:
            QueueFull: they do not all fit. NotReady: the queue is being drained.
            InputError: an id that waits already.
        """
        if self._draining:
            raise NotReady("draining")
        ids = [request.id for request in requests]
        if len(set(ids)) != len(ids) or any(id_ in self._waiting for id_ in ids):
            raise InputError(f"request ids must be unique, got {ids}")
        if len(self._waiting) + len(requests) > self.policy.max_queue:
            raise QueueFull(len(self._waiting), self.policy.max_queue, self.retry_after())
        now = self._clock()
        for request in requests:
            self._waiting[request.id] = Waiting(request, now)

    def take_out(self, id_: str) -> bool:
        """A request no longer waits; False if none of that id did."""
        self._vectors.pop(id_, None)
        self._passed.pop(id_, None)
        return self._waiting.pop(id_, None) is not None

    def expire(self) -> list[QueuedRequest]:
        """Take out the requests whose deadline has passed."""
        now = self._clock()
        late = [
            w.request
            for w in self._waiting.values()
            if w.request.deadline is not None and w.request.deadline <= now
        ]
        for request in late:
            self.take_out(request.id)
        return late

    def next_wave(self, may: Callable[[QueuedRequest], bool] = lambda request: True) -> list[Waiting]:
        """Take out the requests to run together now, oldest first; empty while every window is open.

        Args:
            may: whether a request's bucket may be taken; the same for all in a bucket.
        """
        now = self._clock()
        for bucket in self._buckets():
            if self._closes(bucket) <= now and may(bucket[0].request):
                wave = self._fill(bucket)
                for waiting in bucket[: bucket.index(wave[-1])]:
                    self._passed[waiting.request.id] = self._passed.get(waiting.request.id, 0) + 1
                for waiting in wave:
                    self.take_out(waiting.request.id)
                return wave
        return []

    def unplaced(self) -> list[QueuedRequest]:
        """Requests whose embeddings would help to fill waves by meaning: more of them wait than a wave holds."""
        return [
            w.request
            for bucket in self._buckets()
            if self.policy.sharing and self.policy.by_meaning and len(bucket) > self.policy.max_batch
            for w in bucket
            if w.request.may_share and w.request.id not in self._vectors
        ]

    def place(self, vectors: Mapping[str, Vector | None]) -> None:
        """Hand in embeddings (D,) of unit length by request id; None where there is none. Ids that have gone are
        passed over."""
        self._vectors |= {id_: vector for id_, vector in vectors.items() if id_ in self._waiting}

    def wake_at(self) -> float | None:
        """When the next window closes or the next deadline passes; None while nobody waits."""
        deadlines = (w.request.deadline for w in self._waiting.values() if w.request.deadline is not None)
        times = [*map(self._closes, self._buckets()), *deadlines]
        return min(times, default=None)

    def drain(self) -> None:
        """Take no more requests, and wait for no others."""
        self._draining = True

    def wave_took(self, seconds: float) -> None:
        """Told after each wave, for `retry_after`."""
        self._wave_seconds += _REMEMBERED * (seconds - self._wave_seconds)

    def retry_after(self) -> int:
        """Whole seconds, at least 1, in which what waits now will have been worked off, as waves went lately."""
        waves = math.ceil(len(self._waiting) / self.policy.max_batch)
        return max(1, min(_LONGEST_RETRY, math.ceil(waves * self._wave_seconds)))

    def _fill(self, bucket: list[Waiting]) -> list[Waiting]:
        """A wave of the bucket, oldest first."""
        places = self.policy.max_batch
        first = self._vectors.get(bucket[0].request.id)
        if len(bucket) <= places or first is None:
            return bucket[:places]

        def rank(number: int) -> tuple[bool, float, int]:
            id_ = bucket[number].request.id
            vector = self._vectors.get(id_)
            if number == 0 or self._passed.get(id_, 0) >= _MOST_PASSED:
                return False, 0.0, number
            if vector is None or self._pool(bucket[number]) != self._pool(bucket[0]):
                return True, 2.0, number  # behind all who could share, by age
            return True, -float(np.dot(first, vector)), number

        return [bucket[i] for i in sorted(sorted(range(len(bucket)), key=rank)[:places])]

    def _pool(self, waiting: Waiting) -> Key:
        """Waiting requests with equal answers may share."""
        return share_key(waiting.request, self.policy.across_tenants)

    def _buckets(self) -> Iterable[list[Waiting]]:
        """Compatible requests, each bucket by age, buckets by their oldest."""
        buckets: dict[Key, list[Waiting]] = {}
        for waiting in self._waiting.values():
            buckets.setdefault(run_key(waiting.request), []).append(waiting)
        return buckets.values()

    def _closes(self, bucket: Sequence[Waiting]) -> float:
        """When a bucket's window closes."""
        opened = bucket[0].arrived
        nothing_to_gain = not self.policy.sharing or not any(w.request.may_share for w in bucket)
        ends = opened + self.policy.window
        # who cannot wait for the window's end would expire in it: the wave goes at once rather than without him
        hurried = any(w.request.deadline is not None and w.request.deadline <= ends for w in bucket)
        if self._draining or nothing_to_gain or hurried or len(bucket) >= self.policy.max_batch:
            return opened
        return ends
