"""A pool of Ray actors that each build one worker and run tasks on it.

A task is run again if its worker died; results are passed on as they come, so finished ones are never lost. Workers
keep no state, so it does not matter which one runs a task. Knows neither prompts nor images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from sagediff.distributed.cluster import PoolOptions, check_resources, connected, last_line
from sagediff.distributed.maker import made_by, packed
from sagediff.distributed.work_list import WorkList
from sagediff.errors import OutputError, SagediffError

T = TypeVar("T")
R = TypeVar("R")

MAX_TRIES = 3  # workers that one task may kill


class Pool(Generic[T, R]):
    """Workers that take tasks until none is left.

    Args:
        make: called once in every worker; returns the function that runs a task. It is pickled, with all it holds.
        on_event: called with a sentence when something happens that a user should know of.
    """

    def __init__(
        self,
        make: Callable[[], Callable[[T], R]],
        options: PoolOptions,
        on_event: Callable[[str], None] = lambda words: None,
    ) -> None:
        self._make, self._options, self._on_event = make, options, on_event

    def run(self, task: Callable[[int], T], costs: Sequence[float]) -> Iterator[tuple[int, R]]:
        """Yield each task's number and result once, in the order in which they finish.

        Args:
            task: makes the task of a number; called when a worker is about to take it.
            costs: of each task, to balance the workers.

        Raises:
            InputError: Ray is not installed, cannot be reached, or lacks what a worker needs.
            OutputError: a task killed its worker three times, or failed for a reason of its own.
        """
        with connected(self._options) as ray:
            work = WorkList(costs, self._options.workers)
            check_resources(ray, self._options, self._on_event)
            maker = packed(self._make)
            start = ray.remote(_Worker).options(
                num_cpus=self._options.cpus_per_worker,
                num_gpus=self._options.gpus,
                max_restarts=0,
                max_task_retries=0,
            )
            workers = {number: start.remote(maker) for number in range(min(self._options.workers, len(work)))}
            in_flight: dict[Any, tuple[int, int]] = {}  # Ray's reference to the result -> (worker, task)
            died: Counter[int] = Counter()
            try:
                while True:
                    busy = {worker for worker, _ in in_flight.values()}
                    for worker in workers.keys() - busy:
                        number = work.take(worker)
                        if number is None:  # its resources may be what another worker waits for
                            ray.kill(workers.pop(worker))
                        else:
                            in_flight[workers[worker].run.remote(task(number))] = (worker, number)
                    if not in_flight:
                        return
                    (answer,), _ = ray.wait(list(in_flight), num_returns=1)
                    worker, number = in_flight.pop(answer)
                    try:
                        result = ray.get(answer)
                    except ray.exceptions.RayActorError as error:
                        self._count_death(error, number, died)
                        work.give_back(worker, number)
                        workers[worker] = start.remote(maker)
                        continue
                    except ray.exceptions.RayTaskError as error:
                        raise _cause(error) from error
                    yield number, result
            finally:
                for actor in workers.values():
                    ray.kill(actor)

    def _count_death(self, error: Any, number: int, died: Counter[int]) -> None:
        if getattr(error, "actor_init_failed", False):
            raise OutputError(f"a worker could not start: {last_line(error)}") from error
        died[number] += 1
        if died[number] >= MAX_TRIES:
            raise OutputError(
                f"{MAX_TRIES} workers died of task {number}, most likely because memory ran out: take smaller waves or "
                "give a worker more; what was finished is kept, --resume goes on"
            ) from error
        self._on_event(f"a worker died ({type(error).__name__}); its task is run again by another")


class _Worker:
    """The actor."""

    def __init__(self, maker: bytes) -> None:
        self._run: Callable[[Any], Any] = made_by(maker)

    def run(self, task: Any) -> Any:
        return self._run(task)


def _cause(error: Any) -> SagediffError:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, SagediffError):
        return cause
    return OutputError(
        f"a worker failed: {type(cause).__name__}: {last_line(cause)}; what was finished is kept"
    )
