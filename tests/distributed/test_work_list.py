"""Work lists: every task once, balanced within the bound of largest-first, deterministic."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagediff.distributed.work_list import WorkList, balance
from sagediff.errors import InputError

COSTS = st.lists(st.integers(0, 60), max_size=40)
WORKERS = st.integers(1, 7)


@given(COSTS, WORKERS)
def test_every_task_goes_to_one_worker_and_the_same_one_again(costs: list[int], workers: int) -> None:
    parts = balance(costs, workers)
    assert len(parts) == workers and all(part == sorted(part) for part in parts)
    assert sorted(itertools.chain(*parts)) == list(range(len(costs)))
    assert balance(costs, workers) == parts


@given(COSTS, WORKERS)
def test_no_worker_ends_later_than_one_task_after_the_mean(costs: list[int], workers: int) -> None:
    largest = max(sum(costs[i] for i in part) for part in balance(costs, workers))
    assert largest <= sum(costs) / workers + max(costs, default=0)


def _optimum(costs: tuple[int, ...], workers: int) -> int:
    """The least largest load, over all assignments that differ."""
    best = sum(costs)

    def place(number: int, loads: tuple[int, ...]) -> None:
        nonlocal best
        if max(loads) >= best:
            return
        if number == len(costs):
            best = max(loads)
            return
        for load in set(loads):
            i = loads.index(load)
            place(number + 1, (*loads[:i], load + costs[number], *loads[i + 1 :]))

    place(0, (0,) * workers)
    return best


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 4))
def test_no_worker_gets_more_than_a_third_above_the_best(costs: list[int], workers: int) -> None:
    largest = max(sum(costs[i] for i in part) for part in balance(costs, workers))
    assert largest <= (4 / 3 - 1 / (3 * workers)) * _optimum(tuple(costs), workers) + 1e-9


@given(COSTS, WORKERS, st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=200))
def test_whoever_asks_when_every_task_is_taken_once_and_again_only_if_given_back(
    costs: list[int], workers: int, asks: list[tuple[int, bool]]
) -> None:
    work = WorkList(costs, workers)
    taken: list[int] = []
    for asking, fails in asks:
        worker = asking % workers
        task = work.take(worker)
        if task is not None and fails:
            work.give_back(worker, task)
        elif task is not None:
            taken.append(task)
    while (task := work.take(0)) is not None:
        taken.append(task)
    assert sorted(taken) == list(range(len(costs)))
    assert len(work) == 0


def test_a_worker_keeps_to_its_own_in_order_and_then_helps_the_fullest() -> None:
    work = WorkList([5, 5, 5, 1, 1, 1], 2)  # 0, 2 and 1, 3, 4, 5
    own = balance([5, 5, 5, 1, 1, 1], 2)
    assert [work.take(0) for _ in own[0]] == own[0]
    assert work.take(0) == own[1][-1]
    assert work.take(1) == own[1][0]


def test_what_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(InputError, match="at least one worker"):
        balance([1], 0)
    with pytest.raises(InputError, match="at least 0"):
        balance([1, -1], 2)
