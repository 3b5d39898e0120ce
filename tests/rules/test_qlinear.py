"""ONNX Runtime's operators on quantised activations, between two QLinearConvs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxprune.testing import Builder, OracleResult, prove

MS = "com.microsoft::"
SCALE, POINT = np.array(0.02, np.float32), np.array(128, np.uint8)
Q = (SCALE, POINT)


def conv(b: Builder, y: str, name: str, count: int, **attrs: Any) -> str:
    """A QLinearConv with a kernel of one; in ONNX Runtime's domain where `channels_last` is given."""
    cin = b.shape(y)[-1 if attrs.get("channels_last") else 1] // attrs.get("group", 1)
    w = b.const(b.rng.integers(-127, 128, (count, cin, 1, 1)).astype(np.int8), name)
    bias = b.const(b.rng.integers(-900, 900, count).astype(np.int32), f"{name}.bias")
    domain = MS if "channels_last" in attrs else ""
    return b.op(f"{domain}QLinearConv", y, *Q, w, np.array(0.004, np.float32), np.array(0, np.int8), *Q, bias, **attrs)


def between(middle: Callable[[Builder, str], str], last: int | None = None) -> OracleResult:
    """QLinearConv `a` of eight channels, `middle`, QLinearConv `c`."""
    b = Builder()
    b.imports.append(helper.make_opsetid("com.microsoft", 1))
    y = middle(b, conv(b, b.op("QuantizeLinear", b.input("x", 2, 3, 6, 6), *Q), "a", 8))
    return prove(b.model(b.op("DequantizeLinear", conv(b, y, "c", 4), *Q)))


@pytest.mark.parametrize("kind", ["QLinearSigmoid", "QLinearLeakyRelu"])
def test_unary(kind: str) -> None:
    def middle(b: Builder, y: str) -> str:
        attrs: dict[str, Any] = {"alpha": 0.1} if "Leaky" in kind else {}
        return b.declare(b.op(MS + kind, y, *Q, *Q, **attrs), 2, 8, 6, 6, dtype=np.uint8)

    result = between(middle)
    assert result.choices("a") == result.choices("c", 1) == [8]


@pytest.mark.parametrize("kind", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("partner", ["computed", "constant", "gate"])
def test_binary(partner: str, kind: str) -> None:
    def middle(b: Builder, y: str) -> str:
        if partner == "constant":
            other = b.const(b.rng.integers(0, 255, (8, 1, 1)).astype(np.uint8), "k")
        else:
            other = conv(b, y, "b", 8)
        if partner == "gate":
            other = b.declare(b.op(f"{MS}QLinearGlobalAveragePool", other, *Q, *Q), 2, 8, 1, 1, dtype=np.uint8)
        return b.declare(b.op(MS + kind, y, *Q, other, *Q, *Q), 2, 8, 6, 6, dtype=np.uint8)

    result = between(middle)
    assert result.choices("a") == result.choices("c", 1) == [8]
    assert partner != "constant" or result.choices("k") == [8]


def test_where() -> None:
    def middle(b: Builder, y: str) -> str:
        other = conv(b, y, "b", 8)
        y = b.op(f"{MS}QLinearWhere", b.op("Greater", y, POINT), y, *Q, other, *Q, *Q)
        return b.declare(y, 2, 8, 6, 6, dtype=np.uint8)

    assert between(middle).choices("a") == [8]


def test_pools() -> None:
    def middle(b: Builder, y: str) -> str:
        y = b.op(f"{MS}QLinearAveragePool", y, *Q, *Q, kernel_shape=[2, 2], strides=[2, 2])
        return b.declare(y, 2, 8, 3, 3, dtype=np.uint8)

    assert between(middle).choices("a") == [8]


def test_concat() -> None:
    def middle(b: Builder, y: str) -> str:
        other = conv(b, y, "b", 4)
        return b.declare(b.op(f"{MS}QLinearConcat", *Q, y, *Q, other, *Q, axis=1), 2, 12, 6, 6, dtype=np.uint8)

    result = between(middle)
    assert sorted(result.choices("c", 1)) == [4, 8]


@pytest.mark.parametrize(("opset", "axis", "free"), [(13, 3, True), (13, 1, False), (11, 3, True), (11, 1, False)])
def test_softmax(opset: int, axis: int, free: bool) -> None:
    def middle(b: Builder, y: str) -> str:
        y = b.op(
            f"{MS}QLinearSoftmax", y, *Q, np.array(1 / 256, np.float32), np.array(0, np.uint8), axis=axis, opset=opset
        )
        return b.declare(y, 2, 8, 6, 6, dtype=np.uint8)

    result = between(middle)
    assert result.can_cut("a") == free
    assert free or result.reason("a") == "QLinearSoftmax mixes the axis"


@pytest.mark.parametrize("group", [1, 2, 8], ids=["dense", "grouped", "depthwise"])
def test_channels_last(group: int) -> None:
    """What ONNX Runtime makes of quantised convolutions at its highest level."""

    def middle(b: Builder, y: str) -> str:
        y = b.op("Transpose", y, perm=[0, 2, 3, 1])
        y = b.declare(conv(b, y, "b", 8, group=group, channels_last=1), 2, 6, 6, 8, dtype=np.uint8)
        y = b.op(f"{MS}NhwcMaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
        b.declare(y, 2, 3, 3, 8, dtype=np.uint8)
        y = b.op(f"{MS}QLinearGlobalAveragePool", y, *Q, *Q, channels_last=1)
        return b.op("Transpose", b.declare(y, 2, 1, 1, 8, dtype=np.uint8), perm=[0, 3, 1, 2])

    result = between(middle)
    assert result.choices("b") == ([4] if group == 2 else [8])
    assert result.can_cut("a") and result.can_cut("c", 1)


@pytest.mark.parametrize("count", [None, 6], ids=["per tensor", "per column"])
@pytest.mark.parametrize("integers_out", [False, True], ids=["floats out", "integers out"])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(trans_b: int, integers_out: bool, count: int | None) -> None:
    b = Builder()
    b.imports.append(helper.make_opsetid("com.microsoft", 1))
    y = b.op("QuantizeLinear", b.gemm(b.input("x", 5, 3), 8, name="w1"), *Q)
    w = b.const(b.rng.integers(-127, 128, (6, 8) if trans_b else (8, 6)).astype(np.int8), "w")
    scale = b.const(np.asarray(b.rng.uniform(0.004, 0.006, count)).astype(np.float32), "scale")
    bias = b.const(b.rng.integers(-900, 900, 6).astype(np.int32), "bias")
    point = np.zeros(count or (), np.int8)
    y = b.op(f"{MS}QGemm", y, *Q, w, scale, point, bias, *(Q if integers_out else ()), transB=trans_b)
    b.declare(y, 5, 6, dtype=np.uint8 if integers_out else np.float32)
    y = b.op("DequantizeLinear", y, *Q) if integers_out else y
    result = prove(b.model(b.gemm(y, 4, "w2")))
    assert result.choices("w1") == result.choices("w", trans_b) == [8]
    assert result.choices("w", 1 - trans_b) == result.choices("bias") == result.choices("w2", 1) == [6]
    assert count is None or result.shape("scale") == (3,)
