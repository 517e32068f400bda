"""A fleet is an engine to its clients: images, previews, errors, cancelling, draining; and a replica may die."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engines import CAT, DOG, SETTINGS, SHARING, STAR, close, condition_of, faulty, results, wanted
from fleets import PATIENCE, LocalFleet, fleet_of, until
from tiny.small_demo import with_small_networks

from sagediff.distributed.affinity import AffinityPolicy
from sagediff.errors import InputError, PlanError
from sagediff.pipelines.run_settings import ModelOptions, resolve
from sagediff.serving.engine.batcher import BatchPolicy
from sagediff.serving.engine.ticket import Preview, Ticket
from sagediff.serving.failures import (
    Cancelled,
    DeadlineExpired,
    ImageFailed,
    NotReady,
    OutOfMemory,
    QueueFull,
    ReplicaLost,
)
from sagediff.serving.fleet import ray_fleet
from sagediff.serving.fleet.messages import Finished, cause_of, portable
from sagediff.serving.local_engine import ServeRequest


@pytest.fixture(scope="module")
def pipes(demo: Any) -> list[Any]:
    """Two pipelines, as two engines must not touch one."""
    return [with_small_networks(demo), with_small_networks(demo)]


@pytest.fixture
def local(pipes: list[Any]) -> Iterator[LocalFleet]:
    with fleet_of(pipes) as running:
        yield running


class Held:
    """Denoisers that wait at every call until they are released: a wave has begun and does not end meanwhile."""

    def __init__(self) -> None:
        self.waiting = 0
        self._lock, self._released = threading.Lock(), threading.Event()

    def __call__(self, rows: torch.Tensor) -> None:
        with self._lock:
            self.waiting += 1
        assert self._released.wait(PATIENCE)
        with self._lock:
            self.waiting -= 1

    def release(self) -> None:
        self._released.set()


@pytest.fixture
def held(pipes: list[Any]) -> Iterator[Held]:
    """Of both pipelines; asked for before the fleet, so that the fleet ends first."""
    both = Held()
    with faulty(pipes[0], both), faulty(pipes[1], both):
        yield both
        both.release()


def home_of(local: LocalFleet) -> int:
    """The replica that has requests in hand."""
    until(lambda: any(local.dispatcher.loads().values()))
    return next(number for number, load in local.dispatcher.loads().items() if load)


def test_seeds_give_the_images_of_the_pipeline_whatever_the_replica(
    local: LocalFleet, pipes: list[Any]
) -> None:
    made = results(local.fleet.submit([wanted(str(i), seed=7) for i in range(4)]))
    assert local.watch.routes == ["anywhere"] * 4
    alone = pipes[0](
        CAT, num_inference_steps=2, guidance_scale=4.0, generator=torch.Generator().manual_seed(7)
    )
    assert all(close(image.image, alone.images[0]) for image in made)


def test_what_means_the_same_meets_and_shares(pipes: list[Any]) -> None:
    shared = replace(SHARING, repeats="share")
    with fleet_of(pipes, settings=replace(SETTINGS, sharing=shared, guided=shared)) as local:
        asked = [wanted(f"{i} {p}", p) for p in (CAT, STAR) for i in range(3)]
        made = results(local.fleet.submit(asked))
        assert [p.group_size for p in made] == [3] * 6 or max(p.group_size for p in made) > 3
        again = results(local.fleet.submit([wanted("later")]))
        assert again[0].evaluations > 0
        assert set(local.watch.routes) <= {"home", "founded"}


def test_previews_come_through_and_none_twice(local: LocalFleet) -> None:
    seen: list[int] = []

    def show(ticket: Ticket, shown: Preview) -> None:
        assert np.asarray(shown.image).shape[-1] == 3
        seen.append(shown.number)

    results(local.fleet.submit([wanted("a", num_inference_steps=8)], 3, show))
    assert seen == [0, 1, 2]


def test_who_leaves_is_forgotten_and_others_stay(held: Held, local: LocalFleet) -> None:
    leaves, stays = local.fleet.submit([wanted("leaves"), wanted("stays")])
    until(lambda: sum(local.dispatcher.loads().values()) == 2 and held.waiting)
    local.fleet.cancel([leaves])
    held.release()
    gone, made = results([leaves, stays])
    assert isinstance(gone, Cancelled) and hasattr(made, "image")


def test_the_error_of_one_request_is_its_own_with_its_cause(local: LocalFleet, pipes: list[Any]) -> None:
    bad = condition_of(pipes[0], STAR)

    def fault(rows: torch.Tensor) -> None:
        if any(torch.allclose(row, bad, atol=1e-4) for row in rows):
            raise ZeroDivisionError("stars are not for us")

    with faulty(pipes[0], fault), faulty(pipes[1], fault):
        failed, made = results(local.fleet.submit([wanted("a", STAR, seed=1), wanted("b", DOG, seed=2)]))
    assert isinstance(failed, ImageFailed) and "stars are not for us" in str(failed.__cause__)
    assert hasattr(made, "image")


def test_deadlines_hold_in_replicas_too(held: Held, local: LocalFleet) -> None:
    (late,) = results(local.fleet.submit([wanted("a", deadline=local.fleet.clock() - 1)]))
    assert isinstance(late, DeadlineExpired)
    running = local.fleet.submit([wanted(f"runs {i}", seed=i) for i in range(2)])
    until(lambda: held.waiting == 2)  # both have begun
    (waits,) = local.fleet.submit([wanted("waits", deadline=local.fleet.clock() + 0.05)])
    time.sleep(0.1)  # past it
    held.release()
    assert isinstance(results([waits])[0], DeadlineExpired)
    assert all(hasattr(made, "image") for made in results(running))


def test_a_full_fleet_refuses_all_of_a_submission(pipes: list[Any]) -> None:
    with fleet_of(pipes, policy=BatchPolicy(5.0, 4, 4)) as local:
        held = local.fleet.submit([wanted(str(i)) for i in range(6)])
        with pytest.raises(QueueFull, match="6 images are waiting and the queue holds 8") as refused:
            local.fleet.submit([wanted(f"more {i}") for i in range(3)])
        assert refused.value.retry_after >= 1
        local.fleet.cancel(held)
        results(held)
        until(lambda: local.fleet.waiting == 0)


def test_the_load_guard_sends_what_is_asked_for_too_much_elsewhere(pipes: list[Any]) -> None:
    with fleet_of(pipes, affinity=AffinityPolicy(0.35, 3)) as local:
        results(local.fleet.submit([wanted(str(i)) for i in range(12)]))
        assert local.watch.routes.count("spilled") == 1 and set(local.watch.routes) == {
            "founded",
            "home",
            "spilled",
        }
        until(lambda: {number for number, _ in local.watch.reports} == {0, 1})


def test_draining_finishes_what_was_taken_and_refuses_more(pipes: list[Any]) -> None:
    with fleet_of(pipes, policy=BatchPolicy(0.5, 8, 64)) as local:
        tickets = local.fleet.submit([wanted("a"), wanted("b", STAR)])
        local.fleet.drain()
        with pytest.raises(NotReady, match="draining"):
            local.fleet.submit([wanted("c")])
        assert all(hasattr(made, "image") for made in results(tickets))


def test_stopping_gives_up_on_what_takes_too_long(pipes: list[Any]) -> None:
    with fleet_of(pipes) as local:
        tickets = local.fleet.submit([wanted("a", num_inference_steps=2000)])
        until(lambda: any(local.dispatcher.loads().values()))
        local.fleet.stop(0.2)
        assert isinstance(results(tickets)[0], Cancelled)


# -- death


def test_what_a_dead_replica_had_in_hand_is_made_elsewhere_from_the_same_seeds(
    held: Held, local: LocalFleet
) -> None:
    tickets = local.fleet.submit([wanted("a"), wanted("b", STAR, seed=5, share=True)])
    until(lambda: sum(local.dispatcher.loads().values()) == 2 and local.replicas.all_heard() and held.waiting)
    seeds = [ticket.seed for ticket in tickets]
    victim = home_of(local)
    local.replicas.kill(victim)
    held.release()
    assert [image.seed for image in results(tickets)] == seeds
    assert set(local.watch.broken) == {victim}
    assert hasattr(results(local.fleet.submit([wanted("after")]))[0], "image")


def test_others_do_not_notice_a_death(held: Held, local: LocalFleet) -> None:
    tickets = local.fleet.submit([wanted(str(i), seed=i) for i in range(2)])  # one at each
    until(lambda: held.waiting == 2 and local.replicas.all_heard())
    local.replicas.kill(0)
    held.release()
    assert all(hasattr(made, "image") for made in results(tickets))
    assert local.watch.broken == [0]


def test_who_dies_twice_with_a_request_gives_it_up(local: LocalFleet) -> None:
    (ticket,) = local.fleet.submit([wanted("a", num_inference_steps=2000)])
    until(lambda: any(local.dispatcher.loads().values()))
    local.replicas.kill(home_of(local))
    until(lambda: any(local.dispatcher.loads().values()))
    local.replicas.kill(home_of(local))
    assert isinstance(results([ticket])[0], ReplicaLost)


def test_without_replicas_what_comes_is_refused_and_what_was_taken_waits_for_the_next_one(
    held: Held, pipes: list[Any]
) -> None:
    with fleet_of(pipes[:1]) as local:
        waits, late = local.fleet.submit(
            [wanted("a", seed=1), wanted("b", seed=2, deadline=local.fleet.clock() + 3)]
        )
        until(lambda: sum(local.dispatcher.loads().values()) == 2 and held.waiting)
        local.replicas.kill(0)
        held.release()
        assert local.fleet.state == "loading"
        with pytest.raises(NotReady, match="loading"):
            local.fleet.submit([wanted("c")])
        assert isinstance(results([late])[0], DeadlineExpired)
        local.replicas.begin(0)
        assert hasattr(results([waits])[0], "image") and local.fleet.state == "ready"


def test_a_new_replica_takes_its_part(pipes: list[Any]) -> None:
    with fleet_of(pipes) as local:
        local.replicas.kill(0)
        local.replicas.begin(0)
        results(local.fleet.submit([wanted(str(i), seed=i) for i in range(2)]))
        until(lambda: {number for number, _ in local.watch.reports} == {1, 2})  # numbers are not used again


def test_a_fleet_that_cannot_load_fails_with_the_reason(pipes: list[Any]) -> None:
    def load(number: int) -> Any:
        raise InputError("no such weights")

    local = LocalFleet(pipes, load=load)
    local.fleet.start()
    until(lambda: local.failures)
    assert local.fleet.state == "failed" and str(local.failures[0]) == "no such weights"
    with pytest.raises(NotReady, match="failed"):
        local.fleet.submit([wanted("a")])
    local.fleet.stop(PATIENCE)


def test_every_wave_is_reported_once(local: LocalFleet) -> None:
    made = results(local.fleet.submit([wanted(f"{i} {p}", p) for p in (CAT, STAR) for i in range(3)]))
    until(lambda: sum(sum(r.outcomes.values()) for _, r in local.watch.reports) == 6)
    assert sum(r.evaluations for _, r in local.watch.reports) == round(sum(p.evaluations for p in made))


# -- messages


@pytest.mark.parametrize(
    "error",
    [
        QueueFull(3, 4, 5), NotReady("draining"), DeadlineExpired("late"), Cancelled("gone"), OutOfMemory("too large"),
        ImageFailed("failed"), ReplicaLost("died"), InputError("bad"), PlanError("worse"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_error_survives_a_journey(error: Exception) -> None:
    came = pickle.loads(pickle.dumps(portable(error)))
    assert type(came) is type(error) and str(came) == str(error) and vars(came) == vars(error)


def test_an_error_that_cannot_travel_still_says_its_words() -> None:
    class Local(Exception):
        pass

    assert str(portable(Local("here only"))) == "Local: here only"


def test_causes_travel_as_text() -> None:
    error = ImageFailed("failed")
    try:
        raise ValueError("the reason")
    except ValueError as cause:
        error.__cause__ = cause
    event = pickle.loads(pickle.dumps(Finished(portable(error), cause=cause_of(error))))
    assert "ValueError: the reason" in str(event.with_cause().__cause__)


def test_the_router_reads_prompts_without_what_only_replicas_can_do(
    monkeypatch: pytest.MonkeyPatch, pipes: list[Any]
) -> None:
    """It runs no denoiser: neither a compiler nor an accelerator is needed where it is."""
    opened: list[ModelOptions] = []
    monkeypatch.setattr(ray_fleet, "open_pipeline", lambda model: opened.append(model) or pipes[0])
    model = ModelOptions("demo", offload="sequential", cache="first-block", device="cuda")
    settings = resolve(model)
    embed = ray_fleet.load_embed(ServeRequest(settings, settings.sharing, None, {}))
    assert embed(["a cat"]).shape[0] == 1
    assert opened == [replace(settings.model, offload=None, cache=None, device="cpu", dtype="float32")]
