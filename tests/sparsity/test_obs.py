"""SparseGPT against least squares solved directly."""

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.sparsity.obs import factor, prune, settle
from onnxprune.sparsity.patterns import Grid

Floats = NDArray[np.float64]


def problem(groups: int = 2, outputs: int = 5, columns: int = 12) -> tuple[Floats, Floats]:
    """Weights, and second moments of columns that are like their neighbours."""
    rng = np.random.default_rng(0)
    mix = 0.8 ** np.abs(np.subtract.outer(np.arange(columns), np.arange(columns)))
    x = rng.standard_normal((groups, 4 * columns, columns)) @ mix
    return rng.standard_normal((groups, outputs, columns)), x.swapaxes(1, 2) @ x / (4 * columns)


def error(change: Floats, gram: Floats) -> float:
    return float(np.einsum("gof,gfh,goh->", change, gram, change))


def test_the_factor_is_of_the_inverse() -> None:
    _, gram = problem()
    u = factor(gram, 0.1)
    damped = gram + 0.1 * np.trace(gram, axis1=1, axis2=2)[:, None, None] / 12 * np.eye(12)
    np.testing.assert_allclose(u.swapaxes(1, 2) @ u, np.linalg.inv(damped), rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(u, np.triu(u))


def test_columns_that_are_always_zero() -> None:
    u = factor(np.zeros((1, 4, 4)), 0.01)
    assert np.isfinite(u).all()


@pytest.mark.parametrize("column", [0, 5, 11])
def test_one_weight_a_row_is_the_optimal_brain_surgeon(column: int) -> None:
    """Where the removed one comes first, all others make up for it; else those to its right do, as OBS has it there."""
    w, gram = problem()
    mask = np.zeros(12, dtype=bool)
    mask[column] = True
    after, gone = prune(w, factor(gram, 1e-9), Grid(1, 1), lambda s: np.broadcast_to(mask, s.shape))
    assert (gone == mask).all() and not after[gone].any()
    inverse = np.linalg.inv(gram[:, column:, column:])
    step = w[..., column, None] / inverse[:, None, 0, 0, None] * inverse[:, None, 0]
    np.testing.assert_array_equal(after[..., :column], w[..., :column])
    np.testing.assert_allclose(after[..., column:], w[..., column:] - step, atol=1e-6)


def test_the_first_column_is_least_squares() -> None:
    w, gram = problem()
    mask = np.arange(12) == 0
    after, _ = prune(w, factor(gram, 1e-9), Grid(1, 1), lambda s: np.broadcast_to(mask, s.shape))
    for g in range(2):
        best = np.linalg.solve(gram[g][1:, 1:], gram[g][1:] @ w[g].T).T
        np.testing.assert_allclose(after[g][:, 1:], best, atol=1e-6)


@pytest.mark.parametrize("block", [128, 5])  # all columns are within one, or in several
def test_a_given_mask(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OBS has it, one weight after the other; least squares follow, and are better than no update."""
    monkeypatch.setattr("onnxprune.sparsity.obs.BLOCK", block)
    columns = 12
    w, gram = problem(columns=columns)
    wanted = np.random.default_rng(1).random((2, 5, columns)) < 0.5
    at = 0

    def choose(scores: Floats) -> NDArray[np.bool_]:
        nonlocal at
        at += scores.shape[2]
        return wanted[..., at - scores.shape[2] : at]

    after, gone = prune(w, factor(gram, 1e-9), Grid(1, 1), choose)
    np.testing.assert_array_equal(gone, wanted)
    one_by_one, best = w.copy(), np.zeros_like(w)
    for g, j in np.ndindex(2, columns):
        inverse = np.linalg.inv(gram[g, j:, j:])
        these = wanted[g, :, j]
        one_by_one[g, these, j:] -= one_by_one[g, these, j, None] / inverse[0, 0] * inverse[0]
    np.testing.assert_allclose(after, np.where(wanted, 0, one_by_one), atol=1e-5)
    for g, o in np.ndindex(2, 5):
        kept = ~wanted[g, o]
        best[g, o, kept] = np.linalg.solve(gram[g][np.ix_(kept, kept)], gram[g][kept] @ w[g, o])
    settled = settle(w, after, gone, gram, 1e-9, steps=1000)
    assert not settled[gone].any()
    assert 0.999 * error(best - w, gram) < error(settled - w, gram) < 1.01 * error(best - w, gram)
    assert error(settled - w, gram) < 0.3 * error(np.where(wanted, w, 0), gram)


def test_choosing_on_the_way_is_better_than_magnitude() -> None:
    w, gram = problem(columns=150)
    grid = Grid(1, 1)
    after, gone = prune(w, factor(gram, 0.01), grid, grid.choose(0.5))
    assert gone.sum() == gone.size // 2
    small = grid.choose(0.5)(np.abs(w))
    assert error(after - w, gram) < 0.4 * error(np.where(small, w, 0), gram)
    settled = settle(w, after, gone, gram, 0.01)
    assert error(settled - w, gram) < 0.6 * error(after - w, gram)


def test_n_of_m_is_chosen_with_what_was_updated() -> None:
    w, gram = problem(columns=16)
    grid = Grid(1, 4, 2)
    u = factor(gram, 0.01)
    after, gone = prune(w, u, grid, grid.choose(0.0))
    assert (gone.reshape(2, 5, 4, 4).sum(axis=3) == 2).all() and grid.holds(after)
    # The first neighbours are those of the dense weights.
    scores = np.square(w[..., :4]) / np.square(np.diagonal(u, axis1=1, axis2=2))[:, None, :4]
    lowest = np.sort(np.argsort(scores, axis=2)[..., :2])
    np.testing.assert_array_equal(lowest, np.nonzero(gone[..., :4])[2].reshape(2, 5, 2))


def test_nothing_is_changed_in_place() -> None:
    w, gram = problem()
    before = w.copy()
    prune(w, factor(gram, 0.1), Grid(1, 3), Grid(1, 3).choose(0.5))
    np.testing.assert_array_equal(w, before)
