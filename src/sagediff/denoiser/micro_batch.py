"""How many rows a denoiser is run on at once: a number, or found by measuring. Knows no tensor and no model."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias, runtime_checkable

from sagediff.errors import InputError

MicroBatch: TypeAlias = "int | Literal['auto'] | MicroBatches | None"

_LEAST = 4  # rows of the smallest micro-batch that is tried
_WORSE = 1.05  # a size this much slower than the best one ends the search for smaller ones


@runtime_checkable
class MicroBatches(Protocol):
    """Says how many rows are run at once, and is told how that went."""

    @property
    def is_known(self) -> bool:
        """Whether nothing is left to be measured."""

    @property
    def takes_all(self) -> bool:
        """Whether every call is run at once, whatever its rows."""

    def size(self, rows: int) -> int:
        """Rows to run at once in a call of so many."""

    def measured(self, rows: int, size: int, seconds: float) -> None:
        """A call of so many rows took so long, run `size` rows at a time."""

    def did_not_fit(self, size: int) -> bool:
        """The memory did not hold so many rows. Returns whether there is a smaller size to try."""


class MeasuredSize:
    """Finds the size that takes least time per row, over the calls of a run or of many.

    The first call tries all rows, the next ones half as many each time, as long as that is not slower; then the
    fastest stays. Every size is run twice and its faster time counts, as a first run may compile or allocate. A size
    that does not fit the memory ends all that are not smaller. Give one object to several runs to find out once.

    Results differ between sizes by rounding only, but they differ: with a measured size the same run may round
    differently the next time.
    """

    takes_all = False

    def __init__(self) -> None:
        self._rows = 0  # of the largest call so far, which the search is for
        self._seconds: dict[int, list[float]] = {}  # a row, by size
        self._too_large: int | None = None
        self.settled: int | None = None  # the size found

    @property
    def is_known(self) -> bool:
        return self.settled is not None

    def size(self, rows: int) -> int:
        if rows > self._rows:
            self._rows, self.settled = rows, None
        if rows < self._rows or self.settled is not None:  # too few to learn from, or learned
            return min(rows, self.settled or self._best() or self._fitting(rows))
        size = self._untried()
        if size is None:  # smaller calls told already
            size = self.settled = self._best() or self._fitting(rows)
        return size

    def measured(self, rows: int, size: int, seconds: float) -> None:
        if rows < self._rows or self.settled is not None:
            return
        self._seconds.setdefault(size, []).append(seconds / rows)
        if self._untried() is None:
            self.settled = self._best()

    def did_not_fit(self, size: int) -> bool:
        if size <= 1:
            return False
        self._too_large = min(size, self._too_large or size)
        self._seconds = {s: times for s, times in self._seconds.items() if s < self._too_large}
        self.settled = None
        return True

    def _fitting(self, rows: int) -> int:
        """The largest size of the series that is known to fit, or may."""
        size = rows
        while self._too_large is not None and size >= self._too_large and size > 1:
            size = -(-size // 2)
        return size

    def _best(self) -> int | None:
        return min(self._seconds, key=lambda size: (min(self._seconds[size]), -size), default=None)

    def _untried(self) -> int | None:
        """The next size to measure; None when the search is over."""
        size = self._fitting(self._rows)
        best: float | None = None
        while True:
            times = self._seconds.get(size, [])
            if len(times) < 2:
                return size
            if best is not None and min(times) > _WORSE * best:
                return None
            best = min(min(times), best) if best is not None else min(times)
            if size <= _LEAST:
                return None
            size = -(-size // 2)


class FixedSize:
    """A size that the user named; None for all rows at once."""

    is_known = True

    def __init__(self, size: int | None) -> None:
        self._size = size
        self.takes_all = size is None

    def size(self, rows: int) -> int:
        return rows if self._size is None else min(rows, self._size)

    def measured(self, rows: int, size: int, seconds: float) -> None:
        pass  # nothing to learn

    def did_not_fit(self, size: int) -> bool:
        return False


def micro_batches(given: MicroBatch) -> MicroBatches:
    """What an option means.

    Raises:
        InputError: neither a number of at least 1, "auto", None, nor `MicroBatches` such as a `MeasuredSize`.
    """
    if isinstance(given, MicroBatches):
        return given
    if given == "auto":
        return MeasuredSize()
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
        return FixedSize(given)
    raise InputError(
        f"micro_batch_size should be at least 1, 'auto' to measure, or None for all rows at once; got {given!r}"
    )
