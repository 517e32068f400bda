"""Replicas on a real Ray Serve: what we lean on of it, much of which is alpha. No model here: replicas that count."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from sagediff.distributed.affinity import AffinityPolicy, AffinityRouter
from sagediff.distributed.cluster import PoolOptions
from sagediff.distributed.dispatch import Dispatcher
from sagediff.distributed.ray_replicas import RayReplicas, Scaling, quiet_serve
from sagediff.errors import SagediffError

quiet_serve()  # before Serve is imported, which reads it then
pytest.importorskip("ray.serve")
pytestmark = pytest.mark.xdist_group("ray")  # one Ray at a time

OPTIONS = PoolOptions(2, cpus=0.5)
EAST, NORTH = np.eye(2, dtype=np.float32)


def counter(folder: str) -> Callable[[], Callable[[tuple[int, float]], AsyncIterator[int]]]:
    """Makes a replica that says its process and counts, and writes a line if it is stopped before the end."""

    def make() -> Callable[[tuple[int, float]], AsyncIterator[int]]:
        async def count(message: tuple[int, float]) -> AsyncIterator[int]:
            most, gap = message
            yield os.getpid()
            try:
                for number in range(most):
                    await asyncio.sleep(gap)
                    yield number
            except (asyncio.CancelledError, GeneratorExit):
                with open(os.path.join(folder, "stopped"), "a") as file:
                    file.write(f"{most}\n")
                raise

        return count

    return make


@contextlib.contextmanager
def replicas_of(
    folder: Any, scaling: Scaling, make: Any = None, max_in_flight: int = 64
) -> Iterator[tuple[RayReplicas[Any, Any], list[str]]]:
    routes: list[str] = []
    dispatcher = Dispatcher(AffinityRouter(AffinityPolicy(0.5, 4)), routes.append)
    replicas: RayReplicas[Any, Any] = RayReplicas(
        make or counter(str(folder)), dispatcher, OPTIONS, scaling, max_in_flight=max_in_flight, drain_s=20.0
    )
    try:
        replicas.open()
        yield replicas, routes
        assert not any(replicas.loads().values())
    finally:
        replicas.close()


async def rest_of(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


async def heard(call: Any) -> list[Any]:
    return [event async for _, event in call]


async def until(true: Callable[[], Any], seconds: float = 300.0) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "it did not come to pass"
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def two(ray: Any, tmp_path_factory: Any) -> Iterator[tuple[RayReplicas[Any, Any], list[str], Any]]:
    folder = tmp_path_factory.mktemp("two")
    with replicas_of(folder, Scaling(2, 2)) as (replicas, routes):
        asyncio.run(heard(replicas.call((0, 0.0), None)))  # Serve makes the router at the first call
        yield replicas, routes, folder


def test_calls_go_where_their_meaning_is_at_home_until_it_is_too_busy(two: Any) -> None:
    replicas, routes, _ = two
    routes.clear()

    async def ask() -> list[list[Any]]:
        vectors = [EAST, NORTH] * 4
        return await asyncio.gather(*(heard(replicas.call((3, 0.02), vector)) for vector in vectors))

    said = asyncio.run(ask())
    assert all(events[1:] == [0, 1, 2] for events in said)
    east, north = {events[0] for events in said[::2]}, {events[0] for events in said[1::2]}
    assert len(east) == len(north) == 1 and east != north
    assert sorted(routes) == ["founded"] * 2 + ["home"] * 6

    async def crowd() -> list[list[Any]]:
        return await asyncio.gather(*(heard(replicas.call((10, 0.05), EAST)) for _ in range(7)))

    said = asyncio.run(crowd())
    assert {events[0] for events in said} == east | north and routes.count("spilled") == 1


def test_loads_are_what_is_in_hand(two: Any) -> None:
    replicas, _, _ = two

    async def ask() -> None:
        calls = [asyncio.ensure_future(heard(replicas.call((1000, 0.01), NORTH))) for _ in range(3)]
        await until(lambda: sorted(replicas.loads().values()) == [0, 3])
        for call in calls:
            call.cancel()  # the listener, not the call: what nobody listens to is in nobody's hand
        await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(replicas.loads().values()) == [0, 0]

    asyncio.run(ask())


def test_who_cancels_is_heard_in_the_replica(two: Any) -> None:
    replicas, _, folder = two

    async def ask() -> None:
        call = replicas.call((5000, 0.05), None)
        events = call.__aiter__()
        for _ in range(3):
            await events.__anext__()
        begun = time.monotonic()
        call.cancel()
        with pytest.raises(Exception, match="cancel"):
            await rest_of(events)
        assert time.monotonic() - begun < 60  # all that it counts would take four minutes
        await until(lambda: "5000\n" in (folder / "stopped").read_text())

    asyncio.run(ask())


def test_a_full_replica_lets_calls_wait_and_loses_none(ray: Any, tmp_path: Any) -> None:
    with replicas_of(tmp_path, Scaling(1, 1), max_in_flight=1) as (replicas, _):

        async def ask() -> list[list[Any]]:
            return await asyncio.gather(*(heard(replicas.call((2, 0.05), EAST)) for _ in range(4)))

        assert [events[1:] for events in asyncio.run(ask())] == [[0, 1]] * 4


def test_a_dead_replica_breaks_its_calls_off_loses_its_home_and_is_replaced(ray: Any, tmp_path: Any) -> None:
    with replicas_of(tmp_path, Scaling(2, 2)) as (replicas, _):

        async def ask() -> None:
            one = replicas.call((1000, 0.05), EAST).__aiter__()
            number, victim = await one.__anext__()
            other = asyncio.ensure_future(heard(replicas.call((10, 0.05), NORTH)))
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(Exception, match="died"):
                await rest_of(one)
            await until(
                lambda: number not in replicas.loads()
            )  # Serve's router hears of it from the same call
            assert set(replicas.loads()) >= {0, 1} - {number}
            assert (await heard(replicas.call((1, 0.0), EAST)))[0] != victim  # before Serve knows of it
            assert len(await other) == 11
            await until(lambda: len(replicas.loads()) == 2)
            assert max(replicas.loads()) == 2  # with a number of its own

        asyncio.run(ask())


def test_replicas_come_and_go_with_what_is_asked_for_and_finish_before_they_go(
    ray: Any, tmp_path: Any
) -> None:
    scaling = Scaling(1, 2, target=2, up_s=0.5, down_s=1.0, look_back_s=2.0)
    with replicas_of(tmp_path, scaling) as (replicas, _):

        async def ask() -> None:
            await heard(replicas.call((0, 0.0), None))
            assert len(replicas.loads()) == 1
            crowd = [asyncio.ensure_future(heard(replicas.call((10**6, 0.02), None))) for _ in range(4)]
            await until(lambda: len(replicas.loads()) == 2)
            last = [
                asyncio.ensure_future(heard(replicas.call((300, 0.02), v))) for v in (None, None)
            ]  # one at the new one
            await until(lambda: sum(replicas.loads().values()) == 6)
            for one in crowd:
                one.cancel()  # the listener: the call goes with him
            await asyncio.gather(*crowd, return_exceptions=True)
            await until(lambda: len(replicas.loads()) == 1)
            assert [len(events) for events in await asyncio.gather(*last)] == [301, 301]

        asyncio.run(ask())


def test_replicas_that_cannot_start_say_why(ray: Any, tmp_path: Any) -> None:
    def make() -> Any:
        raise ValueError("no such weights")

    with (
        pytest.raises(SagediffError, match="no such weights"),
        replicas_of(tmp_path, Scaling(1, 1), make),
    ):
        pass
