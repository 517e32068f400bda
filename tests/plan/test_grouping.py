"""Groups are cliques, cover every prompt once, do not depend on order, and are nearly as few as can be."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sagediff.plan.grouping as grouping
from sagediff.errors import InputError
from sagediff.plan.grouping import group_prompts


def _cloud(seed: int, n: int, d: int = 6, centres: int = 4, spread: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, d))
    return (middle[rng.integers(centres, size=n)] + spread * rng.normal(size=(n, d))).astype(np.float32)


def _check(vectors: np.ndarray, groups: list[list[int]], threshold: float, size: int) -> None:
    assert sorted(i for g in groups for i in g) == list(range(len(vectors)))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for group in groups:
        assert len(group) <= size and group == sorted(group)
        assert (unit[group] @ unit[group].T).min() >= threshold - 2e-6
    assert groups == sorted(groups)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 60),
    st.floats(-0.2, 0.99),
    st.integers(1, 9),
    st.sampled_from([2, 6]),
)
def test_cliques_cover_every_prompt_once(seed: int, n: int, threshold: float, size: int, d: int) -> None:
    vectors = _cloud(seed, n, d)
    _check(vectors, group_prompts(vectors, threshold, size), threshold, size)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 50), st.floats(0.2, 0.95))
def test_order_of_input_does_not_change_the_partition(seed: int, n: int, threshold: float) -> None:
    vectors = _cloud(seed, n)
    order = np.random.default_rng(seed).permutation(n)
    one = {frozenset(g) for g in group_prompts(vectors, threshold)}
    two = {frozenset(int(order[i]) for i in g) for g in group_prompts(vectors[order], threshold)}
    assert one == two


def _optimum(vectors: np.ndarray, threshold: float, size: int) -> int:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = unit @ unit.T >= threshold - 1e-6
    n = len(vectors)

    @cache
    def fewest(rest: int) -> int:
        if not rest:
            return 0
        first = (rest & -rest).bit_length() - 1
        best = n

        def extend(group: list[int], candidates: list[int], remaining: int) -> None:
            nonlocal best
            best = min(best, 1 + fewest(remaining))
            if len(group) < size:
                for k, c in enumerate(candidates):
                    rest_of = [x for x in candidates[k + 1 :] if alike[c, x]]
                    extend([*group, c], rest_of, remaining & ~(1 << c))

        start = [i for i in range(first + 1, n) if rest >> i & 1 and alike[first, i]]
        extend([first], start, rest & ~(1 << first))
        return best

    return fewest((1 << n) - 1)


def test_nearly_as_few_groups_as_the_exact_optimum() -> None:
    ours = best = worst = 0
    for seed in range(60):
        vectors = _cloud(seed, 11, d=3, centres=3, spread=0.6)
        for threshold, size in ((0.5, 4), (0.8, 8), (0.3, 3)):
            found, optimum = len(group_prompts(vectors, threshold, size)), _optimum(vectors, threshold, size)
            assert found >= optimum
            ours, best, worst = ours + found, best + optimum, max(worst, found - optimum)
    assert ours <= 1.02 * best  # measured: see CHANGELOG; a looser cover would waste evaluations
    assert worst <= 1


def test_copies_fill_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.ones((23, 4), np.float32)
    assert sorted(map(len, group_prompts(vectors, 1.0, 5))) == [3, 5, 5, 5, 5]


def test_tiles_and_the_bound_on_companions_keep_groups_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = _cloud(5, 300)
    whole = group_prompts(vectors, 0.7)
    monkeypatch.setattr(grouping, "_TILE", 64)
    assert group_prompts(vectors, 0.7) == whole
    monkeypatch.setattr(grouping, "_MAX_FORWARD", 10)
    _check(vectors, group_prompts(vectors, 0.7), 0.7, 8)


def test_tensors_and_empty_input() -> None:
    vectors = _cloud(1, 20)
    assert group_prompts(torch.from_numpy(vectors), 0.7) == group_prompts(vectors, 0.7)
    assert group_prompts(np.zeros((0, 4)), 0.7) == []


@pytest.mark.parametrize(
    "vectors, threshold, size, words",
    [
        (np.ones(4), 0.8, 8, "shape"),
        (np.zeros((2, 4)), 0.8, 8, "embedding 0"),
        (np.full((2, 4), np.nan), 0.8, 8, "embedding 0"),
        (np.ones((2, 4)), 1.5, 8, "threshold"),
        (np.ones((2, 4)), float("nan"), 8, "threshold"),
        (np.ones((2, 4)), 0.8, 0, "max_group_size"),
    ],
)
def test_bad_input_is_refused(vectors: np.ndarray, threshold: float, size: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        group_prompts(vectors, threshold, size)
