"""What the engine refuses, gives up, or puts off: sizes, requests that the pipeline refuses, images that are none, and
large requests that memory does not suffice for."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from engines import CAT, DOG, SETTINGS, STAR, faulty, results, running, wanted
from torch.nn.functional import scaled_dot_product_attention

from sagediff.errors import ModelError
from sagediff.serving.engine import interrupt, recovery
from sagediff.serving.engine.reuse import CacheUse
from sagediff.serving.engine.ticket import MadeImage
from sagediff.serving.engine.trajectory_cache import TrajectoryCache
from sagediff.serving.failures import (
    Cancelled,
    ImageFailed,
    OutOfMemory,
    RefusedByPipeline,
    refused_by_pipeline,
)
from sagediff.serving.http.answers import error_answer


def test_what_the_pipeline_refuses_is_the_clients_to_mend(small_demo: Any) -> None:
    with running(small_demo) as (engine, _):
        fine = engine.submit([wanted("fine", DOG)])
        bad = engine.submit([wanted("12", width=12, height=12)])
        (refused,) = results(bad)
        assert isinstance(refused, RefusedByPipeline) and "divisible by 8 but are 12 and 12" in str(refused)
        assert isinstance(results(fine)[0], MadeImage)


def test_a_value_error_from_elsewhere_is_no_refusal(small_demo: Any) -> None:
    def fault(rows: torch.Tensor) -> None:
        raise ValueError("of a bug: /a/path")

    with faulty(small_demo, fault), running(small_demo) as (engine, _):
        (failed,) = results(engine.submit([wanted("a")]))
    assert isinstance(failed, ImageFailed) and "/a/path" not in str(failed)
    assert not refused_by_pipeline(ValueError("never raised"))


def test_images_that_are_none_get_an_error_and_their_neighbours_an_image(
    small_demo: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = recovery.WaveRunner.run

    def watched(self: Any, tickets: Any, arrangement: Any, micro: Any) -> Any:
        bad = [i for i, ticket in enumerate(tickets) if ticket.request.prompt == STAR]
        if bad:
            raise ModelError(f"no image of {STAR!r}: the model gave numbers that are not finite", bad)
        return run(self, tickets, arrangement, micro)

    monkeypatch.setattr(recovery.WaveRunner, "run", watched)
    with running(small_demo) as (engine, _):
        cat, star, dog = results(engine.submit([wanted("1", CAT), wanted("2", STAR), wanted("3", DOG)]))
    assert isinstance(cat, MadeImage) and isinstance(dog, MadeImage)
    assert isinstance(star, ImageFailed) and "not finite" in str(star)
    assert STAR not in caplog.text  # prompts are not logged unless the operator says so


def test_numbers_that_are_not_finite_make_no_image_and_nothing_is_kept_of_them(small_demo: Any) -> None:
    def spoilt(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan") if output.shape[-1] == 8 else output  # of images of 32 pixels

    cache = TrajectoryCache(1 << 24)
    settings = replace(SETTINGS, reuse=CacheUse(cache, 0.5, lambda pipe: "demo"))
    hook = small_demo.unet.conv_out.register_forward_hook(spoilt)
    try:
        with running(small_demo, settings) as (engine, _):
            failed = results(engine.submit([wanted(str(i), width=32, height=32) for i in range(2)]))
            assert len(cache) == 0
            fine = results(engine.submit([wanted("fine")]))
            assert len(cache) == 1
    finally:
        hook.remove()
    assert [type(outcome) for outcome in (*failed, *fine)] == [ImageFailed, ImageFailed, MadeImage]
    assert "not finite" in str(failed[0]) and error_answer(failed[0]).status == 500


def test_a_client_that_leaves_is_seen_within_a_step(small_demo: Any) -> None:
    """A step of a large image may take minutes."""
    reached, parts = threading.Event(), 0

    def slow(module: Any, args: Any) -> None:
        nonlocal parts
        parts += 1
        reached.set()
        time.sleep(0.2)

    hooks = [block.register_forward_pre_hook(slow) for block in small_demo.unet.up_blocks]
    inner = [
        part.register_forward_pre_hook(slow) for block in small_demo.unet.up_blocks for part in block.resnets
    ]
    try:
        with running(small_demo) as (engine, _):
            tickets = engine.submit([wanted("a"), wanted("b", DOG)])
            assert reached.wait(60)
            engine.cancel(tickets)
            seen = parts
            assert [type(outcome) for outcome in results(tickets)] == [Cancelled, Cancelled]
            assert parts <= seen + 2
            assert isinstance(results(engine.submit([wanted("c")]))[0], MadeImage)
    finally:
        for hook in hooks + inner:
            hook.remove()
    assert not any(module._forward_pre_hooks for module in small_demo.unet.modules())


@pytest.mark.parametrize("queries, keys", [(4096, 4096), (4196, 77), (5000, 5000), (768, 768)])
def test_long_attention_in_parts_is_the_same_to_the_bit(
    queries: int, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "_AT_ONCE", 1 << 20)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, 2, length, 16, generator=generator) for length in (queries, keys, keys)
    )
    parts: list[int] = []
    whole = scaled_dot_product_attention(query, key, value)
    with interrupt.AttentionInParts(lambda: parts.append(1)):
        made = scaled_dot_product_attention(query, key, value=value, dropout_p=0.0)
        masked = scaled_dot_product_attention(query, query, query, is_causal=True)
    assert torch.equal(made, whole) and masked.shape == whole.shape
    assert (len(parts) > 1) == (keys > 2000)


def test_a_client_that_leaves_is_seen_within_an_attention(
    small_demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 512 pixels one attention of the built-in model takes several parts of this size."""
    monkeypatch.setattr(interrupt, "_AT_ONCE", 1 << 20)
    reached, between = threading.Event(), interrupt.AttentionInParts._in_parts

    def seen(*args: Any) -> Any:
        reached.set()
        return between(*args)

    monkeypatch.setattr(interrupt.AttentionInParts, "_in_parts", seen)
    with running(small_demo) as (engine, _):
        tickets = engine.submit([wanted("a", width=512, height=512)])
        assert reached.wait(60)
        engine.cancel(tickets)
        start = time.monotonic()
        assert isinstance(results(tickets)[0], Cancelled) and time.monotonic() - start < 3


class Large:
    """Memory runs out for every image of 128 pixels, after a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.tries = seconds, 0
        self.reached = threading.Event()

    def __call__(self, module: Any, args: Any) -> None:
        if args[0].shape[-1] == 32:
            self.tries += 1
            self.reached.set()
            time.sleep(self.seconds)
            raise torch.OutOfMemoryError("out of memory")


def test_smaller_requests_go_before_the_next_try_of_one_that_did_not_fit(small_demo: Any) -> None:
    large, order = Large(0.3), list[str]()
    hook = small_demo.unet.conv_in.register_forward_pre_hook(large)
    try:
        with running(small_demo) as (engine, reports):
            tall = engine.submit([wanted("large", width=128, height=128, seed=1)])
            assert large.reached.wait(60)
            small = engine.submit([wanted("small", seed=1)])
            same = engine.submit([wanted("same size", width=128, height=128, seed=1, guidance_scale=3.0)])
            for ticket in (*tall, *small, *same):
                ticket.future.add_done_callback(lambda _, ticket=ticket: order.append(ticket.request.id))
            found = results([*tall, *small, *same])
        assert [type(outcome) for outcome in found] == [OutOfMemory, MadeImage, OutOfMemory]
        assert order == ["small", "large", "same size"] and large.tries > 1
        assert sum(len(report.waited) for report in reports) == 3
    finally:
        hook.remove()


def test_what_did_not_fit_is_given_up_once_its_client_has_left(small_demo: Any) -> None:
    large = Large(0.2)
    hook = small_demo.unet.conv_in.register_forward_pre_hook(large)
    try:
        with running(small_demo) as (engine, _):
            gone = engine.submit([wanted("large", width=128, height=128, seed=1)])
            assert large.reached.wait(60)
            engine.cancel(gone)
            small = engine.submit([wanted("small", seed=1)])
            start = time.monotonic()
            assert isinstance(results(small)[0], MadeImage) and time.monotonic() - start < 10
            assert isinstance(results(gone)[0], Cancelled) and large.tries == 1
    finally:
        hook.remove()
