"""What tests of the engine share: requests, engines that run, and a denoiser that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from sagediff.plan.sharing import Sharing
from sagediff.prompts.requests import QueuedRequest
from sagediff.serving.engine.batcher import BatchPolicy
from sagediff.serving.engine.model_thread import Engine, WaveReport
from sagediff.serving.engine.ticket import Ticket
from sagediff.serving.engine.wave_runner import ModelSettings

STEPS = 2
ROUNDING = 2  # of 255
POLICY = BatchPolicy(window=0.05, max_batch=8, max_queue=64)
SHARING = Sharing(threshold=0.35, share_ratio=0.5, handover_noise=1.0)
SETTINGS = ModelSettings(SHARING, SHARING, guidance_scale=4.0)
CAT, DOG, LION, STAR = (
    f"a large {thing} at the top on a red background" for thing in ("cat", "dog", "lion", "star")
)


def wanted(id_: str, prompt: str = CAT, **changes: Any) -> QueuedRequest:
    return QueuedRequest(**{"id": id_, "prompt": prompt, "num_inference_steps": STEPS} | changes)


@contextmanager
def running(
    pipe: Any, settings: ModelSettings = SETTINGS, policy: BatchPolicy = POLICY
) -> Iterator[tuple[Engine, list[WaveReport]]]:
    reports: list[WaveReport] = []
    engine = Engine(lambda: pipe, settings, policy, observe=reports.append)
    engine.start()
    assert engine.wait_until_loaded(60) == "ready"
    try:
        yield engine, reports
    finally:
        engine.stop(60)
        assert engine.state == "stopped"


@contextmanager
def faulty(pipe: Any, fault: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """The denoiser, with something that looks at the conditions of its rows (R, T, D) before it runs them."""
    forward = pipe.unet.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        fault(kwargs["encoder_hidden_states"])
        return forward(*args, **kwargs)

    pipe.unet.forward = watched  # not torch's own hooks: the sharing hook calls `forward` itself
    try:
        yield
    finally:
        del pipe.unet.forward


def condition_of(pipe: Any, prompt: str) -> torch.Tensor:
    return pipe.encode_prompt(prompt, "cpu", 1, False)[0][0]  # type: ignore[no-any-return]


def results(tickets: list[Ticket]) -> list[Any]:
    wait([ticket.future for ticket in tickets], timeout=120)
    return [ticket.future.exception(0) or ticket.future.result(0) for ticket in tickets]


def close(one: Any, two: Any) -> bool:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(two, dtype=int)).max()) <= ROUNDING
