"""Statistics of values, against NumPy."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import calibrate as module
from onnxprune.calibrate import calibrate
from onnxprune.errors import DataError
from onnxprune.graph import load
from onnxprune.instrument import Want
from onnxprune.parts import Engine
from onnxprune.rules.base import Dim
from onnxprune.testing import Builder, close

Array = NDArray[Any]
ENGINE = Engine(threads=1)
X = Dim("x", 1)


def network(opset: int = 17) -> ModelProto:
    b = Builder(opset)
    y = b.op("Relu", b.conv(b.input("x", "N", 3, 4, 5), 6, name="w1"), name="inner")
    y = b.op("Log", b.op("Abs", y), name="bad")
    return b.model(close(b, b.op("Relu", y)))


def batches(*sizes: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((n, 3, 4, 5)) * [[[[1.0]], [[2.0]], [[3.0]]]] + 0.5 for n in sizes]
    return [{"x": m.astype(np.float32)} for m in made]


def flat(feeds: list[dict[str, Array]]) -> Array:
    """[places, channels]."""
    return np.concatenate([np.moveaxis(f["x"], 1, -1).reshape(-1, 3) for f in feeds]).astype(np.float64)


@pytest.mark.parametrize("opset", [11, 17])
def test_moments_are_numpys(opset: int) -> None:
    feeds = batches(4, 4, 3)
    want = Want.PAIRS | Want.ABSOLUTE | Want.RANKS
    found = calibrate(load(network(opset)), feeds, {X: want}, ENGINE, samples=11)[X]
    places = flat(feeds)
    assert found.count == len(places) and found.absolute is not None and found.ranks is not None
    np.testing.assert_allclose(found.absolute, np.abs(places).sum(axis=0), rtol=1e-4)
    np.testing.assert_array_equal(found.ranks, sum(np.linalg.matrix_rank(f["x"]).sum(axis=0) for f in feeds))
    np.testing.assert_allclose(found.mean, places.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.variance, places.var(axis=0), rtol=1e-4)
    assert found.rows == len(places)  # so few that all are taken, each once
    np.testing.assert_allclose(found.covariance, np.cov(places.T, bias=True), rtol=1e-3, atol=1e-4)


def test_an_inner_value() -> None:
    feeds = batches(5)
    found = calibrate(load(network()), feeds, {Dim("inner", 1): Want.SUMS}, ENGINE, samples=5)[Dim("inner", 1)]
    assert found.second is None and found.total.shape == (6,)
    np.testing.assert_allclose(found.covariance, np.diag(found.variance))


def test_another_axis() -> None:
    feeds = batches(3, 2)
    found = calibrate(load(network()), feeds, {X: Want.PAIRS, Dim("x", 3): Want.PAIRS}, ENGINE)
    x = np.concatenate([f["x"] for f in feeds]).astype(np.float64)
    np.testing.assert_allclose(found[Dim("x", 3)].mean, x.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[X].mean, x.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_it_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 16)
    graph, feeds = load(network()), batches(4, 4)
    one, two, other = (calibrate(graph, feeds, {X: Want.PAIRS}, ENGINE, samples=8, seed=s)[X] for s in (1, 1, 2))
    assert one.rows < one.count
    assert np.array_equal(one.covariance, two.covariance)
    assert not np.array_equal(one.covariance, other.covariance)
    assert np.array_equal(one.mean, other.mean)


@pytest.mark.parametrize("opset", [11, 17])
def test_zeros_are_counted_where_that_is_wanted(opset: int) -> None:
    """What is tiny, or negative, is not zero."""
    feeds = batches(4, 3)
    for feed in feeds:
        x = feed["x"]
        x[:, 0][x[:, 0] < 0] = -0.0
        x[:, 1] = 0
        x[:, 2] *= 1e-30
    wanted = {X: Want.ZEROS, Dim("x", 3): Want.SUMS, Dim("inner", 1): Want.ZEROS | Want.PAIRS}
    found = calibrate(load(network(opset)), feeds, wanted, ENGINE, samples=7)
    assert found[X].zeros is not None and found[Dim("x", 3)].zeros is None
    np.testing.assert_array_equal(found[X].zeros, (flat(feeds) == 0).sum(axis=0))
    inner = found[Dim("inner", 1)]
    assert inner.zeros is not None and inner.second is not None and inner.zeros.shape == (6,)
    assert 0 < inner.zeros.sum() < inner.count * 6


def test_a_histogram_of_the_sampled_places() -> None:
    feeds = batches(4, 4, 3)
    found = calibrate(load(network()), feeds, {X: Want.HISTOGRAM}, ENGINE, samples=11)[X]
    places = flat(feeds)
    assert found.histogram is not None and found.second is None and found.zeros is None
    np.testing.assert_array_equal(found.histogram.low, places.min(axis=0))
    np.testing.assert_array_equal(found.histogram.high, places.max(axis=0))
    assert (found.histogram.counts.sum(axis=1) == len(places)).all()


def test_nothing_is_sampled_where_nothing_needs_it() -> None:
    found = calibrate(load(network()), batches(4), {X: Want.ZEROS, Dim("x", 3): Want.PAIRS}, ENGINE)
    assert found[X].rows == 0 and found[Dim("x", 3)].rows > 0
    assert calibrate(load(network()), batches(4), {}, ENGINE) == {}


def test_memory_does_not_grow_with_the_samples() -> None:
    """What is kept is as large after a batch as after many."""
    want = Want.PAIRS | Want.ZEROS | Want.HISTOGRAM | Want.ABSOLUTE | Want.RANKS

    def held(*sizes: int) -> int:
        found = calibrate(load(network()), batches(*sizes), {X: want}, ENGINE)[X]
        assert found.histogram is not None
        parts = (*vars(found).values(), *vars(found.histogram).values())
        return sum(p.nbytes for p in parts if isinstance(p, np.ndarray))

    assert held(2) == held(*[2] * 20)


def test_channels_of_which_pairs_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DENSE", 2)
    assert calibrate(load(network()), batches(2), {X: Want.PAIRS}, ENGINE)[X].second is None


def test_values_that_are_not_finite() -> None:
    """The first value that has them is named; what is before it is fine."""
    for want in (Want.PAIRS, Want.ZEROS, Want.HISTOGRAM):
        wanted = dict.fromkeys((X, Dim("inner", 1), Dim("bad", 1)), want)
        with pytest.raises(DataError, match="'bad' has NaN or infinite"):
            calibrate(load(network()), batches(4), wanted, ENGINE)


def test_inputs_that_are_not_finite() -> None:
    feeds = batches(2)
    feeds[0]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="'x' has NaN or infinite"):
        calibrate(load(network()), feeds, {Dim("inner", 1): Want.PAIRS, X: Want.PAIRS}, ENGINE)
