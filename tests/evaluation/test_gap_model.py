"""The model of prediction gaps: its error against a closed form, and what always holds of a fit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sagediff.errors import InputError
from sagediff.evaluation.gap_model import GapModel, GroupGap, fit_gaps, spread_of

LEVELS = np.linspace(0, 4, 4001)  # alpha / sigma
VARIANCE = 0.3  # of the data about each prompt's mean


def oracle(spread: float, signal: np.ndarray) -> np.ndarray:
    """The gap of ideal denoisers of N(mean, VARIANCE) whose means lie sqrt(spread) apart: D = m + K (x - m)."""
    return spread / (1 + VARIANCE * signal**2) ** 2


def test_the_error_is_the_shift_of_the_image_in_units_of_its_own_spread() -> None:
    """For Gaussian data: sharing until alpha / sigma = l shifts the image by sqrt(s / (s + 1 / l^2)) of the means'."""
    model = GapModel(1.0, tuple(oracle(1.0, LEVELS[:-1])), tuple(LEVELS))
    errors = np.sqrt(model.squared_errors(0.8))
    for step in (500, 1000, 4000):
        noise = 1 / LEVELS[step]
        shift = math.sqrt(VARIANCE / (VARIANCE + noise**2)) * math.sqrt(0.8)
        assert errors[step] == pytest.approx(shift / math.sqrt(VARIANCE), rel=2e-3)


def test_a_fit_finds_the_exponent_and_the_levels() -> None:
    signal = np.linspace(0, 2, 21)
    gap = [
        GroupGap(spread, step, float(oracle(spread**1.4, signal[step])))
        for spread in (0.1, 0.3, 0.8)
        for step in (0, 4, 8, 12, 16)
    ]
    model = fit_gaps(gap, 20, signal.tolist())
    assert model.exponent == pytest.approx(1.4, abs=0.03)
    assert model.scale[8] == pytest.approx(oracle(1.0, signal[8:9])[0], rel=0.05)
    assert model.scale[10] == pytest.approx(
        oracle(1.0, signal[10:11])[0], rel=0.05
    )  # between two that were looked at
    assert model == fit_gaps(gap[::-1], 20, signal.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_less_alike_prompts_and_longer_sharing_never_have_a_smaller_error(seed: int) -> None:
    generator = np.random.default_rng(seed)
    gaps = [
        GroupGap(float(s), int(step), float(generator.exponential()))
        for s in generator.uniform(0.01, 1, 4)
        for step in (0, 3, 7)
    ]
    model = fit_gaps(gaps, 10, np.cumsum(generator.uniform(0, 1, 11)).tolist())
    errors = np.stack([model.squared_errors(spread) for spread in (0.0, 0.05, 0.2, 0.7)])
    assert (np.diff(errors, axis=0) >= 0).all() and (np.diff(errors, axis=1) >= 0).all()
    assert not errors[0].any()  # equal prompts


def test_no_noise_left_bears_no_gap() -> None:
    model = fit_gaps([GroupGap(0.5, 0, 1.0), GroupGap(0.5, 1, 1.0)], 2, (0.1, 1.0, math.inf))
    assert model.squared_errors(0.5)[1:].tolist() == [pytest.approx(0.99), math.inf]
    without = fit_gaps([GroupGap(0.5, 0, 0.0), GroupGap(0.5, 1, 0.0)], 2, (0.1, 1.0, math.inf))
    assert without.squared_errors(0.5).tolist() == [0, 0, 0]


def test_fresh_noise_at_the_hand_over_leaves_less_of_the_error_but_never_turns_it_round() -> None:
    signal = (*np.linspace(0, 3, 10), math.inf)
    plain, half, whole = (GapModel(1.0, (1.0,) * 10, signal, renewed) for renewed in (0.0, 0.25, 1.0))
    assert (plain.kept == 1).all()
    assert (np.diff(whole.kept) > 0).all() and whole.kept[0] == 0 and whole.kept[-1] == 1
    np.testing.assert_allclose(half.kept, 0.75 + 0.25 * whole.kept)
    errors = [whole.error(float(squared), step) for step, squared in enumerate(whole.squared_errors(0.3))]
    assert errors == sorted(errors) and errors[0] == 0
    assert all(error <= plain.error(float(squared), step) for step, (error, squared) in enumerate(
        zip(errors, plain.squared_errors(0.3), strict=True)
    ))  # fmt: skip


def test_what_tells_nothing_is_refused() -> None:
    for gaps, words in (([], "no gaps"), ([GroupGap(0.5, 0, math.nan)], "not finite")):
        with pytest.raises(InputError, match=words):
            fit_gaps(gaps, 2, (0.0, 1.0, 2.0))


def test_the_spread_of_equal_vectors_is_nothing() -> None:
    one = np.full((3, 16), 0.25, np.float32)
    assert spread_of(one) == 0
    assert spread_of(np.eye(4, dtype=np.float32)) == pytest.approx(3 / 4)
