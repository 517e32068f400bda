"""Gaps of the built-in model: as many evaluations as allowed and said, the same for the same seed, more for less alike
prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sagediff.errors import InputError
from sagediff.evaluation.prediction_gaps import GapRunner, levels_to_look_at
from sagediff.plan.sharing import Sharing
from sagediff.prompts.embeddings import embed_prompts

PROMPTS = [
    f"a {size} {animal} at the {place} on a {color} background"
    for size, animal, place, color in [
        ("large", "cat", "top", "red"), ("large", "cat", "top left", "red"), ("small", "cat", "top", "red"),
        ("large", "rocket", "bottom", "blue"), ("small", "rocket", "bottom", "blue"),
        ("small", "tree", "right", "black"),
    ]
]  # fmt: skip
STEPS = 4


@pytest.fixture(scope="module")
def runner(demo: Any) -> GapRunner:
    vectors = embed_prompts(PROMPTS, demo, None).vectors
    return GapRunner(demo, PROMPTS, vectors, STEPS, 4.0, Sharing(shared_guidance=1.0))


def test_the_evaluations_are_those_allowed_and_the_denoisers(
    runner: GapRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = runner.pipe.unet.forward

    def noted(sample: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(runner.pipe.unet, "forward", noted)
    thresholds = (0.0, 0.5)
    gaps = runner.measure(thresholds, 1, 32)
    assert gaps is not None
    assert gaps.evaluations == sum(seen) == runner.sample(thresholds, 1, 32, 0).evaluations <= 32
    assert {each.step for each in gaps.measured} == {0, 1}
    assert runner.measure(thresholds, 1, 32) == gaps
    closest = float(np.triu(runner.vectors @ runner.vectors.T, 1).max()) - 1e-3
    near, far = (runner.measure((threshold,), 0, 12) for threshold in (closest, -1.0))
    assert near is not None and far is not None
    assert max(each.gap for each in near.measured) < min(each.gap for each in far.measured)


@pytest.mark.parametrize("guidance", [1.0, None])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [30, 100, 10_000])
def test_a_sample_stays_within_the_evaluations(
    runner: GapRunner, guidance: float | None, seed: int, most: int
) -> None:
    guided = replace(runner, sharing=Sharing(shared_guidance=guidance))
    sample = guided.sample((-1.0, 0.3, 0.6), 2, most, seed)
    assert 0 < sample.evaluations <= most
    assert len(set(sample.groups)) == len(sample.groups) and min(map(len, sample.groups)) > 1
    assert guided.sample((-1.0, 0.3, 0.6), 2, most, seed) == sample


def test_too_few_evaluations_and_nothing_alike_are_said(runner: GapRunner) -> None:
    with pytest.raises(InputError, match=r"3 evaluations are too few.*at least 9"):
        runner.measure((-1.0,), 2, 3)
    strangers = replace(runner, vectors=np.eye(len(PROMPTS), dtype=np.float32))
    assert strangers.measure((0.5, 0.9), 2, 100) is None


def test_levels_lie_evenly_up_to_the_last_step() -> None:
    assert levels_to_look_at(0) == (0,)
    assert levels_to_look_at(3) == (0, 1, 2, 3)
    assert levels_to_look_at(20) == (0, 4, 8, 12, 16, 20)
