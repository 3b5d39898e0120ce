"""LSTM, GRU and RNN: hidden units go with their rows, columns and outputs."""

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from onnxprune.rules.recurrent import GATES
from onnxprune.testing import Builder, OracleResult, prove

SEQUENCE, BATCH, INPUTS, HIDDEN = 5, 2, 6, 4


def layer(b: Builder, kind: str, x: str, bias: bool = True, **attrs: Any) -> list[str]:
    """A recurrent layer named w, r, b; all its outputs."""
    ways = 2 if attrs.get("direction") == "bidirectional" else 1
    rows, count = GATES[kind] * HIDDEN, b.shape(x)[2]
    w = b.weight(ways, rows, count, name="w", fan=count)
    r = b.weight(ways, rows, HIDDEN, name="r", fan=HIDDEN)
    extra = [b.weight(ways, 2 * rows, name="b", fan=4)] if bias else []
    return b.ops(kind, x, w, r, *extra, hidden_size=HIDDEN, outputs=3 if kind == "LSTM" else 2, **attrs)


def network(kind: str, last_state: bool = False, bias: bool = True, **attrs: Any) -> OracleResult:
    """MatMul `w1`, the layer, MatMul `w2` on its outputs or on its last state."""
    b = Builder()
    x = b.op("MatMul", b.input("x", SEQUENCE, BATCH, 3), b.weight(3, INPUTS, name="w1", fan=3))
    y, state, *_ = layer(b, kind, x, bias, **attrs)
    axis = [0 if last_state else 1]
    picked = b.op("Squeeze", b.op("Slice", state if last_state else y, [0], [1], axis), axis)
    return prove(b.model(b.op("MatMul", picked, b.weight(HIDDEN, 3, name="w2"))))


@pytest.mark.parametrize("last_state", [False, True], ids=["sequence", "last state"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_hidden_units(kind: str, direction: str, last_state: bool) -> None:
    result = network(kind, last_state, direction=direction)
    assert result.choices("w", 1) == result.choices("r", 1) == result.choices("r", 2) == [HIDDEN]
    assert result.choices("b", 1) == result.choices("w2") == [HIDDEN]
    assert result.choices("w1", 1) == result.choices("w", 2) == [INPUTS]
    assert result.shape("r")[1:] == (GATES[kind] * 2, 2)
    assert next(a.i for n in result.model.graph.node for a in n.attribute if a.name == "hidden_size") == 2


@pytest.mark.parametrize("kind", GATES)
def test_without_bias(kind: str) -> None:
    assert network(kind, bias=False).choices("r", 2) == [HIDDEN]


def test_gru_that_resets_after_the_product() -> None:
    assert network("GRU", linear_before_reset=1).choices("r", 2) == [HIDDEN]


@pytest.mark.parametrize("function", ["Relu", "Sigmoid"])
def test_other_activations(function: str) -> None:
    """A Sigmoid leaves removed units at one half in the masked original: their columns are cut, so no harm is done."""
    assert network("RNN", activations=[function]).choices("r", 2) == [HIDDEN]


def test_peepholes_and_initial_states() -> None:
    b = Builder()
    x = b.input("x", SEQUENCE, BATCH, 3)
    w, r = b.weight(1, 16, 3, name="w", fan=3), b.weight(1, 16, 4, name="r", fan=4)
    states = [b.weight(1, BATCH, 4, name=name) for name in ("h0", "c0")]
    y, *_ = b.ops("LSTM", x, w, r, None, None, *states, b.weight(1, 12, name="p"), hidden_size=4, outputs=3)
    result = prove(b.model(b.op("MatMul", b.op("Squeeze", y, [1]), b.weight(4, 3, name="w2"))))
    assert result.choices("p", 1) == result.choices("h0", 2) == result.choices("c0", 2) == [4]
    assert result.shape("p") == (1, 6)


def test_a_state_that_is_an_input_locks() -> None:
    b = Builder()
    x, h0 = b.input("x", SEQUENCE, BATCH, 3), b.input("h0", 1, BATCH, 4)
    w, r = b.weight(1, 12, 3, name="w", fan=3), b.weight(1, 12, 4, name="r", fan=4)
    y, _ = b.ops("GRU", x, w, r, None, None, h0, hidden_size=4, outputs=2)
    result = prove(b.model(b.op("MatMul", b.op("Squeeze", y, [1]), b.weight(4, 3, name="w2"))))
    assert result.reason("r", 2) == "a graph input"


def test_lengths_of_sequences() -> None:
    b = Builder()
    x, lengths = b.input("x", SEQUENCE, BATCH, 3), b.const(np.array([3, 5], dtype=np.int32))
    w, r = b.weight(1, 12, 3, name="w", fan=3), b.weight(1, 12, 4, name="r", fan=4)
    _, last = b.ops("GRU", x, w, r, None, lengths, hidden_size=4, outputs=2)
    result = prove(b.model(b.op("MatMul", b.op("Squeeze", last, [0]), b.weight(4, 3, name="w2"))))
    assert result.choices("r", 2) == [4]


@pytest.mark.parametrize("kind", GATES)
def test_zeros_of_hidden_units(kind: str) -> None:
    """A sum over the hidden units does not miss a removed one: it stays at zero."""
    b = Builder()
    y, *_ = layer(b, kind, b.input("x", SEQUENCE, BATCH, 3))
    result = prove(b.model(b.op("ReduceSum", y, [3])))
    assert result.choices("r", 2) == [HIDDEN]


@pytest.mark.parametrize(
    ("kind", "functions"), [("RNN", ["Sigmoid"]), ("GRU", ["Sigmoid", "Sigmoid"]), ("LSTM", ["Sigmoid"] * 3)]
)
def test_hidden_units_that_do_not_stay_at_zero(kind: str, functions: list[str]) -> None:
    b = Builder()
    y, *_ = layer(b, kind, b.input("x", SEQUENCE, BATCH, 3), activations=functions)
    result = prove(b.model(b.op("ReduceSum", y, [3])))
    assert not result.can_cut("r", 2)


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("which", ["w", "r", "b"])
def test_weights_that_are_computed(which: str, summed: bool) -> None:
    """exp(w) is not zero where w is."""
    b = Builder()
    w, r, c = b.weight(1, 12, 3, name="w"), b.weight(1, 12, 4, name="r"), b.weight(1, 24, name="b")
    read = [b.op("Exp", b.op("Mul", v, 0.1)) if name == which else v for v, name in ((w, "w"), (r, "r"), (c, "b"))]
    y, _ = b.ops("GRU", b.input("x", SEQUENCE, BATCH, 3), *read, hidden_size=4, outputs=2)
    z = b.op("MatMul", b.op("Squeeze", y, [1]), b.weight(4, 3, name="w2"))
    result = prove(b.model(z, *([b.op("ReduceSum", y, [3])] if summed else [])))
    assert result.can_cut("r", 2) == (which in "wb" and not summed)


def test_stacked_layers_with_a_batch_first_transpose() -> None:
    """torch's nn.LSTM with two layers, both directions merged by Transpose and Reshape."""
    b = Builder()
    y = b.op("Transpose", b.input("x", BATCH, SEQUENCE, 3), perm=[1, 0, 2])
    for i in range(2):
        count = b.shape(y)[2]
        w, r = b.weight(2, 16, count, name=f"w{i}", fan=count), b.weight(2, 16, 4, name=f"r{i}", fan=4)
        y = b.ops("LSTM", y, w, r, hidden_size=4, direction="bidirectional", outputs=3)[0]
        y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, -1])
    result = prove(b.model(b.op("MatMul", y, b.weight(8, 3, name="out"))))
    assert result.choices("r0", 2) == result.choices("w1", 2) == [4]
    assert result.choices("r1", 2) == result.choices("out") == [4]


def by_the_book(model: ModelProto, feeds: Any) -> list[dict[str, Any]]:
    run = ReferenceEvaluator(model)
    return [dict(zip(run.output_names, run.run(None, feed), strict=True)) for feed in feeds]


@pytest.mark.parametrize("kind", GATES)
def test_batch_first(kind: str) -> None:
    """ONNX Runtime has no kernel for this layout; ONNX's reference has."""
    b = Builder()
    w, r = b.weight(1, GATES[kind] * 4, 6, name="w", fan=6), b.weight(1, GATES[kind] * 4, 4, name="r", fan=4)
    x = b.op("MatMul", b.input("x", BATCH, SEQUENCE, 3), b.weight(3, 6, name="w1", fan=3))
    start = b.weight(BATCH, 1, 4, name="start", fan=4)
    y, last = b.ops(kind, x, w, r, None, None, start, hidden_size=4, layout=1, outputs=2)
    b.declare(y, BATCH, SEQUENCE, 1, 4)
    b.declare(last, BATCH, 1, 4)
    out = b.op("MatMul", b.op("Squeeze", y, [2]), b.weight(4, 3, name="w2"))
    end = b.op("MatMul", b.op("Squeeze", last, [1]), b.weight(4, 3, name="w3"))
    result = prove(b.model(out, end), evaluate=by_the_book)
    assert result.choices("r", 2) == result.choices("w2") == result.choices("start", 2) == [4]
    assert result.choices("w1", 1) == [6]


def quantised(b: Builder, y: str, columns: bool, point: int = 0, **attrs: Any) -> list[str]:
    """DynamicQuantizeLSTM of six inputs and four units."""
    ways = 2 if attrs.get("direction") == "bidirectional" else 1
    weights = [
        b.const(b.rng.integers(-127, 128, (ways, n, 16)).astype(np.int8), name) for n, name in ((6, "w"), (4, "r"))
    ]
    shape = (ways, 16) if columns else (ways,)
    scales = [b.const(b.rng.uniform(0.004, 0.006, shape).astype(np.float32), f"{name}.scale") for name in "wr"]
    points = [np.full(shape, point, np.int8)] * 2
    rest: list[Any] = [scales[0], points[0], scales[1], points[1]]
    bias = b.weight(ways, 32, name="b", fan=9)
    kind = "com.microsoft::DynamicQuantizeLSTM"
    outputs = b.ops(kind, y, *weights, bias, None, None, None, None, *rest, hidden_size=4, outputs=3, **attrs)
    b.declare(outputs[0], SEQUENCE, ways, BATCH, 4)
    return [outputs[0], *(b.declare(state, ways, BATCH, 4) for state in outputs[1:])]


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("columns", [False, True], ids=["one scale", "a scale for each gate row"])
def test_quantised(columns: bool, direction: str) -> None:
    b = Builder(**{"com.microsoft": 1})
    x = b.op("MatMul", b.input("x", SEQUENCE, BATCH, 3), b.weight(3, 6, name="w1", fan=3))
    y, _, _ = quantised(b, x, columns, direction=direction)
    y = b.op("Squeeze", b.op("Slice", y, [0], [1], [1]), [1])
    result = prove(b.model(b.op("MatMul", y, b.weight(4, 3, name="w2"))))
    assert result.choices("r", 1) == result.choices("w", 2) == result.choices("b", 1) == result.choices("w2") == [4]
    assert result.choices("w1", 1) == result.choices("w", 1) == [6]


def test_a_range_that_spans_what_is_not_zero_locks() -> None:
    b = Builder(**{"com.microsoft": 1})
    x = b.op("Sigmoid", b.op("MatMul", b.input("x", SEQUENCE, BATCH, 3), b.weight(3, 6, name="w1", fan=3)))
    y, _, _ = quantised(b, x, False, activations=["Sigmoid"] * 3)
    result = prove(b.model(b.op("MatMul", b.op("Squeeze", y, [1]), b.weight(4, 3, name="w2"))))
    assert result.reason("w", 1) == "DynamicQuantizeLSTM takes the range of the whole tensor"
    assert result.reason("r", 1).startswith("DynamicQuantizeLSTM takes the range of the whole state")


def test_weights_with_a_zero_point_lock() -> None:
    b = Builder(**{"com.microsoft": 1})
    y, _, _ = quantised(b, b.input("x", SEQUENCE, BATCH, 6), False, point=3)
    result = prove(b.model(b.op("MatMul", b.op("Squeeze", y, [1]), b.weight(4, 3, name="w2"))), rounds=0)
    assert result.reason("r", 1) == "weights whose zero points are not zero"
