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
    found = calibrate(load(network(opset)), feeds, {X: True}, ENGINE, samples=11)[X]
    places = flat(feeds)
    assert found.count == len(places)
    np.testing.assert_allclose(found.mean, places.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.variance, places.var(axis=0), rtol=1e-4)
    assert found.rows == len(places)  # so few that all are taken, each once
    np.testing.assert_allclose(found.covariance, np.cov(places.T, bias=True), rtol=1e-3, atol=1e-4)


def test_an_inner_value() -> None:
    feeds = batches(5)
    found = calibrate(load(network()), feeds, {Dim("inner", 1): False}, ENGINE, samples=5)[Dim("inner", 1)]
    assert found.second is None and found.total.shape == (6,)
    np.testing.assert_allclose(found.covariance, np.diag(found.variance))


def test_another_axis() -> None:
    feeds = batches(3, 2)
    found = calibrate(load(network()), feeds, {X: True, Dim("x", 3): True}, ENGINE)
    x = np.concatenate([f["x"] for f in feeds]).astype(np.float64)
    np.testing.assert_allclose(found[Dim("x", 3)].mean, x.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[X].mean, x.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_it_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 16)
    graph, feeds = load(network()), batches(4, 4)
    one, two, other = (calibrate(graph, feeds, {X: True}, ENGINE, samples=8, seed=s)[X] for s in (1, 1, 2))
    assert one.rows < one.count
    assert np.array_equal(one.covariance, two.covariance)
    assert not np.array_equal(one.covariance, other.covariance)
    assert np.array_equal(one.mean, other.mean)


def test_channels_of_which_pairs_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DENSE", 2)
    assert calibrate(load(network()), batches(2), {X: True}, ENGINE)[X].second is None


def test_values_that_are_not_finite() -> None:
    """The first value that has them is named; what is before it is fine."""
    wanted = {X: True, Dim("inner", 1): True, Dim("bad", 1): True}
    with pytest.raises(DataError, match="'bad' has NaN or infinite"):
        calibrate(load(network()), batches(4), wanted, ENGINE)


def test_inputs_that_are_not_finite() -> None:
    feeds = batches(2)
    feeds[0]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="'x' has NaN or infinite"):
        calibrate(load(network()), feeds, {Dim("inner", 1): True, X: True}, ENGINE)
