"""Centroids in place of units."""

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import couple, load
from onnxprune.clusters import Clusters
from onnxprune.patch import patched
from onnxprune.runtime import run, session
from onnxprune.testing import Builder, close
from onnxprune.ties import Makers, norms

LABELS = np.arange(32) // 4


def network(normed: bool) -> ModelProto:
    b = Builder()
    y = b.conv(b.input("x", 8, 3, 16, 16), 32, name="w1")
    return b.model(close(b, b.op("Relu", b.batch_norm(y, "n") if normed else y)))


def tied(model: ModelProto, variance: bool) -> ModelProto:
    coupling = couple(load(model))
    (group,) = coupling.groups
    makers = Makers(coupling, group, {dim: norm for norm in norms(coupling) for dim in norm.dims})
    assert makers.able
    return patched(coupling.graph, makers.tied(Clusters(LABELS, np.ones(32)), variance))


def activations(model: ModelProto) -> NDArray[np.float64]:
    """[channel, places]: what the ReLU reads."""
    probe, feed = ModelProto(), {"x": np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32)}
    probe.CopyFrom(model)
    value = next(n.input[0] for n in probe.graph.node if n.op_type == "Relu")
    probe.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
    made = np.moveaxis(run(session(probe, threads=1), feed)[value], 1, 0)
    return np.asarray(made.reshape(32, -1), dtype=np.float64)


@pytest.mark.parametrize("normed", [True, False])
def test_a_centroid_is_the_mean_of_what_its_units_make(normed: bool) -> None:
    before, after = activations(network(normed)), activations(tied(network(normed), False))
    np.testing.assert_allclose(after, np.repeat(before.reshape(8, 4, -1).mean(axis=1), 4, axis=0), atol=1e-5)


@pytest.mark.parametrize("normed", [True, False])
def test_variance_is_given_back(normed: bool) -> None:
    def power(model: ModelProto) -> float:
        return float(activations(model).var(axis=1).mean())

    whole, faded, restored = (
        power(m) for m in (network(normed), tied(network(normed), False), tied(network(normed), True))
    )
    assert faded < 0.5 * whole
    assert abs(restored / whole - 1) < 0.1


def test_a_norm_whose_contraction_others_read_is_averaged_by_itself() -> None:
    b = Builder()
    y = b.conv(b.input("x", 1, 3, 8, 8), 32, name="w1")
    coupling = couple(load(b.model(close(b, b.op("Add", b.batch_norm(y, "n"), y)))))
    assert norms(coupling) == []


def test_filters_that_are_never_scaled_up_from_zero() -> None:
    model = network(True)
    for tensor in model.graph.initializer:
        if tensor.name == "n.scale":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(32, np.float32), tensor.name))
    made = activations(tied(model, True))
    assert np.isfinite(made).all() and np.ptp(made, axis=1).max() < 1e-6
