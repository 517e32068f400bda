"""Which worker takes which wave. Pure: knows neither Ray nor images.

Waves are whole groups and are formed before this, so how they are divided among workers changes no image.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

from sagediff.errors import InputError


def balance(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Balance tasks over workers: largest first, each to the worker with the least so far (LPT, Graham 1969).

    No worker gets more than 4/3 - 1/(3 workers) of what it would at best.

    Args:
        costs: of each task, planned evaluations say; at least 0.

    Returns:
        Task numbers of each worker, ascending; every task once.

    Raises:
        InputError: fewer than one worker, or a cost below 0.
    """
    if workers < 1:
        raise InputError(f"there must be at least one worker, got {workers}")
    if min(costs, default=0) < 0:
        raise InputError(f"costs must be at least 0, got {min(costs)}")
    loads: list[tuple[float, int]] = [(0.0, worker) for worker in range(workers)]
    out: list[list[int]] = [[] for _ in range(workers)]
    for task in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, worker = heapq.heappop(loads)
        out[worker].append(task)
        heapq.heappush(loads, (load + costs[task], worker))
    return [sorted(tasks) for tasks in out]


class WorkList:
    """Tasks of each worker, in order; a worker with none left takes the last task of the worker with the most left.

    Args:
        costs: of each task, as `balance` takes them.
    """

    def __init__(self, costs: Sequence[float], workers: int) -> None:
        self._costs = list(costs)
        self._queues = [deque(tasks) for tasks in balance(costs, workers)]

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def take(self, worker: int) -> int | None:
        """The worker's next task; None if no tasks are left."""
        if self._queues[worker]:
            return self._queues[worker].popleft()
        # by cost, then by number: tasks that cost nothing must be taken too
        fullest = max(self._queues, key=lambda queue: (sum(self._costs[task] for task in queue), len(queue)))
        return fullest.pop() if fullest else None

    def give_back(self, worker: int, task: int) -> None:
        """Put back a task that a worker took and did not finish; it is taken before the rest of that queue."""
        self._queues[worker].append(task)
