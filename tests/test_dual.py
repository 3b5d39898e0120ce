"""Weights fitted in the space of the rows are those that moments give."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune import sums
from onnxprune.dual import Near, at, dense, product, scaled
from onnxprune.moments import Rows

Floats = NDArray[np.float64]
STRENGTHS = (1e-2, 1.0, 100.0)


def rows(count: int, size: int, outputs: int, groups: int, seed: int = 0, dtype: Any = np.float64) -> Rows:
    """In two batches, far from zero, of features in different units; one is always zero."""
    rng, found = np.random.default_rng(seed), Rows()
    units = np.geomspace(0.1, 10, size)
    for part in (count // 3, count - count // 3):
        x = (rng.standard_normal((part, groups, size)) + 2) * units
        x[..., size // 2] = 0.0
        y = rng.standard_normal((part, groups, outputs)) + x[..., :1] - 3
        found.add(x.astype(dtype), y.astype(dtype))
    return found


@pytest.mark.parametrize("part", [7, 1 << 22])
@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_rows_and_moments_fit_alike(groups: int, free: bool, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "CHUNK", part)
    rng, seen, held = np.random.default_rng(1), rows(12, 40, 5, groups), rows(9, 40, 5, groups, seed=2)
    moments, check = seen.sums().moments(), held.sums().moments()
    priors = [rng.standard_normal((groups, 5, 40)) for _ in range(2)]
    mine, its = (each.ridges(priors, STRENGTHS, free) for each in (seen, moments))
    mine += seen.ridges([mine[1][0]], STRENGTHS, free)
    its += moments.ridges([its[1][0]], STRENGTHS, free)
    point = rng.standard_normal((groups, 40))
    for one, other in zip((w for made in mine for w in made), (w for made in its for w in made), strict=True):
        assert isinstance(one, Near) and not isinstance(other, Near)
        np.testing.assert_allclose(dense(one), other, rtol=0, atol=1e-8)
        np.testing.assert_allclose(at(one, point), at(other, point), rtol=0, atol=1e-7)
        np.testing.assert_allclose(seen.faded(one), moments.faded(other), rtol=1e-7)
        factor = rng.random((groups, 5))
        np.testing.assert_allclose(scaled(one, factor), other * factor[:, :, None], rtol=0, atol=1e-8)
        offset = seen.offset(one) if free else np.zeros((groups, 5))
        for judge, truth in ((seen, moments), (held, check)):
            assert judge.error(one, offset) == pytest.approx(truth.error(other, offset), rel=1e-8)


@pytest.mark.parametrize("free", [True, False])
def test_mixtures_of_targets(free: bool) -> None:
    """Those of channels are results, of which there may be more."""
    rng, seen = np.random.default_rng(1), rows(12, 20, 4, 2)
    through, prior = rng.standard_normal((2, 6, 4)), rng.standard_normal((2, 6, 20))
    mine, its = (each.ridges([prior], STRENGTHS, free, through) for each in (seen, seen.sums().moments()))
    for (one,), (other,) in zip(mine, its, strict=True):
        np.testing.assert_allclose(dense(one), dense(other), rtol=0, atol=1e-8)


def test_half_the_precision_is_enough() -> None:
    rng = np.random.default_rng(1)
    prior = rng.standard_normal((1, 3, 300)).astype(np.float32)
    seen, exact = rows(20, 300, 3, 1, dtype=np.float32), rows(20, 300, 3, 1)
    mine, its = (each.ridges([prior], STRENGTHS, True) for each in (seen, exact.sums().moments()))
    for (one,), (other,) in zip(mine, its, strict=True):
        found = dense(one)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, dense(other), rtol=0, atol=2e-5)


def test_features_that_are_all_zero_stay_where_they_are() -> None:
    seen, prior = Rows(), np.ones((1, 2, 8))
    seen.add(np.zeros((3, 1, 8)), np.ones((3, 1, 2)))
    for (found,) in seen.ridges([prior], STRENGTHS, True):
        np.testing.assert_array_equal(dense(found), prior)


def test_results_are_those_of_the_weights() -> None:
    rng = np.random.default_rng(0)
    w = Near(rng.standard_normal((2, 3, 5)), ((rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 4, 5))),) * 2)
    x = rng.standard_normal((2, 7, 5))
    np.testing.assert_allclose(product(w, x), x @ dense(w).swapaxes(1, 2))


def test_no_weights_are_copied_until_one_is_chosen() -> None:
    rng = np.random.default_rng(0)
    prior = rng.standard_normal((1, 1000, 6000), dtype=np.float32)
    seen, held = (rows(n, 6000, 1000, 1, dtype=np.float32) for n in (28, 4))
    tracemalloc.start()
    try:
        tried = [w for (w,) in seen.ridges([prior], STRENGTHS, True)]
        errors = [held.error(w, seen.offset(w)) for w in tried]
        before = tracemalloc.get_traced_memory()[1]
        assert before < 3 * sums.CHUNK * 8
        tracemalloc.reset_peak()
        made = dense(tried[int(np.argmin(errors))])
        assert tracemalloc.get_traced_memory()[1] < made.nbytes + 3 * sums.CHUNK * 8
    finally:
        tracemalloc.stop()
