"""The dispatcher alone: a replica's load is what was sent there and has not ended, whatever happens between."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagediff.distributed.affinity import AffinityPolicy, AffinityRouter
from sagediff.distributed.dispatch import Dispatcher, register, registered, unregister

VECTORS = [None, *np.eye(4, dtype=np.float32)]
NAMES = ["a", "b", "c", "d"]

# what happens: a call is announced and sent, one is sent once more, one ends, or replicas come and go
steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 4)),
        st.tuples(st.just("again"), st.integers(0, 30)),
        st.tuples(st.just("end"), st.integers(0, 30)),
        st.tuples(st.just("there"), st.sets(st.sampled_from(NAMES), min_size=1)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=100)
@given(steps)
def test_loads_are_what_was_sent_and_has_not_ended(happened: list[tuple[str, object]]) -> None:
    router, routes = AffinityRouter(AffinityPolicy(0.5, 2)), list[str]()
    dispatcher = Dispatcher(router, routes.append)
    there, held, calls = ["a", "b"], dict[str, int | None](), 0
    dispatcher.set_replicas(there)
    for what, how in happened:
        if what == "call":
            name = f"call {calls}"
            calls += 1
            dispatcher.announce(name, VECTORS[how])  # type: ignore[call-overload]
            held[name] = dispatcher.number(dispatcher.choose(name, there))
        elif what == "again" and held:
            name = sorted(held)[how % len(held)]  # type: ignore[operator]
            held[name] = dispatcher.number(dispatcher.choose(name, there))
        elif what == "end" and held:
            name = sorted(held)[how % len(held)]  # type: ignore[operator]
            dispatcher.end(name)
            dispatcher.end(name)
            del held[name]
        elif what == "there":
            there = sorted(how)  # type: ignore[call-overload]
            dispatcher.set_replicas(there)
        counts = Counter(held.values())
        assert dispatcher.loads() == {number: counts[number] for number in map(dispatcher.number, there)}
        homes = {home for homes in router.homes().values() for home in homes}
        assert homes <= set(dispatcher.loads())  # nobody is at home where nobody is
    assert len(routes) >= calls  # a call whose replica went is told of again
    for name in list(held):
        dispatcher.end(name)
    assert not any(dispatcher.loads().values())


def test_numbers_are_not_used_again_and_changes_are_told() -> None:
    told: list[frozenset[int]] = []
    dispatcher = Dispatcher(AffinityRouter(), on_replicas=told.append)
    dispatcher.set_replicas(["a", "b"])
    dispatcher.set_replicas(["b", "a"])
    dispatcher.set_replicas(["b"])
    dispatcher.set_replicas(["b", "c"])
    assert told == [{0, 1}, {1}, {1, 2}]
    assert dispatcher.number("a") is None and dispatcher.number("c") == 2


def test_a_call_that_has_ended_on_its_way_is_sent_anywhere_and_counted_nowhere() -> None:
    dispatcher = Dispatcher(AffinityRouter())
    dispatcher.set_replicas(["a"])
    dispatcher.announce("call", None)
    dispatcher.end("call")
    assert dispatcher.choose("call", ["a"]) == "a" and dispatcher.loads() == {0: 0}
    assert dispatcher.choose("never announced", ["z"]) == "z"


def test_a_dispatcher_is_found_by_name_until_it_is_unregistered() -> None:
    dispatcher = Dispatcher(AffinityRouter())
    register("name", dispatcher)
    assert registered("name") is dispatcher and unregister("name")
    assert registered("name") is None and not unregister("name")


@pytest.mark.parametrize("prompts", [1, 40])
def test_replicas_share_what_is_asked_for(prompts: int) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((prompts, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    dispatcher = Dispatcher(AffinityRouter(AffinityPolicy(0.5, 4)))
    dispatcher.set_replicas(NAMES)
    for number in range(200):
        dispatcher.announce(str(number), vectors[number % prompts])
        dispatcher.choose(str(number), NAMES)
    loads = dispatcher.loads().values()
    assert max(loads) - min(loads) <= 5  # the guard, and the one that filled it
