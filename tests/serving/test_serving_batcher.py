"""The queue: no request lost, none twice, bounded, oldest first, and nobody waits for nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sagediff.errors import InputError
from sagediff.plan.compatibility import run_key
from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.engine.batcher import Batcher, BatchPolicy
from sagediff.serving.failures import NotReady, QueueFull

POLICY = BatchPolicy(window=1.0, max_batch=4, max_queue=9)


class Clock:
    """Goes on when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def wanted(id_: str, **changes: Any) -> QueuedRequest:
    return QueuedRequest(**{"id": id_, "prompt": f"an image {id_}", "num_inference_steps": 4} | changes)


def ids(wave: Any) -> list[str]:
    return [waiting.request.id for waiting in wave]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def batcher(clock: Clock) -> Batcher:
    return Batcher(POLICY, clock)


def test_a_window_opens_with_the_first_request_and_closes_on_time(batcher: Batcher, clock: Clock) -> None:
    batcher.submit([wanted("a")])
    clock.now += 0.9
    batcher.submit([wanted("b")])
    assert batcher.next_wave() == [] and batcher.wake_at() == pytest.approx(101.0)
    clock.now = 101.0
    wave = batcher.next_wave()
    assert ids(wave) == ["a", "b"] and [w.arrived for w in wave] == [100.0, pytest.approx(100.9)]
    assert len(batcher) == 0 and batcher.wake_at() is None


def test_a_window_closes_on_size_and_leaves_the_younger(batcher: Batcher) -> None:
    batcher.submit([wanted(str(i)) for i in range(5)])
    assert ids(batcher.next_wave()) == ["0", "1", "2", "3"]
    assert batcher.next_wave() == []


@pytest.mark.parametrize("changes", [{"share": False}, {"seed": 3}])
def test_nobody_waits_where_nothing_can_come_of_it(
    batcher: Batcher, clock: Clock, changes: dict[str, Any]
) -> None:
    batcher.submit([wanted("a", **changes)])
    assert ids(batcher.next_wave()) == ["a"]
    unshared = Batcher(BatchPolicy(window=1.0, sharing=False), clock)
    unshared.submit([wanted("b")])
    assert ids(unshared.next_wave()) == ["b"]


def test_who_would_expire_inside_the_window_is_not_kept_waiting(batcher: Batcher, clock: Clock) -> None:
    batcher.submit([wanted("a"), wanted("b", deadline=clock.now + 0.5)])
    assert ids(batcher.next_wave()) == ["a", "b"]


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 32, "height": 64},
        {"num_inference_steps": 5},
        {"guidance_scale": 2.0},
        {"negative_prompt": ""},
    ],
)
def test_only_compatible_requests_run_together(
    batcher: Batcher, clock: Clock, changes: dict[str, Any]
) -> None:
    batcher.submit([wanted("a"), wanted("b", **changes), wanted("c")])
    clock.now += 1
    assert ids(batcher.next_wave()) == ["a", "c"]
    assert ids(batcher.next_wave()) == ["b"]


def test_requests_past_their_deadline_are_handed_back(batcher: Batcher, clock: Clock) -> None:
    batcher.submit([wanted("a", deadline=105.0), wanted("b")])
    clock.now = 104.9
    assert batcher.expire() == []
    clock.now = 105.0
    assert [request.id for request in batcher.expire()] == ["a"]
    assert ids(batcher.next_wave()) == ["b"]


def test_a_full_queue_refuses_all_of_a_submission_and_says_when_to_return(batcher: Batcher) -> None:
    batcher.submit([wanted(str(i), num_inference_steps=i + 1) for i in range(8)])
    for _ in range(30):
        batcher.wave_took(4.0)
    with pytest.raises(QueueFull, match="the queue holds 9") as refused:
        batcher.submit([wanted("x"), wanted("y")])
    assert len(batcher) == 8 and refused.value.retry_after == 8  # two waves of four seconds
    batcher.submit([wanted("x")])


def test_draining_refuses_new_requests_and_waits_for_nobody(batcher: Batcher) -> None:
    batcher.submit([wanted("a")])
    batcher.drain()
    with pytest.raises(NotReady, match="draining"):
        batcher.submit([wanted("b")])
    assert ids(batcher.next_wave()) == ["a"]


def facing(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def test_a_deep_queue_fills_waves_by_meaning_with_the_oldest_in_each(batcher: Batcher, clock: Clock) -> None:
    batcher.submit([wanted(str(i)) for i in range(8)])
    assert [request.id for request in batcher.unplaced()] == [str(i) for i in range(8)]
    batcher.place({str(i): facing(i % 2) for i in range(8)} | {"gone": facing(0)})
    assert batcher.unplaced() == []
    clock.now += 1
    assert ids(batcher.next_wave()) == ["0", "2", "4", "6"]
    assert ids(batcher.next_wave()) == ["1", "3", "5", "7"]


def test_only_who_could_share_is_near(batcher: Batcher) -> None:
    batcher.submit([wanted("a"), wanted("b", tenant="two"), wanted("c", share=False)])
    batcher.submit([wanted(str(i)) for i in range(5)])
    batcher.place(dict.fromkeys(["a", "b", "0", "1", "2", "3", "4"], facing(0)))
    assert ids(batcher.next_wave()) == ["a", "0", "1", "2"]


@settings(max_examples=50, deadline=None)
@given(angles=st.lists(st.floats(0, 6), min_size=20, max_size=60))
def test_nobody_starves_for_those_who_mean_the_same(angles: list[float]) -> None:
    batcher = Batcher(BatchPolicy(window=0.0, max_batch=4, max_queue=9), Clock())
    coming, waves = [wanted(str(i)) for i in range(len(angles))], 0
    passed: dict[str, int] = {}
    while coming or len(batcher):
        while coming and len(batcher) < 9:
            batcher.submit([coming.pop(0)])
        batcher.place({request.id: facing(angles[int(request.id)]) for request in batcher.unplaced()})
        waiting = list(batcher._waiting)
        taken = ids(batcher.next_wave())
        waves += 1
        assert taken[0] == waiting[0] and len(taken) == min(4, len(waiting))
        for id_ in waiting[: waiting.index(taken[-1])]:
            passed[id_] = passed.get(id_, 0) + (id_ not in taken)
    assert waves == -(-len(angles) // 4)
    assert max(passed.values(), default=0) <= 5  # three times, and while others before it were overdue too


def test_an_id_cannot_wait_twice(batcher: Batcher) -> None:
    batcher.submit([wanted("a")])
    with pytest.raises(InputError, match="unique"):
        batcher.submit([wanted("a")])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"prompt": "  "}, "prompt"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"width": 64}, "together"),
        ({"width": 0, "height": 64}, "at least 1"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_request_that_cannot_work_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        wanted("a", **changes)


@pytest.mark.parametrize(
    "share, seed, may", [(None, None, True), (None, 1, False), (True, 1, True), (False, None, False)]
)
def test_a_seed_of_its_own_shares_only_if_told_to(share: bool | None, seed: int | None, may: bool) -> None:
    assert wanted("a", share=share, seed=seed).may_share is may


@pytest.mark.parametrize("bad", [{"window": -1.0}, {"max_batch": 0}, {"max_queue": 0}])
def test_a_policy_that_cannot_work_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least"):
        BatchPolicy(**bad)


class Queue(RuleBasedStateMachine):
    """Against a plain list of what should be waiting, in order of arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.batcher = Batcher(POLICY, self.clock)
        self.model: list[tuple[QueuedRequest, float]] = []
        self.count = 0
        self.draining = False

    @rule(
        steps=st.lists(st.integers(1, 2), min_size=1, max_size=5),
        share=st.sampled_from([None, False]),
        patience=st.sampled_from([None, 0.5, 3.0]),
    )
    def submit(self, steps: list[int], share: bool | None, patience: float | None) -> None:
        now = self.clock.now
        deadline = None if patience is None else now + patience
        new = [
            wanted(str(self.count + i), num_inference_steps=s, share=share, deadline=deadline)
            for i, s in enumerate(steps)
        ]
        self.count += len(new)
        if self.draining:
            with pytest.raises(NotReady):
                self.batcher.submit(new)
        elif len(self.model) + len(new) > POLICY.max_queue:
            with pytest.raises(QueueFull) as full:
                self.batcher.submit(new)
            assert full.value.retry_after >= 1
        else:
            self.batcher.submit(new)
            self.model += [(request, now) for request in new]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request, arrived = data.draw(st.sampled_from(self.model))
        assert self.batcher.take_out(request.id) and not self.batcher.take_out(request.id)
        self.model.remove((request, arrived))

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def expire(self) -> None:
        late = {request.id for request in self.batcher.expire()}
        due = {r.id for r, _ in self.model if r.deadline is not None and r.deadline <= self.clock.now}
        assert late == due
        self.model = [(r, arrived) for r, arrived in self.model if r.id not in late]

    @rule()
    def drain(self) -> None:
        self.batcher.drain()
        self.draining = True

    @rule()
    def take(self) -> None:
        wave = self.batcher.next_wave()
        taken = [(w.request, w.arrived) for w in wave]
        if not taken:
            oldest = min((arrived for _, arrived in self.model), default=None)
            assert oldest is None or (self.clock.now < oldest + POLICY.window and not self.draining)
            return
        assert len({run_key(request) for request, _ in taken}) == 1
        assert len(taken) <= POLICY.max_batch
        same = [entry for entry in self.model if run_key(entry[0]) == run_key(taken[0][0])]
        assert taken == same[: len(taken)]  # the oldest, each once, in order
        assert len(taken) == min(len(same), POLICY.max_batch)  # nobody left behind who fits
        if self.draining:
            assert taken[0] == self.model[0]
        self.model = [entry for entry in self.model if entry not in taken]

    @invariant()
    def nothing_is_lost_and_the_queue_is_bounded(self) -> None:
        assert len(self.batcher) == len(self.model) <= POLICY.max_queue
        assert (self.batcher.wake_at() is None) == (not self.model)

    def teardown(self) -> None:
        self.batcher.drain()
        while wave := self.batcher.next_wave():
            assert all(any(w.request is request for request, _ in self.model) for w in wave)
            self.model = [entry for entry in self.model if entry[0].id not in ids(wave)]
        assert not self.model


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
