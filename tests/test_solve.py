"""Closed forms."""

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.solve import error, ridge, ridges, solve

Floats = NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def moments(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    return np.asarray(x.T @ x / len(x)), np.asarray(y.T @ x / len(x))


def test_hardly_a_ridge_is_least_squares(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((200, 6)), rng.standard_normal((200, 4))
    gram, cross = moments(x, y)
    found = ridge(gram, cross, rng.standard_normal((4, 6)), 1e-12)
    np.testing.assert_allclose(found, np.linalg.lstsq(x, y, rcond=None)[0].T, atol=1e-8)


def test_a_large_ridge_is_the_prior(rng: np.random.Generator) -> None:
    gram, cross = moments(rng.standard_normal((50, 6)), rng.standard_normal((50, 4)))
    prior = rng.standard_normal((4, 6))
    np.testing.assert_allclose(ridge(gram, cross, prior, 1e9), prior, atol=1e-7)


def test_a_ridge_minimises_what_it_says(rng: np.random.Generator) -> None:
    gram, cross = moments(rng.standard_normal((50, 5)), rng.standard_normal((50, 3)))
    prior, strength = rng.standard_normal((3, 5)), 0.3
    w = ridge(gram, cross, prior, strength)

    def loss(v: Floats) -> float:
        pull = strength * np.trace(gram) / 5 * np.square(v - prior).sum()
        return float(np.trace(v @ gram @ v.T) - 2 * np.trace(v @ cross.T) + pull)

    assert all(loss(w) < loss(w + 1e-3 * rng.standard_normal(w.shape)) for _ in range(20))


def test_a_feature_that_hardly_varies_keeps_its_weights(rng: np.random.Generator) -> None:
    """The few rows in which it does would make its weights large, and other inputs the results."""
    x, y, prior = rng.standard_normal((50, 5)), rng.standard_normal((50, 3)), rng.standard_normal((3, 5))
    x[:, 2] *= 1e-4
    np.testing.assert_allclose(ridge(*moments(x, y), prior, 0.3)[:, 2], prior[:, 2], atol=1e-3)


def test_a_feature_that_is_always_0_keeps_its_weights(rng: np.random.Generator) -> None:
    x, y, prior = rng.standard_normal((50, 5)), rng.standard_normal((50, 3)), rng.standard_normal((3, 5))
    x[:, 2] = 0.0
    np.testing.assert_allclose(ridge(*moments(x, y), prior, 0.3)[:, 2], prior[:, 2])


def test_stacks_are_solved_one_by_one(rng: np.random.Generator) -> None:
    gram, cross = zip(
        *(moments(rng.standard_normal((40, 5)), rng.standard_normal((40, 3))) for _ in range(4)), strict=True
    )
    prior = rng.standard_normal((4, 3, 5))
    stacked = ridge(np.stack(gram), np.stack(cross), prior, 0.1)
    for i in range(4):
        np.testing.assert_allclose(stacked[i], ridge(gram[i], cross[i], prior[i], 0.1), rtol=1e-10)


def test_a_singular_gram(rng: np.random.Generator) -> None:
    """The smallest solution; the ridge of nothing at all is the prior."""
    x = rng.standard_normal((30, 3)) @ rng.standard_normal((3, 6))
    y = x @ rng.standard_normal((6, 2))
    gram, cross = moments(x, y)
    for found in (solve(gram, cross), ridge(gram, cross, np.zeros((2, 6)), 1e-9)):
        np.testing.assert_allclose(x @ found.T, y, atol=1e-4)
    prior = rng.standard_normal((2, 6))
    np.testing.assert_allclose(ridge(np.zeros((6, 6)), np.zeros((2, 6)), prior, 1e-3), prior)
    assert np.isfinite(solve(np.zeros((6, 6)), np.ones((2, 6)))).all()


def test_the_error_from_moments(rng: np.random.Generator) -> None:
    x, y, w = rng.standard_normal((50, 5)), rng.standard_normal((50, 3)), rng.standard_normal((3, 5))
    gram, cross = moments(x, y)
    power = float(np.square(y).sum() / len(y))
    assert error(w, gram, cross, power) == pytest.approx(float(np.square(y - x @ w.T).sum() / len(y)))
    best = ridge(gram, cross, w, 1e-9)
    assert error(best, gram, cross, power) < error(w, gram, cross, power)


def test_ridges_are_many_ridges(rng: np.random.Generator) -> None:
    gram, cross = moments(rng.standard_normal((40, 5)), rng.standard_normal((40, 3)))
    priors, strengths = [rng.standard_normal((3, 5)) for _ in range(2)], (1e-2, 1.0, 10.0)
    for made, strength in zip(ridges(gram, cross, priors, strengths), strengths, strict=True):
        for found, prior in zip(made, priors, strict=True):
            np.testing.assert_allclose(found, ridge(gram, cross, prior, strength), rtol=1e-10)


def test_channels_are_written_by_the_kept_ones(rng: np.random.Generator) -> None:
    """A consumer W of channels that depend on each other needs only some of them; what needs nothing else stays."""
    x = rng.standard_normal((400, 8))
    x[:, 5] = 2 * x[:, 0] - x[:, 2]
    sigma, kept, w = np.cov(x.T), np.array([0, 1, 2, 3, 4, 6, 7]), rng.standard_normal((3, 8))
    found = ridge(sigma[np.ix_(kept, kept)], w @ sigma[:, kept], w[:, kept], 1e-9)
    np.testing.assert_allclose(x[:, kept] @ found.T, x @ w.T, atol=1e-5)
