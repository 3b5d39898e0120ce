"""The same small networks at every opset from 7 to 24, in the spelling of that opset."""

from typing import Any

import numpy as np
import pytest

from onnxprune.testing import Builder, OracleResult, close, prove

OPSETS = range(7, 25)


def ints(b: Builder, since: int, name: str, values: list[int]) -> tuple[list[Any], dict[str, Any]]:
    """Integers as an input where the opset has them there, as an attribute before: (inputs, attributes)."""
    opset = b.imports[0].version
    spelled: Any = values[0] if name == "k" else values
    return ([np.array(values, np.int64)], {}) if opset >= since else ([], {name: spelled})


def with_ints(b: Builder, kind: str, y: str, since: int, name: str, values: list[int], **attrs: Any) -> str:
    inputs, spelled = ints(b, since, name, values)
    return b.op(kind, y, *inputs, **attrs, **spelled)


def sliced(b: Builder, y: str, start: int, end: int, axis: int) -> str:
    if b.imports[0].version >= 10:
        return b.op("Slice", y, [start], [end], [axis])
    return b.op("Slice", y, starts=[start], ends=[end], axes=[axis])


def padded(b: Builder, y: str) -> str:
    return with_ints(b, "Pad", y, 11, "pads", [0, 0, 1, 1, 0, 0, 1, 1], mode="constant")


def clipped(b: Builder, y: str, low: float, high: float) -> str:
    if b.imports[0].version >= 11:
        return b.op("Clip", y, np.array(low, np.float32), np.array(high, np.float32))
    return b.op("Clip", y, min=low, max=high)


def enlarged(b: Builder, y: str) -> str:
    opset, scales = b.imports[0].version, np.array([1, 1, 2, 2], np.float32)
    if opset < 9:
        return b.op("Upsample", y, scales=scales.tolist(), mode="nearest")
    if opset == 9:
        return b.op("Upsample", y, scales, mode="nearest")
    if opset == 10:
        return b.op("Resize", y, scales, mode="nearest")
    attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return b.op("Resize", y, b.const(np.zeros(0, np.float32)), scales, mode="nearest", **attrs)


def in_two(b: Builder, y: str, axis: int, sizes: list[int]) -> list[str]:
    inputs, attrs = ints(b, 13, "split", sizes)
    return b.ops("Split", y, *inputs, outputs=2, axis=axis, **attrs)


def softmax(b: Builder, y: str, before: int, since_13: int) -> str:
    """Up to opset 12, Softmax flattens to a matrix at `axis`."""
    return b.op("Softmax", y, axis=since_13 if b.imports[0].version >= 13 else before)


def builder(opset: int, least: int = 3) -> Builder:
    """The IR version of the time: initializers are inputs, too, until 3."""
    times = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7}
    return Builder(opset, ir_version=max(least, times.get(opset, 8 if opset < 19 else 10)))


@pytest.mark.parametrize("opset", OPSETS)
def test_convolutions(opset: int) -> None:
    """Normalisation, dropout, clip, pad, resize, a gate, split, slice and concat, pooling, a residual sum."""
    b = builder(opset)
    y = b.batch_norm(b.conv(b.input("x", 2, 3, 6, 6), 8, name="a"), "bn")
    y = b.op("Dropout", clipped(b, y, -0.5, 6.0))
    z = b.conv(b.op("PRelu", y, b.near_one(8, 1, 1, name="slope")), 8, name="b")
    y = b.op("Sum", y, z)
    gate = b.op("Sigmoid", b.conv(b.op("GlobalAveragePool", y), 8, 1, name="g"))
    y = b.op("Mul", y, gate)
    left, right = in_two(b, y, 1, [4, 4])
    y = b.op("Concat", left, b.op("Relu", right), sliced(b, y, 2, 6, 1), axis=1)
    y = b.op("MaxPool", enlarged(b, padded(b, y)), kernel_shape=[2, 2], strides=[2, 2])
    y = b.conv(y, 6, name="c")
    y = with_ints(b, "ReduceMean", y, 18, "axes", [2, 3], keepdims=0)
    result = prove(b.model(b.gemm(b.op("Relu", y), 4, "out")), rounds=1)
    assert result.can_cut("a") and result.choices("b") == result.choices("a")
    assert result.choices("g", 1) == result.choices("bn.scale") == result.choices("slope") == result.choices("a")
    assert result.choices("c") == result.choices("out", 1) == [6]


@pytest.mark.parametrize("opset", OPSETS)
def test_shapes(opset: int) -> None:
    """Flatten, reshape, squeeze, unsqueeze, transpose, gather, cast, reductions, TopK."""
    b = builder(opset, 4)
    y = b.gemm(b.input("x", 5, 3), 8, name="a")
    y = with_ints(b, "Unsqueeze", y, 13, "axes", [1])
    y = b.op("Transpose", with_ints(b, "Squeeze", y, 13, "axes", [1]), perm=[1, 0])
    y = b.op("Gather", y, np.array([0, 2, 4, 6, 1, 3], np.int64), axis=0)
    y = b.op("Cast", b.op("Cast", b.op("Transpose", y), to=11), to=1)
    y = b.op("Flatten", b.op("Reshape", y, [5, 6, 1]))
    y = b.gemm(b.op("Tanh", y), 7, name="b")
    wide = with_ints(b, "ReduceSum", y, 13, "axes", [0], keepdims=1)
    count, attrs = ints(b, 10, "k", [3])
    top, _ = b.ops("TopK", b.gemm(b.op("Add", y, wide), 6, "c"), *count, outputs=2, axis=-1, **attrs)
    result = prove(b.model(b.op("Abs", top)), rounds=1)
    assert result.can_cut("a") and result.choices("b") == result.choices("c", 1) == [7]
    assert not result.can_cut("c")


@pytest.mark.parametrize("opset", OPSETS)
def test_attention(opset: int) -> None:
    """Heads by Reshape and Transpose, and a softmax in the spelling of the time."""
    b = builder(opset, 4)
    x = b.input("x", 2, 5, 6)
    parts = [b.op("Reshape", b.op("MatMul", x, b.weight(6, 12, name=name, fan=6)), [2, 5, 3, 4]) for name in "qkv"]
    q, v = (b.op("Transpose", parts[i], perm=[0, 2, 1, 3]) for i in (0, 2))
    k = b.op("Transpose", parts[1], perm=[0, 2, 3, 1])
    scores = b.op("Div", b.op("MatMul", q, k), 2.0)
    y = b.op("MatMul", softmax(b, scores, 3, 3), v)
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), [2, 5, 12])
    y = b.op("MatMul", y, b.weight(12, 8, name="out", fan=12))
    y = b.op("MatMul", b.op("Relu", y), b.weight(8, 6, name="last", fan=8))
    result = prove(b.model(y), rounds=1)
    assert result.choices("q", 1) == result.choices("v", 1) == result.choices("out") == [3]
    assert result.choices("last") == [8]


@pytest.mark.parametrize("opset", OPSETS)
def test_softmax_flattens_before_opset_13(opset: int) -> None:
    """With axis 1 all of [C, H, W] is one row until 12; from 13 on it is one axis of many."""

    def network(axis: int) -> OracleResult:
        b = builder(opset)
        y = b.op("Softmax", b.conv(b.input("x", 2, 3, 4, 4), 6, name="a"), axis=axis)
        return prove(b.model(close(b, y)), rounds=1)

    assert not network(1).can_cut("a")
    assert network(2).can_cut("a")


@pytest.mark.parametrize("opset", [o for o in OPSETS if o >= 10])
def test_quantised(opset: int) -> None:
    """QuantizeLinear per tensor, DequantizeLinear per filter from opset 13 on."""
    b = builder(opset)
    y = b.conv(b.input("x", 2, 3, 4, 4), 8, name="a")
    y = b.op("QuantizeLinear", y, 0.02, np.array(3, np.uint8))
    y = b.op("DequantizeLinear", y, 0.02, np.array(3, np.uint8))
    count = 6 if opset >= 13 else None
    scale = b.const(np.asarray(b.rng.uniform(0.004, 0.006, count)).astype(np.float32), "scale")
    attrs: dict[str, Any] = {"axis": 0} if count else {}
    points: Any = np.zeros(count or (), np.int8)
    w = b.const(b.rng.integers(-127, 128, (6, 8, 1, 1)).astype(np.int8), "w")
    y = b.op("Conv", y, b.op("DequantizeLinear", w, scale, points, **attrs))
    result = prove(b.model(close(b, b.op("Relu", y), name="out")), rounds=1)
    assert result.choices("a") == result.choices("w", 1) == [8]
    assert result.choices("w") == result.choices("out", 1) == [6]


@pytest.mark.parametrize("opset", OPSETS)
def test_recurrent(opset: int) -> None:
    b = builder(opset)
    x = b.input("x", 5, 2, 3)
    y, _ = b.ops(
        "GRU", x, b.weight(1, 12, 3, name="w", fan=3), b.weight(1, 12, 4, name="r", fan=4), outputs=2, hidden_size=4
    )
    y = b.op("MatMul", with_ints(b, "Squeeze", y, 13, "axes", [1]), b.weight(4, 3, name="out"))
    assert prove(b.model(y), rounds=1).choices("r", 2) == [4]


@pytest.mark.parametrize("opset", [o for o in OPSETS if o >= 9])
def test_scatter(opset: int) -> None:
    """Scatter until 10, then ScatterElements: along rows, channels go; whatever comes of it is exact."""
    b = builder(opset)
    y = b.gemm(b.input("x", 5, 3), 8, name="a")
    place = b.const(np.zeros((1, 8), np.int64))
    kind = "Scatter" if opset < 11 else "ScatterElements"
    y = b.op(kind, y, place, b.weight(1, 8, name="row"), axis=0)
    y = b.gemm(b.op("Relu", y), 6, name="b")
    result = prove(b.model(b.gemm(b.op("Relu", y), 4)), rounds=1)
    assert result.choices("b") == [6]
