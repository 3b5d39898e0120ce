"""Laws of elements, against closed forms and against samples."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from onnxprune.expected.law import Floats, Law, combine, normal, unknown
from onnxprune.rules.base import Unknown

MEAN, VARIANCE = np.array([-2.0, -0.3, 0.0, 0.7, 3.0]), np.array([1.0, 0.5, 4.0, 2.0, 0.0])


def x() -> Law:
    return normal(MEAN, VARIANCE)


def through(law: Law, function: Callable[[Floats], Floats]) -> Law:
    return Law(function(law.table), law.root)


def test_a_normal_law_has_its_moments() -> None:
    np.testing.assert_allclose(x().mean, MEAN, atol=1e-9)
    np.testing.assert_allclose(x().variance, VARIANCE, rtol=1e-6)
    assert x().variance[4] == 0


def test_the_clipped_gaussian() -> None:
    """Nagel et al. 2019, appendix: the mean after a ReLU; where it is clipped above, the difference of two."""
    sigma = np.sqrt(VARIANCE[:4])

    def rectified(mean: Floats) -> Floats:
        return np.asarray(sigma * stats.norm.pdf(mean / sigma) + mean * stats.norm.cdf(mean / sigma))

    found = through(x(), lambda t: np.clip(t, 0, None)).mean
    np.testing.assert_allclose(found[:4], rectified(MEAN[:4]), atol=3e-3)
    assert found[4] == pytest.approx(3)
    found = through(x(), lambda t: np.clip(t, 0, 6)).mean
    np.testing.assert_allclose(found[:4], rectified(MEAN[:4]) - rectified(MEAN[:4] - 6), atol=3e-3)


def test_functions_of_the_same_variable_are_combined_exactly() -> None:
    a = x()
    gate = through(a, lambda t: 1 / (1 + np.exp(-t)))
    swish = combine(np.multiply, a, gate)
    drawn = MEAN + np.sqrt(VARIANCE) * np.random.default_rng(0).standard_normal((200_000, 5))
    np.testing.assert_allclose(swish.mean, (drawn / (1 + np.exp(-drawn))).mean(axis=0), atol=1e-2)
    np.testing.assert_allclose(combine(np.subtract, a, a).variance, 0, atol=1e-12)


def test_others_are_independent() -> None:
    a, b = x(), normal(MEAN[::-1].copy(), VARIANCE[::-1].copy())
    for function, mean, variance in (
        (np.add, a.mean + b.mean, a.variance + b.variance),
        (np.multiply, a.mean * b.mean, a.variance * b.variance + a.mean**2 * b.variance + b.mean**2 * a.variance),
    ):
        found = combine(function, a, b)
        np.testing.assert_allclose(found.mean, mean, atol=1e-9)
        np.testing.assert_allclose(found.variance, variance, rtol=1e-6)


def test_constants_and_what_is_not_known() -> None:
    two, nothing = Law(np.full((1, 5), 2.0)), unknown(1)
    assert combine(np.add, x(), two).mean.tolist() == pytest.approx((MEAN + 2).tolist())
    assert combine(np.add, two, two).table.tolist() == [[4.0] * 5]
    assert np.isnan(combine(np.add, x(), nothing).mean).all()
    mean, variance = x().along(0, 5)
    assert mean.tolist() == pytest.approx(MEAN.tolist()) and variance.tolist() == pytest.approx(VARIANCE.tolist())
    mean, variance = normal(MEAN[None], VARIANCE[None]).along(0, 3)  # channels and places change their roles
    assert mean.tolist() == pytest.approx([MEAN.mean()] * 3)
    assert variance.tolist() == pytest.approx([VARIANCE.mean() + MEAN.var()] * 3)


def test_what_is_too_much_is_not_computed() -> None:
    big = np.zeros((1, 512, 512))
    with pytest.raises(Unknown):
        combine(np.add, normal(big, big + 1), normal(big, big + 1))
