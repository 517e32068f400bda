"""The engine on the built-in model: images as if each had been alone, failures of one that cost nobody else."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engines import (
    CAT,
    DOG,
    LION,
    POLICY,
    SETTINGS,
    SHARING,
    STAR,
    STEPS,
    close,
    condition_of,
    faulty,
    results,
    running,
    wanted,
)

from sagediff.plan.sharing import Sharing
from sagediff.prompts.embeddings import embed_prompts
from sagediff.serving.engine.batcher import BatchPolicy
from sagediff.serving.engine.model_thread import Engine
from sagediff.serving.engine.ticket import Preview, Ticket, preview_steps
from sagediff.serving.engine.wave_runner import ModelSettings
from sagediff.serving.failures import Cancelled, DeadlineExpired, ImageFailed, NotReady, OutOfMemory

SHARED = replace(SHARING, repeats="share")
TOGETHER = replace(SETTINGS, sharing=SHARED, guided=SHARED)


def test_seeded_images_are_the_untouched_pipelines_whoever_else_is_in_the_wave(small_demo: Any) -> None:
    prompts = [CAT, DOG, CAT]
    with running(small_demo) as (engine, reports):
        seeded = [wanted(str(i), prompt, seed=i) for i, prompt in enumerate(prompts)]
        images = results(engine.submit([*seeded, wanted("x"), wanted("y", DOG)]))
    for i, prompt in enumerate(prompts):
        alone = small_demo(
            prompt, num_inference_steps=STEPS, guidance_scale=4.0, generator=torch.Generator().manual_seed(i)
        ).images[0]
        assert close(images[i].image, alone)
        assert (images[i].group_size, images[i].shared_steps, images[i].seed) == (1, 0, i)
    assert images[3].group_size == 2 and images[3].shared_steps == 1
    assert len(reports) == 1 and sorted(reports[0].group_sizes) == [1, 1, 1, 2]


def test_copies_of_a_prompt_share_with_others_and_not_with_one_another(small_demo: Any) -> None:
    with running(small_demo) as (engine, _):
        asked = [wanted("a"), wanted("b"), wanted("c", DOG), wanted("d", CAT.upper()), wanted("e", DOG)]
        made = results(engine.submit(asked))
    assert [image.group_size for image in made] == [2, 2, 2, 1, 2]
    assert not any(close(made[i].image, made[k].image) for i, k in ((0, 1), (0, 3), (1, 3), (2, 4)))


def test_sharing_is_counted_and_equal_prompts_come_out_different(small_demo: Any) -> None:
    with running(small_demo, TOGETHER) as (engine, reports):
        images = results(engine.submit([wanted("a"), wanted("b"), wanted("c", DOG)]))
    report = reports[0]
    assert report.evaluations == round(sum(p.evaluations for p in images)) == 1 + 2 * 3
    assert report.evaluations_independent == 12 and report.outcomes == {"image": 3}
    assert not close(images[0].image, images[1].image)


def test_tenants_and_negative_prompts_are_never_in_one_group(small_demo: Any) -> None:
    requests = [
        wanted("a", tenant="one"),
        wanted("b", tenant="two"),
        wanted("c", tenant="one", share=False),
        wanted("d", tenant="one"),
    ]
    with running(small_demo, TOGETHER) as (engine, _):
        first, second, alone, fourth = results(engine.submit(requests))
        negative = results(
            engine.submit([wanted(str(i), negative_prompt=text) for i, text in enumerate(("", "blue", ""))])
        )
    assert [p.group_size for p in (first, second, alone, fourth)] == [2, 1, 1, 2]
    assert [p.group_size for p in negative] == [2, 1, 2]


def test_the_operator_may_open_sharing_across_tenants(small_demo: Any) -> None:
    opened = replace(TOGETHER, across_tenants=True)
    with running(small_demo, opened) as (engine, _):
        images = results(engine.submit([wanted("a", tenant="one"), wanted("b", tenant="two")]))
    assert [p.group_size for p in images] == [2, 2]


@pytest.mark.parametrize("share", [False, None])
def test_only_the_culprit_of_a_failing_wave_gets_the_error(small_demo: Any, share: bool | None) -> None:
    poison = condition_of(small_demo, STAR)

    def fault(rows: torch.Tensor) -> None:
        if any(torch.allclose(row, poison, atol=1e-4) for row in rows):
            raise ValueError("this prompt breaks the denoiser")

    prompts = [CAT, DOG, STAR, LION, CAT]
    with faulty(small_demo, fault), running(small_demo) as (engine, reports):
        found = results(engine.submit([wanted(str(i), p, share=share) for i, p in enumerate(prompts)]))
    assert isinstance(found[2], ImageFailed) and "breaks the denoiser" in str(found[2].__cause__)
    assert all(hasattr(image, "image") for i, image in enumerate(found) if i != 2)
    assert reports[0].outcomes == {"image": 4, "ImageFailed": 1}


def test_out_of_memory_takes_smaller_micro_batches_and_remembers_them(small_demo: Any) -> None:
    calls: list[int] = []

    def fault(rows: torch.Tensor) -> None:
        calls.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with faulty(small_demo, fault), running(small_demo) as (engine, _):
        requests = [wanted(str(i), seed=i) for i in range(4)]
        assert all(hasattr(p, "image") for p in results(engine.submit(requests)))
        calls.clear()
        assert hasattr(results(engine.submit([wanted("x", seed=1), wanted("y", seed=2)]))[0], "image")
    assert max(calls) == 2


def test_out_of_memory_that_smaller_waves_do_not_mend_is_said(small_demo: Any) -> None:
    def fault(rows: torch.Tensor) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes")

    with faulty(small_demo, fault), running(small_demo) as (engine, _):
        found = results(engine.submit([wanted("a", seed=1), wanted("b", seed=2)]))
    assert [type(error) for error in found] == [OutOfMemory, OutOfMemory]
    with running(small_demo) as (engine, _):
        assert hasattr(results(engine.submit([wanted("a")]))[0], "image")


def test_a_wave_stops_at_the_next_step_when_all_its_clients_are_gone(small_demo: Any) -> None:
    reached, go_on = threading.Event(), threading.Event()
    calls: list[int] = []

    def fault(rows: torch.Tensor) -> None:
        calls.append(len(rows))
        reached.set()
        assert go_on.wait(60)

    with faulty(small_demo, fault), running(small_demo) as (engine, _):
        tickets = engine.submit([wanted(str(i), num_inference_steps=20) for i in range(2)])
        assert reached.wait(60)
        engine.cancel(tickets)
        go_on.set()
        assert [type(outcome) for outcome in results(tickets)] == [Cancelled, Cancelled]
    assert len(calls) == 1


def test_who_stays_gets_the_image_though_a_neighbour_left(small_demo: Any) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def fault(rows: torch.Tensor) -> None:
        reached.set()
        assert go_on.wait(60)

    with faulty(small_demo, fault), running(small_demo) as (engine, _):
        tickets = engine.submit([wanted("stays", seed=7), wanted("leaves"), wanted("too", DOG)])
        assert reached.wait(60)
        engine.cancel(tickets[1:2])
        go_on.set()
        found = results(tickets)
    assert hasattr(found[0], "image") and hasattr(found[2], "image")


@pytest.mark.parametrize("share", [False, None])
def test_who_leaves_costs_no_more_and_gets_no_image(small_demo: Any, share: bool | None) -> None:
    calls: list[int] = []
    tickets: list[Ticket] = []

    def fault(rows: torch.Tensor) -> None:
        calls.append(len(rows))
        if len(calls) == 3:
            engine.cancel(tickets[1:2])

    with faulty(small_demo, fault), running(small_demo) as (engine, reports):
        chosen = [
            wanted(str(i), prompt, num_inference_steps=6, share=share) for i, prompt in enumerate((CAT, DOG))
        ]
        tickets += engine.submit(chosen)
        found = results(tickets)
    assert hasattr(found[0], "image") and isinstance(found[1], Cancelled)
    shared = [1, 1, 1] if share is None else [4, 4, 4]  # half the steps, without guidance
    assert calls == [*shared, 2, 2, 2]
    assert reports[0].evaluations == sum(calls)
    assert reports[0].evaluations_independent == 2 * 6 + 2 * 3
    assert reports[0].outcomes == {"image": 1, "Cancelled": 1}


def test_what_waits_can_be_cancelled_and_can_expire(small_demo: Any) -> None:
    patient = BatchPolicy(window=30.0, max_batch=8)
    with running(small_demo, policy=patient) as (engine, _):
        gone = engine.submit([wanted("a")])
        engine.cancel(gone)
        assert isinstance(results(gone)[0], Cancelled) and engine.waiting == 0
        late = engine.submit([wanted("b", deadline=engine.clock() - 1)])
        assert isinstance(results(late)[0], DeadlineExpired)


def test_draining_finishes_what_was_taken_and_takes_no_more(small_demo: Any) -> None:
    patient = BatchPolicy(window=30.0, max_batch=8)
    engine = Engine(lambda: small_demo, SETTINGS, patient)
    with pytest.raises(NotReady, match="loading"):
        engine.submit([wanted("early")])
    engine.start()
    engine.wait_until_loaded(60)
    tickets = engine.submit([wanted("a"), wanted("b", num_inference_steps=3)])
    engine.drain()
    with pytest.raises(NotReady, match="draining"):
        engine.submit([wanted("c")])
    assert all(hasattr(image, "image") for image in results(tickets))
    engine.stop(60)
    assert engine.state == "stopped"


def test_stopping_gives_up_on_what_takes_too_long(small_demo: Any) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def fault(rows: torch.Tensor) -> None:
        reached.set()
        go_on.wait(0.2)

    with faulty(small_demo, fault):
        engine = Engine(lambda: small_demo, SETTINGS, POLICY)
        engine.start()
        engine.wait_until_loaded(60)
        runs = engine.submit([wanted("runs", num_inference_steps=500)])
        assert reached.wait(60)
        waits = engine.submit([wanted("waits", num_inference_steps=3)])
        engine.stop(0.5)
        go_on.set()
        assert [type(outcome) for outcome in results([*runs, *waits])] == [Cancelled, Cancelled]
        assert engine.state == "stopped"


def test_a_model_that_cannot_be_loaded_is_told() -> None:
    seen: list[Exception] = []

    def load() -> Any:
        raise OSError("no such weights")

    engine = Engine(load, SETTINGS, POLICY, on_failed=seen.append)
    engine.start()
    engine.stop(10)
    assert engine.state == "failed" and str(seen[0]) == "no such weights"


def test_previews_come_in_order_and_only_to_who_asked(small_demo: Any) -> None:
    seen: list[tuple[str, Preview]] = []
    with running(small_demo) as (engine, _):
        quiet = engine.submit([wanted("quiet", num_inference_steps=4)])
        asked = engine.submit(
            [wanted("asked", num_inference_steps=4)],
            2,
            lambda ticket, shown: seen.append((ticket.request.id, shown)),
        )
        results([*quiet, *asked])
    assert [(id_, shown.number) for id_, shown in seen] == [("asked", 0), ("asked", 1)]
    assert all(shown.image.size == (64, 64) for _, shown in seen)


@pytest.mark.parametrize("count", range(4))
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 30])
def test_previews_are_spread_over_the_steps(count: int, steps: int) -> None:
    shown = preview_steps(count, steps)
    assert len(shown) <= count and list(shown) == sorted(set(shown)) and all(0 < s < steps for s in shown)
    if steps > 4:
        assert len(shown) == count


def test_many_requests_with_faults_are_each_answered_once_and_rightly(small_demo: Any) -> None:
    """Bad prompts, clients that leave, memory that runs out, several tenants, and a drain in the middle of it."""
    poison = condition_of(small_demo, STAR)

    def fault(rows: torch.Tensor) -> None:
        if len(rows) > 6:
            raise torch.OutOfMemoryError("out of memory")
        if any(torch.allclose(row, poison, atol=1e-4) for row in rows):
            raise ValueError("this prompt breaks the denoiser")

    chance = np.random.default_rng(0)
    prompts = [CAT, DOG, LION, STAR]
    with (
        faulty(small_demo, fault),
        running(small_demo, policy=BatchPolicy(0.01, 8, 256)) as (engine, reports),
    ):
        tickets: list[Ticket] = []
        for i in range(40):
            prompt = prompts[int(chance.integers(4))]
            seed = i if chance.random() < 0.3 else None
            tickets += engine.submit([wanted(str(i), prompt, tenant=str(i % 3), seed=seed)])
        left = [ticket for ticket in tickets if chance.random() < 0.2]
        engine.cancel(left)
        engine.drain()
        found = results(tickets)
    for ticket, outcome in zip(tickets, found, strict=True):
        if ticket.request.prompt == STAR:
            assert isinstance(outcome, ImageFailed | Cancelled)
        elif ticket in left:
            assert isinstance(outcome, Cancelled) or hasattr(outcome, "image")
        else:
            assert outcome.image.size == (64, 64) and outcome.seed == (ticket.request.seed or outcome.seed)
    told = sum(sum(report.outcomes.values()) for report in reports)
    dropped = sum(isinstance(outcome, Cancelled) for outcome in found)
    assert len(tickets) - dropped <= told <= len(tickets)
    assert engine.waiting == 0


def test_a_wave_that_is_tried_again_shows_no_preview_twice(small_demo: Any) -> None:
    seen: list[int] = []
    poison = condition_of(small_demo, STAR)
    calls: list[int] = []

    def fault(rows: torch.Tensor) -> None:
        calls.append(len(rows))
        if len(calls) > 3 and any(torch.allclose(row, poison, atol=1e-4) for row in rows):
            raise ValueError("fails only at its last step")

    with faulty(small_demo, fault), running(small_demo) as (engine, _):
        requests = [wanted(str(i), p, seed=i, num_inference_steps=4) for i, p in enumerate((CAT, STAR))]
        tickets = engine.submit(requests, 2, lambda ticket, shown: seen.append(shown.number))
        found = results(tickets)
    assert hasattr(found[0], "image") and isinstance(found[1], ImageFailed)
    assert sorted(seen) == [0, 0, 1, 1]


@pytest.mark.parametrize("parting", ["tree", "together"])
def test_closer_requests_stay_together_longer_where_the_policy_has_rungs(
    small_demo: Any, parting: Any
) -> None:
    policy = Sharing(0.0, 0.25, rungs=((0.35, 0.5),), parting=parting)
    prompts = [CAT, DOG, LION, "a small rocket at the bottom left on a blue background"]
    expected = policy.plan(embed_prompts(prompts, small_demo, None).vectors, 4)
    assert len(expected.groups[0]) > 2 and any(expected.branch_steps)
    with running(small_demo, ModelSettings(policy, policy, 4.0)) as (engine, reports):
        requests = [wanted(str(i), prompt, num_inference_steps=4) for i, prompt in enumerate(prompts)]
        made = results(engine.submit(requests))
    assert [image.shared_steps for image in made] == expected.branch_steps
    assert sum(report.evaluations for report in reports) == expected.evaluations
