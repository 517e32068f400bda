"""A pool of Ray actors that each build one worker and run tasks on it. The only importer of Ray.

Tasks are tried again if the worker that had them in hand died; what it had finished was handed over before. Workers
keep nothing, so who runs a task does not matter. Knows neither prompts nor pictures.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sagediff.distributed.sharding import WorkList
from sagediff.errors import InputError, OutputError, SagediffError

T = TypeVar("T")
R = TypeVar("R")

MAX_TRIES = 3  # workers that one task may kill


@dataclass(frozen=True)
class PoolOptions:
    """Where the workers run and what each is given.

    Attributes:
        workers: how many.
        address: of a Ray cluster ("auto" for the one of this machine); None starts one here that ends with the run.
        cpus: cores of a worker, which may be a fraction; None for an even part of this machine's, one in a cluster.
        gpus: GPUs of a worker; a fraction lets several share one.

    Raises:
        InputError: a number out of range.
    """

    workers: int
    address: str | None = None
    cpus: float | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"there must be at least one worker, got {self.workers}")
        if self.gpus < 0 or (self.cpus is not None and self.cpus <= 0):
            raise InputError(
                f"a worker's cores must be above 0 and its GPUs at least 0, got {self.cpus} and {self.gpus}"
            )

    @property
    def cpus_a_worker(self) -> float:
        if self.cpus is not None:
            return self.cpus
        return max(1, usable_cores() // self.workers) if self.address is None else 1


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool(Generic[T, R]):
    """Workers that take tasks until none is left.

    Args:
        make: called once in every worker; returns what runs a task. It travels there, with what it holds.
        on_event: told in a sentence when something happens that a user should know of.
    """

    def __init__(
        self,
        make: Callable[[], Callable[[T], R]],
        options: PoolOptions,
        on_event: Callable[[str], None] = lambda words: None,
    ) -> None:
        self._make, self._options, self._tell = make, options, on_event

    def run(self, task: Callable[[int], T], costs: Sequence[float]) -> Iterator[tuple[int, R]]:
        """Every task's number and result, in the order in which they are finished; each task once.

        Args:
            task: the task of a number, asked for when a worker is about to take it.
            costs: of each task, for balance.

        Raises:
            InputError: Ray is not installed, cannot be reached, or has not what a worker asks for.
            OutputError: a task killed its worker three times, or failed for a reason of its own.
        """
        with _ray(self._options) as ray:
            work = WorkList(costs, self._options.workers)
            self._check_resources(ray)
            start = ray.remote(_Worker).options(
                num_cpus=self._options.cpus_a_worker,
                num_gpus=self._options.gpus,
                max_restarts=0,
                max_task_retries=0,
            )
            workers = {
                number: start.remote(self._make) for number in range(min(self._options.workers, len(work)))
            }
            in_hand: dict[Any, tuple[int, int]] = {}  # answer to come -> (worker, task)
            died: Counter[int] = Counter()
            try:
                while True:
                    busy = {worker for worker, _ in in_hand.values()}
                    for worker in workers.keys() - busy:
                        number = work.take(worker)
                        if number is None:  # what it held may be what another waits for
                            ray.kill(workers.pop(worker))
                        else:
                            in_hand[workers[worker].run.remote(task(number))] = (worker, number)
                    if not in_hand:
                        return
                    (answer,), _ = ray.wait(list(in_hand), num_returns=1)
                    worker, number = in_hand.pop(answer)
                    try:
                        result = ray.get(answer)
                    except ray.exceptions.RayActorError as error:
                        self._bury(error, number, died)
                        work.give_back(worker, number)
                        workers[worker] = start.remote(self._make)
                        continue
                    except ray.exceptions.RayTaskError as error:
                        raise _cause(error) from error
                    yield number, result
            finally:
                for actor in workers.values():
                    ray.kill(actor)

    def _bury(self, error: Any, number: int, died: Counter[int]) -> None:
        if getattr(error, "actor_init_failed", False):
            raise OutputError(f"a worker could not start: {_last_line(error)}") from error
        died[number] += 1
        if died[number] >= MAX_TRIES:
            raise OutputError(
                f"{MAX_TRIES} workers died of task {number}, most likely for want of memory: take smaller waves or "
                "give a worker more; what was finished is kept, --resume goes on"
            ) from error
        self._tell(f"a worker died ({type(error).__name__}); what it had in hand is done elsewhere")

    def _check_resources(self, ray: Any) -> None:
        there = ray.cluster_resources()
        asked = {"CPU": self._options.cpus_a_worker, "GPU": self._options.gpus}
        for name, amount in asked.items():
            if amount * self._options.workers <= there.get(name, 0):
                continue
            words = (
                f"{self._options.workers} workers ask for {amount:g} {name} each, and Ray has "
                f"{there.get(name, 0):g}"
            )
            if self._options.address is None:
                raise InputError(f"{words}; take fewer workers or give each less")
            self._tell(f"{words}; workers beyond that start when the cluster grows")


class _Worker:
    """The actor."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._run = make()

    def run(self, task: Any) -> Any:
        return self._run(task)


@contextmanager
def _ray(options: PoolOptions) -> Iterator[Any]:
    """Ray, connected; one that was started here ends here. No dashboard, and nothing is reported to anybody."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # what Ray will do anyway, without its warning
    if (
        options.address is None
    ):  # Ray's workers are nice by 15, and starve beside anything else that runs here
        os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise InputError("more than one worker needs Ray: pip install 'sagediff[ray]'") from error
    own = not ray.is_initialized()
    if own:
        quiet: dict[str, Any] = {"logging_level": "ERROR", "include_dashboard": False}
        try:
            if options.address is None:
                ray.init(address="local", num_cpus=usable_cores(), **quiet)
            else:
                ray.init(address=options.address, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = "start Ray here" if options.address is None else f"reach Ray at {options.address!r}"
            raise InputError(f"cannot {where}: {_last_line(error)}") from error
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


def _cause(error: Any) -> SagediffError:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, SagediffError):
        return cause
    return OutputError(
        f"a worker failed: {type(cause).__name__}: {_last_line(cause)}; what was finished is kept"
    )


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
