"""What the weights say of how alike units are, against what is met."""

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import couple, load
from onnxprune.feeds import Feed
from onnxprune.kinship import Kinship
from onnxprune.observe import observe
from onnxprune.parts import Engine
from onnxprune.testing import Builder, close
from onnxprune.ties import Makers


def network(deep: bool, act: str) -> ModelProto:
    b = Builder(seed=1)
    y = b.op(act, b.conv(b.input("x", 16, 8, 16, 16), 12, 1, name="w1"))
    if deep:
        y = b.op(act, b.conv(y, 12, name="deep", group=12))
    return b.model(close(b, y))


def both(model: ModelProto, feeds: list[Feed]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The products by the weights, and in the data."""
    coupling = couple(load(model))
    makers = Makers(coupling, coupling.groups[0], {})
    moments = observe(coupling, feeds, Engine(threads=1)).moments
    return Kinship(coupling, {}).of(makers)[0], Kinship(coupling, {}, moments).of(makers)[0]


def white() -> list[Feed]:
    return [{"x": np.random.default_rng(0).standard_normal((16, 8, 16, 16)).astype(np.float32)}]


def test_linear_layers_on_white_noise_are_known() -> None:
    expected, met = both(network(False, "Identity"), white())
    assert np.abs(expected - met).max() < 0.05 * np.abs(met).max()


@pytest.mark.parametrize("act", ["Relu", "HardSwish", "Tanh"])
@pytest.mark.parametrize("deep", [False, True])
def test_behind_activations_and_kernels_they_are_alike(deep: bool, act: str) -> None:
    expected, met = both(network(deep, act), white())
    assert np.corrcoef(expected.ravel(), met.ravel())[0, 1] > 0.7


def test_an_error_counts_in_what_reads_it() -> None:
    coupling = couple(load(network(False, "Relu")))
    products, weights = Kinship(coupling, {}).of(Makers(coupling, coupling.groups[0], {}))
    assert float(weights @ np.diag(products)) == pytest.approx(1.0)


def test_where_no_law_is_known_filters_stand_for_themselves() -> None:
    b = Builder()
    y = b.op("LayerNormalization", b.input("x", 2, 5, 8), b.near_one(8), b.weight(8))
    y = b.op("Relu", b.op("Add", b.op("MatMul", y, b.weight(8, 16, name="up")), b.weight(16, name="shift")))
    coupling = couple(load(b.model(b.op("MatMul", y, b.weight(16, 3)))))
    products, _ = Kinship(coupling, {}).of(Makers(coupling, coupling.groups[0], {}))
    up, shift = (coupling.graph.array(name).astype(np.float64) for name in ("up", "shift"))
    np.testing.assert_allclose(products, up.T @ up + np.outer(shift, shift), atol=1e-6)
