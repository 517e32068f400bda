"""The router alone: what requests mean and how busy replicas are decides where they go, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagediff.distributed.affinity import AffinityPolicy, AffinityRouter
from sagediff.errors import InputError

DIMENSIONS = 6


def unit(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


prompts = st.integers(0, 20)
streams = st.lists(prompts, min_size=1, max_size=80)
policies = st.builds(
    AffinityPolicy,
    threshold=st.floats(-1, 1),
    guard=st.integers(0, 6),
    max_centres=st.integers(1, 12),
)
# requests, some of which may not share, and how many are finished at which replica before each
busy_streams = st.lists(
    st.tuples(st.one_of(st.none(), prompts), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=80
)


@settings(deadline=None, max_examples=80)
@given(policies, busy_streams, st.integers(1, 5))
def test_no_replica_gets_a_request_that_is_busier_than_another_by_more_than_the_guard(
    policy: AffinityPolicy, stream: list[tuple[int | None, int, int]], replicas: int
) -> None:
    router, loads = AffinityRouter(policy), dict.fromkeys(range(replicas), 0)
    for prompt, ready, count in stream:
        loads[ready % replicas] = max(0, loads[ready % replicas] - count)
        vector = None if prompt is None else unit(prompt)
        chosen = router.route(vector, loads).replica
        assert loads[chosen] <= min(loads.values()) + policy.guard
        loads[chosen] += 1
        assert len(router) <= policy.max_centres
        assert all(len(set(homes)) == len(homes) <= replicas for homes in router.homes().values())


@settings(deadline=None, max_examples=50)
@given(policies, busy_streams)
def test_the_same_requests_and_loads_give_the_same_choices(
    policy: AffinityPolicy, stream: list[tuple[int | None, int, int]]
) -> None:
    def choices() -> list[tuple[int, str]]:
        router = AffinityRouter(policy)
        return [
            router.route(None if prompt is None else unit(prompt), {0: a, 1: b, 2: 1})
            for prompt, a, b in stream
        ]

    assert choices() == choices()


@settings(deadline=None, max_examples=80)
@given(st.floats(-1, 1), streams)
def test_equal_prompts_have_one_home_while_it_is_not_too_busy(threshold: float, stream: list[int]) -> None:
    router = AffinityRouter(AffinityPolicy(threshold))
    homes: dict[int, int] = {}
    for prompt in stream:
        choice = router.route(unit(prompt), dict.fromkeys(range(4), 0))
        assert homes.setdefault(prompt, choice.replica) == choice.replica
        assert choice.reason in ("home", "founded")


@settings(deadline=None, max_examples=80)
@given(policies, streams, st.integers(0, 3))
def test_a_removed_replicas_homes_move_and_no_others(
    policy: AffinityPolicy, stream: list[int], gone: int
) -> None:
    router, everyone = AffinityRouter(policy), dict.fromkeys(range(4), 0)
    for prompt in stream:
        router.route(unit(prompt), everyone)
    before = router.homes()
    router.remove(gone)
    assert router.homes() == {n: tuple(h for h in homes if h != gone) for n, homes in before.items()}
    left = {number: load for number, load in everyone.items() if number != gone}
    for prompt in stream:
        assert router.route(unit(prompt), left).replica != gone
    after = router.homes()
    assert all(after[n] == homes for n, homes in before.items() if gone not in homes and n in after)
    assert all(gone not in homes for homes in after.values())


def test_alike_prompts_meet_and_unlike_ones_spread_evenly() -> None:
    """Forty meanings, each asked for three times with other words: one home each, ten for each of four replicas."""
    chance = np.random.default_rng(0)
    meanings = np.eye(40, 64)
    router, replicas = AffinityRouter(AffinityPolicy(0.8)), dict.fromkeys(range(4), 0)
    homes: dict[int, set[int]] = {}
    for _ in range(3):
        for number in range(40):
            words = meanings[number] + 0.03 * chance.standard_normal(64)
            choice = router.route(np.asarray(words / np.linalg.norm(words), np.float32), replicas)
            homes.setdefault(number, set()).add(choice.replica)
    assert all(len(found) == 1 for found in homes.values())
    counts = np.bincount([found.pop() for found in homes.values()], minlength=4)
    assert counts.tolist() == [10, 10, 10, 10]


def test_what_is_asked_for_too_much_gets_a_second_home_and_comes_back_to_the_first() -> None:
    router, vector = AffinityRouter(AffinityPolicy(guard=2)), unit(0)
    first = router.route(vector, {0: 0, 1: 0, 2: 0})
    loads = {0: 0, 1: 0, 2: 0} | {first.replica: 3}
    second = router.route(vector, loads)
    assert second.reason == "spilled" and second.replica != first.replica
    assert router.route(vector, loads) == (second.replica, "home")  # and meets those that spilled before
    assert router.route(vector, {0: 0, 1: 0, 2: 0}) == (first.replica, "home")


def test_centres_that_nobody_asks_for_are_forgotten_first() -> None:
    router = AffinityRouter(AffinityPolicy(0.99, max_centres=2))
    replicas = {0: 0, 1: 0}
    axes = np.eye(3, dtype=np.float32)
    for number, reason in (
        (0, "founded"),
        (1, "founded"),
        (0, "home"),
        (2, "founded"),
        (0, "home"),
        (1, "founded"),
    ):
        assert router.route(axes[number], replicas).reason == reason


def test_what_cannot_be_routed_is_refused() -> None:
    router = AffinityRouter()
    with pytest.raises(InputError, match="no replica"):
        router.route(unit(0), {})
    with pytest.raises(InputError, match="unit vector"):
        router.route(2 * unit(0), {0: 0})
    router.route(unit(0), {0: 0})
    with pytest.raises(InputError, match="one encoder"):
        router.route(np.eye(3, dtype=np.float32)[0], {0: 0})


@pytest.mark.parametrize(
    "bad, words",
    [({"threshold": 2.0}, "threshold"), ({"guard": -1}, "guard"), ({"max_centres": 0}, "one centre")],
)
def test_a_policy_that_cannot_work_is_refused(bad: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        AffinityPolicy(**bad)  # type: ignore[arg-type]
