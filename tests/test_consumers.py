"""Contractions as matrices: rows of features times weights are the results."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper

from onnxprune.consumers import Consumer, consumers
from onnxprune.coupling import couple
from onnxprune.graph import load
from onnxprune.patch import patched
from onnxprune.runtime import run, session
from onnxprune.testing import Builder, close

Array = NDArray[Any]


def images(kind: str, shape: tuple[int, ...], bias: bool = True, **attrs: Any) -> ModelProto:
    """A convolution between two others."""
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", 2, 3, 7, 8), 8, name="w1"))
    wide = shape[1] * attrs.get("group", 1) if kind == "ConvTranspose" else shape[0]
    extra = [b.weight(wide, name="b")] if bias else []
    y = b.op(kind, y, b.weight(*shape, name="w"), *extra, name="y", **attrs)
    return b.model(close(b, b.op("Relu", y)))


def rows(kind: str, shape: tuple[int, ...], bias: bool = True, **attrs: Any) -> ModelProto:
    """A Gemm or a MatMul between two others."""
    b = Builder()
    x = b.input("x", 4, 6) if kind == "Gemm" else b.input("x", 4, 5, 6)
    y = b.op("Relu", b.op("MatMul", x, b.weight(6, 8, name="w1")))
    extra = [b.weight(10, name="b")] if bias else []
    y = b.op("Relu", b.op(kind, y, b.weight(*shape, name="w"), *extra, name="y", **attrs))
    return b.model(b.op("MatMul", y, b.weight(10, 3, name="w2")))


CASES: dict[str, Callable[[], ModelProto]] = {
    "conv": lambda: images("Conv", (10, 8, 3, 3), pads=[1, 1, 1, 1]),
    "conv-no-bias": lambda: images("Conv", (10, 8, 3, 3), bias=False),
    "conv-stride-pads": lambda: images("Conv", (10, 8, 3, 2), strides=[2, 3], pads=[2, 0, 1, 1]),
    "conv-dilation": lambda: images("Conv", (10, 8, 3, 2), dilations=[2, 3], pads=[1, 2, 3, 0]),
    "conv-same-upper": lambda: images("Conv", (10, 8, 3, 4), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv-same-lower": lambda: images("Conv", (10, 8, 3, 4), auto_pad="SAME_LOWER", strides=[2, 1]),
    "conv-valid": lambda: images("Conv", (10, 8, 2, 2), auto_pad="VALID"),
    "conv-groups": lambda: images("Conv", (12, 4, 3, 3), group=2, pads=[1, 1, 1, 1]),
    "transpose": lambda: images("ConvTranspose", (8, 10, 3, 3), strides=[2, 2], pads=[1, 0, 1, 2]),
    "transpose-output-padding": lambda: images(
        "ConvTranspose", (8, 10, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]
    ),
    "transpose-dilation": lambda: images("ConvTranspose", (8, 10, 2, 3), strides=[1, 2], dilations=[3, 2]),
    "transpose-groups": lambda: images("ConvTranspose", (8, 6, 3, 3), strides=[2, 2], group=2),
    "gemm": lambda: rows("Gemm", (8, 10)),
    "gemm-trans": lambda: rows("Gemm", (10, 8), transB=1),
    "gemm-alpha-beta": lambda: rows("Gemm", (10, 8), transB=1, alpha=0.5, beta=3.0),
    "gemm-no-bias": lambda: rows("Gemm", (8, 10), bias=False, alpha=2.0),
    "matmul": lambda: rows("MatMul", (8, 10), bias=False),
}


def reader(model: ModelProto) -> Consumer:
    return next(c for c in consumers(couple(load(model))) if c.node.outputs[0] == "y")


def values(model: ModelProto, *names: str) -> list[Array]:
    """Inner values on seeded inputs."""
    full = ModelProto()
    full.CopyFrom(model)
    full.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names)
    ready = session(full, threads=1, optimize=False)
    rng = np.random.default_rng(3)
    feed = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in ready.get_inputs()}
    made = run(ready, feed)
    return [made[n] for n in names]


def product(found: Consumer, features: Array, weights: Array) -> Array:
    made = np.einsum("rgct,goct->rgo", features.astype(np.float64), weights)
    return np.asarray(made.reshape(len(made), -1))


@pytest.mark.parametrize("count", [3, 10_000])
@pytest.mark.parametrize("name", CASES)
def test_rows_times_weights(name: str, count: int) -> None:
    model = CASES[name]()
    found = reader(model)
    x, y = values(model, found.x.value, "y")
    places = found.places(x.shape, y.shape, count, np.random.default_rng(0))
    features, targets = found.features(x, places), found.targets(y, places)
    assert len(features) == len(targets) == min(y.size // targets.shape[1], count * len(y))
    np.testing.assert_allclose(product(found, features, found.weights) + found.offset, targets, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_same_weights_again(name: str) -> None:
    found = reader(CASES[name]())
    patch = found.patch(found.weights, found.offset if found.bias is not None else None)
    graph = found.coupling.graph
    for constant, value in patch.weights.items():
        np.testing.assert_allclose(value, graph.array(constant), rtol=1e-6, atol=1e-7)
    assert "w" in patch.weights
    for value in patch.inputs.values():
        assert not np.any(value)


@pytest.mark.parametrize("name", CASES)
def test_other_weights(name: str) -> None:
    """What is written is what the rows said."""
    found = reader(CASES[name]())
    rng = np.random.default_rng(5)
    weights, offset = rng.standard_normal(found.weights.shape), rng.standard_normal(found.offset.shape)
    free = found.bias is not None and found.spec.bias_slot is not None
    model = patched(found.coupling.graph, found.patch(weights, offset if free else None))
    x, y = values(model, found.x.value, "y")
    places = found.places(x.shape, y.shape, 20, rng)
    made = product(found, found.features(x, places), weights) + (offset if free else 0.0)
    np.testing.assert_allclose(made, found.targets(y, places), rtol=1e-4, atol=1e-4)


def test_weights_behind_a_transpose() -> None:
    b = Builder()
    y = b.op("Relu", b.op("MatMul", b.input("x", 4, 6), b.weight(6, 8, name="w1")))
    w = b.op("Transpose", b.weight(10, 8, name="w"), perm=[1, 0])
    y = b.op("Relu", b.op("MatMul", y, w, name="y"))
    model = b.model(b.op("MatMul", y, b.weight(10, 3, name="w2")))
    found = reader(model)
    patch = found.patch(found.weights, None)
    assert patch.weights.keys() == {found.constant}
    value = found.coupling.graph.array(found.constant)
    np.testing.assert_allclose(patch.weights[found.constant], value, rtol=1e-6)


def test_depthwise_channels_do_not_meet() -> None:
    found = reader(images("Conv", (8, 1, 3, 3), group=8))
    assert not found.mixes and found.groups == 8
    assert reader(CASES["conv-groups"]()).mixes


def test_a_gemm_that_ignores_its_weights() -> None:
    model = rows("Gemm", (8, 10), alpha=0.0)
    assert "y" not in {c.node.outputs[0] for c in consumers(couple(load(model)))}
