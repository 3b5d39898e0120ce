"""Weights that a graph computes from weights are stored, where that makes nothing larger."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import inspect, load
from onnxprune.testing import Builder, prove


def standardised(b: Builder, weight: str) -> str:
    """Each filter without its mean, over its deviation, as in networks without BatchNormalization."""
    centred = b.op("Sub", weight, b.op("ReduceMean", weight, axes=[1, 2, 3]))
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), axes=[1, 2, 3])
    return b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, 1e-5)))


def network(b: Builder) -> str:
    x = b.input("x", 2, 3, 6, 6)
    y = b.op("Conv", x, standardised(b, b.weight(8, 3, 3, 3, name="w1")), pads=[1] * 4)
    return b.op("Conv", b.op("Relu", y), standardised(b, b.weight(4, 8, 3, 3, name="w2")), pads=[1] * 4)


def test_standardised_weights_can_be_cut() -> None:
    b = Builder()
    y = network(b)
    folded = load(b.model(y)).folded
    assert len(folded) == 2
    result = prove(b.model(y))
    assert [result.shape(name) for name in folded] == [(4, 3, 3, 3), (4, 4, 3, 3)]
    assert {n.op_type for n in result.model.graph.node} == {"Conv", "Relu"}
    assert not any(t.name in ("w1", "w2") for t in result.model.graph.initializer)


def test_the_function_is_the_same(tmp_path: Path) -> None:
    from onnxprune.feeds import random_feeds
    from onnxprune.runtime import session

    b = Builder()
    model = b.model(network(b))
    feed = random_feeds(model)[0]
    before = session(model, threads=1).run(None, feed)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    after = session(load(tmp_path / "m.onnx").proto, threads=1).run(None, feed)
    np.testing.assert_allclose(before[0], after[0], rtol=1e-4, atol=1e-5)


def test_a_constant_that_others_read_is_not_stored_twice() -> None:
    b = Builder()
    y = network(b)
    y = b.op("Add", y, b.op("ReduceMean", "w1"))
    graph = load(b.model(y))
    assert len(graph.folded) == 1
    assert {"w1"} <= graph.constants.keys()
    prove(b.model(y))


def test_what_would_grow_is_computed_as_before() -> None:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    table = b.op("Mul", b.weight(8, 1, 1), b.weight(6, 6))
    y = b.op("Relu", b.op("Add", y, table))
    model = b.model(b.conv(y, 4, 1, name="w2"))
    assert load(model).folded == ()
    assert prove(model).can_cut("w1")


def test_what_is_quantised_stays_so() -> None:
    b = Builder()
    weight = b.op("QuantizeLinear", standardised(b, b.weight(8, 3, 3, 3)), np.float32(0.1), np.int8(0))
    y = b.op("Conv", b.input("x", 2, 3, 6, 6), b.op("DequantizeLinear", weight, np.float32(0.1), np.int8(0)))
    ops = [n.op for n in load(b.model(y)).nodes]
    assert ops == ["QuantizeLinear", "DequantizeLinear", "Conv"]


@pytest.mark.parametrize("kind", ["Transpose", "Reshape"])
def test_a_change_of_place_is_no_reason_to_fold(kind: str) -> None:
    b = Builder()
    w = b.weight(12, 8, name="w1", fan=12)
    w = b.op("Transpose", w, perm=[1, 0]) if kind == "Transpose" else b.op("Reshape", w, [8, 12])
    y = b.op("Gemm", b.input("x", 2, 12), w, transB=1)
    model = b.model(b.gemm(b.op("Relu", y), 4, "w2"))
    assert load(model).folded == ()


def test_the_record_says_so() -> None:
    b = Builder()
    assert len(inspect(b.model(network(b)))["folded"]) == 2


@pytest.mark.parametrize("version", [3, 8])
def test_what_can_be_fed_is_not_folded(version: int) -> None:
    """An initializer that is an input, too, is a default; before IR version 4 all of them are."""
    b = Builder(opset=8, ir_version=version)
    y = b.op("Conv", b.input("x", 2, 3, 6, 6), standardised(b, b.weight(8, 3, 3, 3, name="w1")))
    model = b.model(b.op("Relu", y))
    if version > 3:
        model.graph.input.append(onnx.helper.make_tensor_value_info("w1", onnx.TensorProto.FLOAT, [8, 3, 3, 3]))
    assert load(model).folded == ()


def test_a_node_of_which_one_output_stays_computed() -> None:
    """The second half is too small to be stored as a weight; one node cannot make half of its outputs."""
    b = Builder()
    large, small = b.ops("Split", standardised(b, b.weight(9, 3, 3, 3, name="w1")), [8, 1], outputs=2, axis=0)
    x = b.input("x", 2, 3, 6, 6)
    y = b.op("Conv", b.op("Relu", b.op("Conv", x, large)), b.weight(4, 8, 1, 1, name="w2"))
    model = b.model(b.op("Add", y, b.op("Conv", x, small)))
    onnx.checker.check_model(load(model).proto)
    prove(model)


def test_what_cannot_be_computed_or_stored_stays() -> None:
    b = Builder()
    x = b.input("x", 2, 3, 6, 6)
    parts = b.op("SplitToSequence", standardised(b, b.weight(16, 3, 3, 3, name="w1")), [8, 8], axis=0)
    which = b.op("Sub", b.op("Squeeze", b.op("Gather", b.op("Cast", b.op("ReduceMax", x, keepdims=1), to=7), [0])), 1)
    b.declare(b.op("Conv", x, b.op("SequenceAt", parts, which), name="y"), 2, 8, 4, 4)
    assert load(b.model("y")).folded == ()
    b.op("Add", x, b.op("Reshape", b.op("Mul", "w1", "w1"), [5, 5]))  # nobody runs it
    assert load(b.model("y")).folded == ()
