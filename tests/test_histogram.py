"""Histograms whose range grows, against NumPy's of all values at once."""

import numpy as np
import pytest
from scipy.stats import entropy

from onnxprune.histogram import BINS, FINE, Histogram


def joined(*batches: np.ndarray) -> Histogram:
    found = Histogram.empty(batches[0].shape[1])
    for batch in batches:
        found = found.joined(batch.astype(np.float32))
    return found


def expected(values: np.ndarray) -> np.ndarray:
    """[channels]."""
    return np.array([entropy(np.histogram(v, bins=BINS)[0]) for v in values.astype(np.float32).T])


def test_of_one_batch_it_is_numpys() -> None:
    values = np.random.default_rng(0).standard_normal((1000, 5)) * [1, 10, 1e-6, 1e6, 1] + [0, 3, 0, 0, 1e3]
    found = joined(values)
    assert (found.counts.sum(axis=1) == 1000).all()
    np.testing.assert_allclose(found.entropy, expected(values), rtol=1e-3)


@pytest.mark.parametrize("order", ["random", "growing", "shrinking"])
def test_the_range_grows(order: str) -> None:
    """Values in any order, the greatest first or last: to a few hundredths what it is where the range is known."""
    values = np.maximum(
        np.random.default_rng(0).standard_normal((6000, 4)), [-9, 0, 1, -0.5]
    )  # with a peak, or without
    size = np.abs(values).max(axis=1)
    values = {"random": values, "growing": values[np.argsort(size)], "shrinking": values[np.argsort(-size)]}[order]
    found = joined(*np.split(values, 60))
    np.testing.assert_array_equal(found.low, values.astype(np.float32).min(axis=0))
    np.testing.assert_array_equal(found.high, values.astype(np.float32).max(axis=0))
    assert (found.counts.sum(axis=1) == 6000).all()
    np.testing.assert_allclose(found.entropy, expected(values), atol=0.05)


def test_channels_that_do_not_vary() -> None:
    values = np.tile([0.0, 5.0, -1e30], (10, 1))
    assert (joined(values, values).entropy == 0).all()
    grown = joined(values, values + np.array([1, 0, 0]))
    np.testing.assert_allclose(grown.entropy, [np.log(2), 0, 0])
    assert grown.counts[0, 0] == grown.counts[0, FINE - 1] == 10


def test_nothing() -> None:
    empty = Histogram.empty(3)
    assert empty.joined(np.zeros((0, 3))) is empty
    assert (empty.entropy == 0).all()


def test_the_old_one_stays() -> None:
    one = joined(np.ones((4, 2)))
    before = one.counts.copy()
    one.joined(np.zeros((4, 2)))
    np.testing.assert_array_equal(one.counts, before)
