"""The measured micro-batch: it ends, it is the fastest that fits, and it changes images by rounding only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny

from sagediff.denoiser.micro_batch import FixedSize, MeasuredSize, micro_batches
from sagediff.errors import InputError
from sagediff.plan.share_plan import SharePlan
from sagediff.sampling.context import shared_sampling


def search(rows: int, seconds: dict[int, float], room: int, calls: int = 60) -> MeasuredSize:
    """Calls of so many rows on a machine that holds `room` of them, at so many seconds per row."""
    micro = MeasuredSize()
    for _ in range(calls):
        size = micro.size(rows)
        assert 1 <= size <= rows
        if size > room:
            assert micro.did_not_fit(size) or size == 1
        else:
            micro.measured(rows, size, rows * seconds.get(size, 1.0))
    return micro


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 300))
def test_it_settles_on_a_size_that_fits(rows: int, room: int) -> None:
    micro = search(rows, {}, room)
    assert micro.is_known and micro.size(rows) == micro.settled and micro.settled is not None
    assert micro.settled <= max(room, 1)
    if room >= rows:
        assert micro.settled == rows  # no size is faster: the fewest calls
    assert micro.size(1) == 1


@pytest.mark.parametrize("best", [64, 32, 16, 8])
def test_it_finds_the_fastest(best: int) -> None:
    seconds = {size: 1.0 + abs(size - best) / 64 for size in (64, 32, 16, 8, 4)}
    assert search(64, seconds, 1000).settled == best


def test_a_slow_first_run_is_forgiven() -> None:
    micro = MeasuredSize()
    micro.measured(32, micro.size(32), 100.0)  # compiles
    micro.measured(32, micro.size(32), 1.0)
    while not micro.is_known:
        micro.measured(32, micro.size(32), 2.0)
    assert micro.settled == 32


def test_more_rows_than_before_are_searched_anew() -> None:
    micro = search(16, {}, 100)
    assert micro.settled == 16
    assert micro.size(64) == 64 and not micro.is_known


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_images_differ_by_rounding_only_and_cost_the_same(family: str) -> None:
    case = tiny(family)
    plan = SharePlan.from_groups([[0, 2, 3], [1, 4, 5]], num_steps=8, share_ratio=0.4)

    def sample(size: Any) -> torch.Tensor:
        with shared_sampling(case.pipe, plan, micro_batch_size=size) as run:
            images = case([5, 6, 7, 8, 9, 4], 8, plan.generators(0))
        assert run.evaluations == run.plan.evaluations
        return images

    micro, whole = MeasuredSize(), sample(None)
    for _ in range(2):  # one run has fewer calls of its most rows than the search may take
        torch.testing.assert_close(sample(micro), whole, atol=1e-5, rtol=0)
    assert micro.is_known
    torch.testing.assert_close(sample("auto"), sample(2), atol=1e-5, rtol=0)


def test_rows_that_do_not_fit_are_run_in_halves() -> None:
    case = tiny("sd")
    plan = SharePlan.from_groups([[0, 1], [2, 3]], num_steps=4, share_ratio=0.5)
    unet, seen = case.pipe.unet, []
    forward = unet.forward

    def small(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(sample))
        if len(sample) > 3:
            raise torch.OutOfMemoryError("no room for more than three rows")
        return forward(sample, *args, **kwargs)

    unet.forward = small
    try:
        with shared_sampling(case.pipe, plan, micro_batch_size="auto") as run:
            images = case([5, 6, 7, 8], 4, plan.generators(0))
        with (
            pytest.raises(torch.OutOfMemoryError),
            shared_sampling(case.pipe, plan, micro_batch_size=4),
        ):
            case([5, 6, 7, 8], 4, plan.generators(0))
    finally:
        del unet.forward
    assert run.evaluations == run.plan.evaluations and max(seen) > 3
    with shared_sampling(case.pipe, plan):
        torch.testing.assert_close(images, case([5, 6, 7, 8], 4, plan.generators(0)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("wrong", [0, -1, True, "fast", 2.5])
def test_sizes_that_cannot_be(wrong: Any) -> None:
    with pytest.raises(InputError, match="micro_batch_size"):
        micro_batches(wrong)
    assert isinstance(micro_batches(None), FixedSize)
