"""Each metric against a closed form or a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.kid import poly_mmd

from sagediff.errors import InputError
from sagediff.evaluation.alignment import clip_score, clip_scores
from sagediff.evaluation.diversity import group_diversity
from sagediff.evaluation.frechet import frechet_distance
from sagediff.evaluation.kernel import kernel_distance
from sagediff.evaluation.similarity import similarity_bands
from sagediff.evaluation.vendi import group_vendi, vendi_score

_RNG = np.random.default_rng(3)


def _sets(n: int, m: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([n, m, d])
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), rng.normal(0.3, 1.2, size=(m, d))


@pytest.mark.parametrize("n, m, d", [(200, 150, 6), (300, 300, 20)])
def test_frechet_equals_the_textbook_formula(n: int, m: int, d: int) -> None:
    x, y = _sets(n, m, d)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_gaussians_on_a_line_is_known() -> None:
    # |m1 - m2|^2 + (s1 - s2)^2
    x, y = ([[m - s / np.sqrt(2)], [m + s / np.sqrt(2)]] for m, s in ((1, 2), (3, 3)))
    assert frechet_distance(x, y) == pytest.approx(4 + 1)


@pytest.mark.parametrize("n, d", [(50, 4), (5, 64)])
def test_frechet_is_symmetric_and_zero_for_the_same_set_also_with_fewer_rows_than_dimensions(n, d) -> None:
    x, y = _sets(n, n, d)
    scale = np.square(x).sum()
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12 * scale)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-12 * scale)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)
    a, b = (np.cov(s, rowvar=False) for s in (x, y))
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b) - 2 * cross
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_takes_float32_tensors_in_float64() -> None:
    x, y = _sets(40, 40, 8)
    x32, y32 = (torch.from_numpy(a).float() for a in (x, y))
    assert frechet_distance(x32, y32) == frechet_distance(x32.double().numpy(), y32.double().numpy())


def test_kernel_distance_equals_torchmetrics_on_one_subset_of_all() -> None:
    x, y = _sets(60, 60, 12)
    # float64 tensors; degree 3, gamma 1 / D, constant 1 are its defaults
    assert kernel_distance(x, y) == pytest.approx(
        float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))), rel=1e-9
    )


def test_kernel_distance_by_its_definition_paired_and_not() -> None:
    x, y = _sets(7, 7, 3)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    n = len(x)
    others = [(i, j) for i in range(n) for j in range(n) if i != j]
    own = np.mean([k(x[i], x[j]) + k(y[i], y[j]) for i, j in others])
    every = np.mean([k(a, b) for a in x for b in y])
    apart = np.mean([k(x[i], y[j]) for i, j in others])
    assert kernel_distance(x, y) == pytest.approx(own - 2 * every)
    assert kernel_distance(x, y, paired=True) == pytest.approx(own - 2 * apart)


def test_kernel_distance_is_unbiased_for_few_rows() -> None:
    rng = np.random.default_rng(0)
    values = [kernel_distance(rng.normal(size=(8, 4)), rng.normal(size=(12, 4))) for _ in range(3000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    # rows that belong together: biased downwards unless told
    base = rng.normal(size=(3000, 8, 4))
    near = base + rng.normal(size=base.shape) * 0.1
    far = base + rng.normal(size=base.shape) * 0.1
    plain = [kernel_distance(a, b) for a, b in zip(near, far, strict=True)]
    told = [kernel_distance(a, b, paired=True) for a, b in zip(near, far, strict=True)]
    assert np.mean(plain) < -10 * np.std(plain) / np.sqrt(len(plain))
    assert abs(np.mean(told)) < 4 * np.std(told) / np.sqrt(len(told))


def test_kernel_distance_does_not_depend_on_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _sets(33, 20, 5)
    whole = kernel_distance(x, y)
    monkeypatch.setattr("sagediff.evaluation.kernel._TILE", 7)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-12)


def test_diversity_is_the_mean_over_groups_of_pairwise_cosine_distance() -> None:
    features = np.array([[1.0, 0], [0, 2], [3, 0], [-1, 0], [5, 5]])
    # right angle: 1; the three others: (1, 0), (-1, 0), (1, 1)/sqrt 2
    half = np.sqrt(0.5)
    second = np.mean([2, 1 - half, 1 + half])
    assert group_diversity(features, [[0, 1], [2, 3, 4]]) == pytest.approx((1 + second) / 2)
    assert group_diversity(features, [[0, 2], [1], [3], [4]]) == pytest.approx(0, abs=1e-12)
    assert group_diversity(features, [[i] for i in range(5)]) is None


def test_vendi_counts_what_is_different() -> None:
    assert vendi_score(np.eye(5)) == pytest.approx(5)
    assert vendi_score(np.ones((5, 3))) == pytest.approx(1)
    assert vendi_score(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3)
    x = _RNG.normal(size=(9, 4))  # more rows than dimensions takes the dual; compare with the definition
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = scipy.linalg.eigh(units @ units.T / 9, eigvals_only=True).clip(1e-300)
    assert vendi_score(x) == pytest.approx(np.exp(-(values * np.log(values)).sum()))
    assert group_vendi(np.eye(4), [[0, 1, 2], [3]]) == pytest.approx(3)
    assert group_vendi(np.eye(4), [[0], [1], [2], [3]]) is None


def test_clip_score_is_the_mean_cosine() -> None:
    image, text = np.array([[2.0, 0], [0, 1]]), np.array([[1.0, 1], [0, 3]])
    assert clip_scores(image, text) == pytest.approx([np.sqrt(0.5), 1])
    assert clip_score(image, text) == pytest.approx((np.sqrt(0.5) + 1) / 2)


def test_bands_are_terciles_of_the_groups_or_the_edges_given() -> None:
    angles = np.array([0, 0.1, 0, 0.5, 0, 1.0, 2.0])  # pairs: cosines of 0.1, 0.5, 1.0, and one alone
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    groups = [[0, 1], [2, 3], [4, 5], [6]]
    bands = similarity_bands(vectors, groups)
    assert [band.groups for band in bands] == [[[4, 5]], [[2, 3]], [[0, 1]]]
    assert bands[0].low == pytest.approx(np.cos(1.0)) and bands[-1].high == pytest.approx(np.cos(0.1))
    halves = similarity_bands(vectors, groups, [0.0, 0.7, 1.0])
    assert [band.prompts for band in halves] == [[4, 5], [0, 1, 2, 3]]
    assert similarity_bands(vectors, [[i] for i in range(7)]) == []
    alike = similarity_bands(np.ones((4, 2)), [[0, 1], [2, 3]])
    assert [band.groups for band in alike] == [[[0, 1], [2, 3]]]
    with pytest.raises(InputError, match="growing"):
        similarity_bands(vectors, groups, [0.5, 0.5])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: frechet_distance(np.ones(3), np.ones((3, 1))), "shape"),
        (lambda: frechet_distance(np.ones((3, 2)), np.ones((3, 1))), "wide"),
        (lambda: frechet_distance(np.ones((1, 2)), np.ones((3, 2))), "two images"),
        (lambda: frechet_distance(np.full((2, 2), np.nan), np.ones((3, 2))), "finite"),
        (lambda: kernel_distance(np.ones((3, 2)), np.ones((2, 2)), paired=True), "equal size"),
        (lambda: vendi_score(np.zeros((2, 2))), "zeros"),
        (lambda: clip_score(np.ones((2, 3)), np.ones((2, 2))), "one shape"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, words) -> None:
    with pytest.raises(InputError, match=words):
        call()
