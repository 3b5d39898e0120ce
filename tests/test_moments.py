"""Moments of rows that come in batches, and the error of weights by moments and by rows."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune import moments
from onnxprune.moments import Moments, Rows, Sums

Floats = NDArray[np.float64]
ALL = slice(None)


@pytest.fixture
def rows() -> tuple[Floats, Floats]:
    """[rows, groups, features] and [rows, groups, targets], far from zero."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 2, 7)) @ rng.standard_normal((7, 7)) + 5
    return x, rng.standard_normal((90, 2, 3)) + x[..., :3] - 2


def collected(x: NDArray[Any], y: NDArray[Any], workers: int = 1, batch: int = 20) -> Moments:
    sums = Sums(workers)
    for at in range(0, len(x), batch):
        sums.add(x[at : at + batch], y[at : at + batch])
    return sums.moments()


@pytest.mark.parametrize("at_once", [1, 33, 1000])
@pytest.mark.parametrize("columns", [1, 3, 100])
def test_moments_are_those_of_all_rows(
    rows: tuple[Floats, Floats], monkeypatch: pytest.MonkeyPatch, at_once: int, columns: int
) -> None:
    monkeypatch.setattr(moments, "AT_ONCE", at_once)
    monkeypatch.setattr(moments, "COLUMNS", columns)
    (x, y), found = rows, collected(*rows)
    for group in range(2):
        full = np.cov(x[:, group].T, y[:, group].T, bias=True)
        np.testing.assert_allclose(found.xx[group], full[:7, :7])
        np.testing.assert_allclose(found.yx[group], full[7:, :7])
        np.testing.assert_allclose(found.yy[group], np.diag(full)[7:])
        np.testing.assert_allclose(found.x[group], x[:, group].mean(axis=0))
    gram, cross = found.second(False)
    np.testing.assert_allclose(gram, np.einsum("ngf,ngh->gfh", x, x) / len(x))
    np.testing.assert_allclose(cross, np.einsum("ngo,ngf->gof", y, x) / len(x))


def test_any_number_of_workers_gives_the_same(rows: tuple[Floats, Floats], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "COLUMNS", 2)
    np.testing.assert_array_equal(collected(*rows).xx, collected(*rows, workers=3).xx)


def test_sums_of_two_parts(rows: tuple[Floats, Floats]) -> None:
    x, y = rows
    both, whole = collected(x[:30], y[:30]) + collected(x[30:], y[30:]), collected(x, y)
    assert both.count == whole.count == 90
    for name in ("x", "y", "xx", "yx", "yy"):
        np.testing.assert_allclose(getattr(both, name), getattr(whole, name))


def test_features_that_hardly_vary(rows: tuple[Floats, Floats]) -> None:
    """Their covariance is more than rounding, in half the precision."""
    x, y = (np.float32(1e-3) * r.astype(np.float32) + np.float32(64) for r in rows)
    found = collected(x, y).xx[0]
    np.testing.assert_allclose(found, np.cov(x[:, 0].T.astype(np.float64), bias=True), rtol=1e-3)
    assert np.linalg.eigvalsh(found).min() > 0


@pytest.mark.parametrize("free", [True, False])
def test_rows_and_moments_judge_alike(rows: tuple[Floats, Floats], free: bool) -> None:
    (x, y), rng = rows, np.random.default_rng(1)
    one, other = Rows(), Rows()
    one.add(x[:40], y[:40])
    one.add(x[40:70], y[40:70])
    other.add(x[70:], y[70:])
    w, some = rng.standard_normal((2, 2, 7)), slice(1, 3)
    by_rows, by_moments = (one + other).only(some), one.sums().moments().only(some) + other.sums().moments().only(some)
    offset = by_moments.offset(w) + 0.1 if free else np.zeros((2, 2))
    missed = y[..., some] - np.einsum("gof,ngf->ngo", w, x) - offset
    expected = np.square(missed).sum() / len(x)
    assert by_rows.error(w, offset) == pytest.approx(expected)
    assert by_moments.error(w, offset) == pytest.approx(expected)
    assert by_rows.power(free) == pytest.approx(by_moments.power(free))
    np.testing.assert_allclose(by_rows.offset(w), by_moments.offset(w))
    np.testing.assert_allclose(by_rows.faded(w), by_moments.faded(w))


def test_variance_is_given_back() -> None:
    """Results that least squares shrinks vary as the original's again, where that is asked for."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4096, 1, 3))
    w = rng.standard_normal((1, 2, 3))
    found = collected(x, np.einsum("gof,ngf->ngo", 2 * w, x) + 0.1)
    np.testing.assert_allclose(found.faded(w), 2.0, rtol=1e-6)
    np.testing.assert_allclose(found.faded(4 * w), 1.0)  # nothing shrinks
    np.testing.assert_allclose(found.faded(w * 1e-3), 1.0)  # what stands still is not blown up
