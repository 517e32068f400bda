"""What prompts can show: never less than the exact bound, and nothing where one image is more than the budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from sagediff.evaluation.certainty import loss_at_most, prompts_needed


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("count", [10, 50, 256, 1000])
@pytest.mark.parametrize("worse", [0, 1, 2, 5])
def test_the_bound_is_the_exact_one_and_a_little_more(confidence: float, count: int, worse: int) -> None:
    before, after = np.ones(count), np.r_[np.zeros(worse), np.ones(count - worse)]
    found = loss_at_most(before.tolist(), after.tolist(), confidence)
    exact = float(beta.ppf(confidence, worse + 1, count - worse))  # Clopper and Pearson's
    if confidence == 0.8 and worse <= 0.1 * count:
        assert exact <= found <= exact + 0.5 / count
    assert found >= (worse + 1) / (count + 1)  # one image more than was seen
    assert found >= 0.85 * exact  # it is a normal approximation, which is short where more is lost


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Prompts of which 2 % get worse and 1 % better; both are found in pairs with the same prompt alone."""
    rng = np.random.default_rng(0)
    for confidence in (0.8, 0.95):
        held = []
        for _ in range(2000):
            kind = rng.random(200)
            before = np.where(kind < 0.01, 0.0, 1.0)
            after = np.where((kind < 0.01) | (kind >= 0.03), 1.0, 0.0)
            held.append(loss_at_most(before.tolist(), after.tolist(), confidence) >= 0.01 / 0.99)
        assert np.mean(held) >= confidence


def test_images_that_get_better_and_worse_in_turn_are_noise_and_show_less() -> None:
    count = 300
    calm, noisy = np.ones(count), np.ones(count)
    noisy[:20] = 0
    swapped = np.roll(noisy, 20)  # as many right as before, other ones
    assert loss_at_most(calm.tolist(), calm.tolist(), 0.8) < 0.01
    assert loss_at_most(noisy.tolist(), swapped.tolist(), 0.8) > 0.015


@pytest.mark.parametrize("budget", [0.005, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_as_many_prompts_as_are_needed_are_enough_and_one_less_is_not(
    budget: float, confidence: float
) -> None:
    needed = prompts_needed(budget, confidence)
    assert needed is not None and needed >= 1 / budget - 1
    for quality in (1.0, 0.3):
        for count, shows in ((needed, True), (needed - 1, False)):
            if count:
                same = [quality] * count
                assert (loss_at_most(same, same, confidence) <= budget + 1e-12) is shows


def test_what_cannot_be_known_at_all() -> None:
    assert prompts_needed(0.0, 0.8) is None
    assert loss_at_most([], [], 0.8) == math.inf
    assert loss_at_most([0.0, 0.0], [1.0, 1.0], 0.8) == math.inf  # nothing there that could be lost
