"""Replays between waves: the image that a member of the recorded group gets, and nothing across keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from engines import CAT, DOG, SETTINGS, SHARING, STAR, close, condition_of, faulty, results, running, wanted
from tiny.small_demo import with_small_networks

from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.prompts.requests import QueuedRequest
from sagediff.sampling.context import shared_sampling
from sagediff.serving.engine.reuse import CacheUse
from sagediff.serving.engine.trajectory_cache import TrajectoryCache
from sagediff.serving.engine.wave_runner import ModelSettings
from sagediff.serving.failures import ImageFailed

STEPS = 4  # half of them shared
PLAIN = Sharing(threshold=0.35, share_ratio=0.5, unguided=1.0)
RENEWED = replace(PLAIN, handover_noise=1.0)


def caching(
    cache: TrajectoryCache, recipe: Sharing = SHARING, model: str = "demo", **changes: Any
) -> ModelSettings:
    use = CacheUse(cache, 0.5, lambda pipe: model)
    return ModelSettings(recipe, recipe, 4.0, micro_batch_size=1, reuse=use, **changes)


@pytest.fixture
def cache() -> TrajectoryCache:
    return TrajectoryCache(1 << 20)


def ask(id_: str, prompt: str = CAT, **changes: Any) -> QueuedRequest:
    return wanted(id_, prompt, **{"num_inference_steps": STEPS} | changes)


@pytest.mark.parametrize("recipe", [PLAIN, RENEWED, SHARING], ids=["plain", "renewed", "guided"])
def test_a_replay_is_the_image_of_a_member(small_demo: Any, cache: TrajectoryCache, recipe: Sharing) -> None:
    with running(small_demo, caching(cache, recipe)) as (engine, reports):
        seeds = {"first": (CAT, 5), "second": (DOG, 6), "later": (DOG, 7)}
        made = {name: ask(name, prompt, seed=seed, share=True) for name, (prompt, seed) in seeds.items()}
        results(engine.submit([made["first"], made["second"]]))
        later = results(engine.submit([made["later"]]))[0]
    assert (later.shared_steps, later.replayed_steps, later.group_size) == (2, 2, 1)
    assert [report.cache_hits for report in reports] == [0, 1]
    # as a member whose prompt came before, with equal noise: the seed of the first by text
    plan = SharePlan.from_groups([[0, 1]], STEPS, 0.5, 1.0, round(recipe.unguided * STEPS))
    noise = {
        "fresh_noise": 0.0 if recipe.handover_noise else recipe.fresh_noise,
        "fresh_noise_rows": [False, True],
    }
    with shared_sampling(
        small_demo,
        plan,
        micro_batch_size=1,
        member_noise=[5, 7],
        handover_noise=recipe.handover_noise,
        **noise,
    ):
        member = small_demo(
            [CAT, DOG], num_inference_steps=STEPS, guidance_scale=4.0,
            generator=[torch.Generator().manual_seed(5) for _ in range(2)],
        ).images[1]  # fmt: skip
    assert close(later.image, member)


def test_what_is_saved_is_counted(small_demo: Any, cache: TrajectoryCache) -> None:
    rows: list[int] = []
    watched = faulty(small_demo, lambda conditions: rows.append(len(conditions)))
    with watched, running(small_demo, caching(cache)) as (engine, reports):
        results(engine.submit([ask("a"), ask("b", DOG)]))
        results(engine.submit([ask("c"), ask("d", share=False)]))
    first, second = reports
    assert first.evaluations + second.evaluations == sum(rows)
    assert (first.cache_hits, first.cache_misses, first.evaluations_replayed) == (0, 2, 0)
    assert (second.cache_hits, second.cache_misses, second.evaluations_replayed) == (1, 0, 2 * 2)
    assert second.evaluations == second.evaluations_independent - second.evaluations_replayed == 2 * 8 - 4
    assert len(cache) == 1


def test_one_who_was_alone_is_replayed_too(small_demo: Any, cache: TrajectoryCache) -> None:
    with running(small_demo, caching(cache, RENEWED)) as (engine, _):
        first = results(engine.submit([ask("a")]))[0]
        second = results(engine.submit([ask("b")]))[0]
    assert (first.replayed_steps, second.replayed_steps) == (0, 2)
    assert not close(first.image, second.image)


@pytest.mark.parametrize("recipe", [PLAIN, RENEWED])
def test_people_with_one_prompt_do_not_get_one_image(
    small_demo: Any, cache: TrajectoryCache, recipe: Sharing
) -> None:
    with running(small_demo, caching(cache, recipe)) as (engine, _):
        made = [results(engine.submit([ask(str(i))]))[0] for i in range(3)]
    assert [image.replayed_steps for image in made] == [0, 2, 2]
    assert not any(close(made[i].image, made[j].image) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "two"},
        {"num_inference_steps": 6},
        {"guidance_scale": 3.0},
        {"negative_prompt": "blue"},
        {"width": 32, "height": 32},
        {"seed": 3},
        {"share": False},
        {"prompt": "a small green triangle at the left on a white background"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_numbers_or_owner_finds_nothing(
    small_demo: Any, cache: TrajectoryCache, changes: dict[str, Any]
) -> None:
    with running(small_demo, caching(cache)) as (engine, reports):
        results(engine.submit([ask("a", tenant="one")]))
        results(engine.submit([ask("b", **{"tenant": "one"} | changes)]))
    assert reports[1].cache_hits == 0 and reports[1].evaluations == reports[1].evaluations_independent


@pytest.fixture(scope="module")
def other_solver(demo: Any) -> Any:
    pipe = with_small_networks(demo)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    return pipe


@pytest.mark.parametrize("change", ["scheduler", "weights", "recipe", "nothing"])
def test_what_the_operator_changes_finds_nothing(
    small_demo: Any, other_solver: Any, cache: TrajectoryCache, change: str
) -> None:
    with running(small_demo, caching(cache)) as (engine, _):
        results(engine.submit([ask("a")]))
    pipe = other_solver if change == "scheduler" else small_demo
    recipe = replace(SHARING, handover_noise=0.5) if change == "recipe" else SHARING
    settings = caching(cache, recipe, model="other" if change == "weights" else "demo")
    with running(pipe, settings) as (engine, reports):
        results(engine.submit([ask("b")]))
    assert reports[0].cache_hits == (change == "nothing")


def test_two_tenants_cost_the_same_whoever_came_first(small_demo: Any, cache: TrajectoryCache) -> None:
    """Nothing of one reaches the other: not a step, not a hit, and so not a moment."""
    with running(small_demo, caching(cache)) as (engine, reports):
        for tenant in ("one", "two"):
            for prompt in (CAT, CAT, DOG):
                results(engine.submit([ask(f"{tenant} {len(reports)}", prompt, tenant=tenant)]))
        together = [ask(tenant, "a small star at the left", tenant=tenant) for tenant in ("one", "two")]
        images = results(engine.submit(together))
    one, two = (
        [(r.evaluations, r.cache_hits, r.cache_misses) for r in half] for half in (reports[:3], reports[3:6])
    )
    assert one == two and one[0][1] == 0 and one[1][1] == 1
    assert [(p.group_size, p.replayed_steps) for p in images] == [(1, 0), (1, 0)]


def test_the_operator_may_open_the_cache_across_tenants(small_demo: Any, cache: TrajectoryCache) -> None:
    with running(small_demo, caching(cache, across_tenants=True)) as (engine, reports):
        for tenant in ("one", "two"):
            results(engine.submit([ask(tenant, tenant=tenant)]))
    assert [report.cache_hits for report in reports] == [0, 1]


def test_a_wave_that_fails_leaves_nothing(small_demo: Any, cache: TrajectoryCache) -> None:
    poison, calls = condition_of(small_demo, STAR), []

    def fault(rows: torch.Tensor) -> None:
        if any(torch.allclose(row, poison, atol=1e-4) for row in rows):
            calls.append(1)
            if len(calls) == STEPS:
                raise ValueError("breaks at its last step")

    with faulty(small_demo, fault), running(small_demo, caching(cache)) as (engine, _):
        assert isinstance(results(engine.submit([ask("a", STAR)]))[0], ImageFailed)
        assert len(cache) == 0


@pytest.fixture
def spoiled(cache: TrajectoryCache) -> TrajectoryCache:
    """A cache whose entries began with other noise than they say."""
    put = cache.put

    def wrong(key: Any, centroid: Any, seed: int, trajectory: Any, value: float) -> Any:
        return put(key, centroid, seed + 1, trajectory, value)

    cache.put = wrong  # type: ignore[method-assign]
    return cache


def test_what_cannot_be_replayed_costs_nobody_a_image(small_demo: Any, spoiled: TrajectoryCache) -> None:
    with running(small_demo, caching(spoiled)) as (engine, reports):
        results(engine.submit([ask("a")]))
        (broken,) = spoiled._entries[next(iter(spoiled._entries))]
        made = results(engine.submit([ask("b"), ask("c", DOG), ask("d", seed=1)]))
    assert all(hasattr(image, "image") for image in made)
    assert reports[1].outcomes == {"image": 3}
    assert broken not in {name for of_key in spoiled._entries.values() for name in of_key}


def test_it_outlives_the_process(small_demo: Any, tmp_path: Path) -> None:
    for hits in (0, 1):
        kept = TrajectoryCache(1 << 20, tmp_path)
        with running(small_demo, caching(kept)) as (engine, reports):
            results(engine.submit([ask("a")]))
        assert [report.cache_hits for report in reports] == [hits]


def test_without_steps_to_share_there_is_nothing_to_keep(small_demo: Any, cache: TrajectoryCache) -> None:
    for ratio in (0.0, 1.0):
        recipe = Sharing(threshold=0.35, share_ratio=ratio)
        with running(small_demo, caching(cache, recipe)) as (engine, reports):
            results(engine.submit([ask("a")]))
        assert reports[0].cache_misses == 0 and len(cache) == 0


def test_the_cache_changes_no_other_image(small_demo: Any, cache: TrajectoryCache) -> None:
    """Of a wave in which one replays, the others are as in a wave of their own."""
    with running(small_demo, caching(cache)) as (engine, _):
        results(engine.submit([ask("a")]))
        mixed = results(engine.submit([ask("b"), ask("c", STAR, seed=9)]))
    with running(small_demo, replace(SETTINGS, micro_batch_size=1)) as (engine, _):
        alone = results(engine.submit([ask("c", STAR, seed=9)]))[0]
    assert np.array_equal(np.asarray(mixed[1].image), np.asarray(alone.image)) or close(
        mixed[1].image, alone.image
    )
