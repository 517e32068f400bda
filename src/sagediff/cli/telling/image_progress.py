"""How far a run of images is: one line that moves on a terminal, plain lines now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sagediff.cli.telling.run_words import duration
from sagediff.plan.share_plan import SharePlan
from sagediff.progress import stderr_is_log, stderr_line

_MEASURED = 2  # steps after which the time that is left is known well enough to say it
_LEAST_SECONDS = 10.0  # between two lines of a log
_MOST_SECONDS = 300.0  # after which there is one even if little happened
_TENTH = 0.1


class ImageProgress:
    """Counts images and denoiser evaluations; says how many images are done, how fast, and the time left.

    Time goes by evaluations, as steps differ in what they cost.

    Args:
        images: to be made.
        evaluations: that they take.
        show: given a line, and the fraction that is done, each time something happened.
        what: "images" or "videos".
        clock: seconds.
    """

    def __init__(
        self,
        images: int,
        evaluations: int,
        show: Callable[[str, float], None],
        what: str = "images",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._images, self._evaluations = images, max(1, evaluations)
        self._show, self._what, self._clock = show, what, clock
        self._start = clock()
        self._made, self._run, self._steps = 0, 0, 0

    def step(self, evaluations: int) -> None:
        """A step of a wave has run."""
        self._run += evaluations
        self._steps += 1
        self._tell()

    def made(self, images: int) -> None:
        """Images are written."""
        self._made += images
        self._tell()

    @property
    def fraction(self) -> float:
        """Of the work that is done, 0 to 1."""
        return min(1.0, self._run / self._evaluations)

    def seconds_left(self) -> float | None:
        """Expected; None before two steps are measured."""
        if self._steps < _MEASURED or not self.fraction:
            return None
        return (self._clock() - self._start) * (1 / self.fraction - 1)

    def line(self) -> str:
        """Where the run is, in words."""
        words = f"{self._made:,} of {self._images:,} {self._what}"
        left = self.seconds_left()
        elapsed = self._clock() - self._start
        if left is None or elapsed <= 0:
            return words
        rate = 60 * self.fraction * self._images / elapsed
        return f"{words}, {rate:,.1f} per minute, {duration(left)} left"

    def _tell(self) -> None:
        self._show(self.line(), self.fraction)


class WaveSteps:
    """The steps of a wave, told by what they cost; some pipelines do not say when they took one."""

    def __init__(self, plan: SharePlan, on_step: Callable[[int], None]) -> None:
        self._plan, self._on_step = plan, on_step
        self._step = self._told = 0

    def taken(self, prompts: int) -> None:
        """A step is over."""
        if self._step < self._plan.num_steps:
            self._tell(self._plan.step_evaluations(self._step))
            self._step += 1

    def end(self) -> None:
        """All of them are."""
        self._tell(self._plan.evaluations - self._told)

    def _tell(self, evaluations: int) -> None:
        if evaluations > 0:
            self._told += evaluations
            self._on_step(evaluations)


class LogLines:
    """Lines for a log: the first once the time left is known, then one per tenth of the work, no more often than every
    ten seconds and at least every five minutes.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._last: float | None = None
        self._fraction = 0.0

    def __call__(self, line: str, fraction: float) -> None:
        """Write the line if it is time for one."""
        if " left" not in line or fraction >= 1:
            return
        now = self._clock()
        if self._last is not None:
            waited = now - self._last
            if waited < _LEAST_SECONDS:
                return
            if fraction - self._fraction < _TENTH and waited < _MOST_SECONDS:
                return
        self._last, self._fraction = now, fraction
        self._write(line)


@contextmanager
def image_progress(images: int, evaluations: int, what: str = "images") -> Iterator[ImageProgress]:
    """On stderr: a line that moves where it is a terminal, else lines of a log without control characters."""
    if stderr_is_log():
        log = LogLines(lambda line: print(line, file=sys.stderr, flush=True))
        yield ImageProgress(images, evaluations, log, what)
        return
    bar, show = stderr_line(f"0 of {images:,} {what}")
    with bar:
        yield ImageProgress(images, evaluations, show, what)
