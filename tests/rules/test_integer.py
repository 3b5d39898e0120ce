"""Integer arithmetic: QLinearConv and its kin."""

from typing import Any

import numpy as np
import pytest

from onnxprune.testing import Builder, OracleResult, prove

HIGH, LOW = np.array(0.02, np.float32), np.array(0.01, np.float32)


def integers(b: Builder, name: str, *shape: int, dtype: type = np.int8) -> str:
    info = np.iinfo(dtype)
    return b.const(b.rng.integers(info.min, info.max + 1, shape).astype(dtype), name)


def points(b: Builder, name: str, count: int | None, dtype: type = np.int8) -> str:
    """A zero point, or one for each of `count` channels."""
    values = b.rng.integers(-9, 10, count) + (128 if dtype is np.uint8 else 0)
    return b.const(np.asarray(values).astype(dtype), name)


def scales(b: Builder, name: str, count: int | None) -> str:
    return b.const(np.asarray(b.rng.uniform(0.004, 0.006, count)).astype(np.float32), name)


@pytest.mark.parametrize("group", [1, 2, 8], ids=["dense", "grouped", "depthwise"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_qlinear_conv(per_channel: bool, group: int) -> None:
    """Three layers; the middle one dense, grouped or depthwise."""
    b = Builder()
    x = b.op("QuantizeLinear", b.input("x", 2, 4, 6, 6), HIGH, np.array(128, np.uint8))
    cin = 4
    for name, g in (("a", 1), ("b", group), ("c", 1)):
        count = 8 if per_channel else None
        w = integers(b, name, 8, cin // g, 1, 1)
        bias = b.const(b.rng.integers(-900, 900, 8).astype(np.int32), f"{name}.bias")
        w_scale, w_zero = scales(b, f"{name}.scale", count), b.const(np.zeros(count or (), np.int8), f"{name}.zero")
        io = (HIGH, np.array(128, np.uint8))
        x = b.op("QLinearConv", x, *io, w, w_scale, w_zero, *io, bias, group=g)
        cin = 8
    y = b.op("DequantizeLinear", x, HIGH, np.array(128, np.uint8))
    result = prove(b.model(b.conv(y, 4, 1, "w2")))
    freedom = {1: [8], 2: [4], 8: [8]}[group]
    assert result.choices("a") == result.choices("b") == freedom
    assert result.choices("c") == result.choices("c.bias") == [8]
    if per_channel:
        assert result.shape("c.scale") == result.shape("c.zero") == (4,)


@pytest.mark.parametrize("zero", [False, True], ids=["no zero point", "zero point"])
def test_conv_integer(zero: bool) -> None:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    y = b.op("QuantizeLinear", y, HIGH, np.array(128, np.uint8))
    extra = [np.array(128, np.uint8), np.array(3, np.uint8)] if zero else []
    y = b.op("ConvInteger", y, integers(b, "w", 6, 8, 1, 1, dtype=np.uint8), *extra)
    result = prove(b.model(b.conv(b.op("Mul", b.op("Cast", y, to=1), 1e-3), 4, 1, "w2")))
    assert result.choices("w1") == result.choices("w", 1) == [8]
    assert result.choices("w") == result.choices("w2", 1) == [6]


def tokens(b: Builder, dtype: type = np.uint8) -> str:
    """A MatMul `w1` whose output is quantised."""
    y = b.op("MatMul", b.input("x", 2, 5, 3), b.weight(3, 8, name="w1", fan=3))
    return b.op("QuantizeLinear", y, HIGH, np.array(0 if dtype is np.int8 else 128, dtype))


def finish(b: Builder, y: str) -> OracleResult:
    result = prove(b.model(b.op("MatMul", y, b.weight(6, 4, name="w2"))))
    assert result.choices("w1", 1) == result.choices("w") == [8]
    assert result.choices("w", 1) == result.choices("w2") == [6]
    return result


@pytest.mark.parametrize("count", [None, 6], ids=["per tensor", "per column"])
def test_qlinear_matmul(count: int | None) -> None:
    b = Builder()
    y, point = tokens(b), np.array(128, np.uint8)
    w = integers(b, "w", 8, 6, dtype=np.uint8)
    w_points = points(b, "w.zero", count, np.uint8)
    y = b.op("QLinearMatMul", y, HIGH, point, w, scales(b, "w.scale", count), w_points, HIGH, point)
    result = finish(b, b.op("DequantizeLinear", y, HIGH, point))
    assert result.shape("w.zero") == ((3,) if count else ())


@pytest.mark.parametrize("count", [None, 6], ids=["per tensor", "per column"])
def test_matmul_integer(count: int | None) -> None:
    b = Builder()
    zero = points(b, "w.zero", count)
    y = b.op("MatMulInteger", tokens(b), integers(b, "w", 8, 6), np.array(128, np.uint8), zero)
    finish(b, b.op("Mul", b.op("Cast", y, to=1), 1e-4))


def test_dynamic_quantisation() -> None:
    """The range is taken over the whole tensor, which spans zero: channels that stay at zero do not matter."""
    b = Builder()
    y = b.op("Relu", b.op("MatMul", b.input("x", 2, 5, 3), b.weight(3, 8, name="w1", fan=3)))
    q, scale, zero = b.ops("DynamicQuantizeLinear", y, outputs=3)
    y = b.op("MatMulInteger", q, integers(b, "w", 8, 6), zero)
    y = b.op("Mul", b.op("Cast", y, to=1), b.op("Mul", scale, 0.005))
    finish(b, y)


def test_dynamic_quantisation_of_what_is_not_zero_locks() -> None:
    b = Builder()
    y = b.op("Sigmoid", b.op("MatMul", b.input("x", 2, 5, 3), b.weight(3, 8, name="w1", fan=3)))
    q, scale, zero = b.ops("DynamicQuantizeLinear", y, outputs=3)
    y = b.op("MatMulInteger", q, integers(b, "w", 8, 4), zero)
    result = prove(b.model(b.op("Mul", b.op("Cast", y, to=1), scale)))
    assert result.reason("w1", 1) == "DynamicQuantizeLinear takes the range of the whole tensor"


MICROSOFT: dict[str, Any] = {"com.microsoft": 1}


@pytest.mark.parametrize("count", [None, 6], ids=["per tensor", "per column"])
def test_dynamic_quantize_matmul(count: int | None) -> None:
    b = Builder(**MICROSOFT)
    y = b.op("MatMul", b.input("x", 2, 5, 3), b.weight(3, 8, name="w1", fan=3))
    rest = scales(b, "w.scale", count), points(b, "w.zero", count), b.weight(6, name="bias")
    y = b.op("com.microsoft::DynamicQuantizeMatMul", y, integers(b, "w", 8, 6), *rest)
    result = prove(b.model(b.op("MatMul", b.declare(y, 2, 5, 6), b.weight(6, 4, name="w2"))))
    assert result.choices("w", 1) == result.choices("bias") == result.choices("w2") == [6]


@pytest.mark.parametrize("count", [None, 6], ids=["per tensor", "per column"])
def test_matmul_integer_to_float(count: int | None) -> None:
    b = Builder(**MICROSOFT)
    rest = scales(b, "w.scale", count), np.array(128, np.uint8), points(b, "w.zero", count), b.weight(6, name="bias")
    y = b.op("com.microsoft::MatMulIntegerToFloat", tokens(b), integers(b, "w", 8, 6), HIGH, *rest)
    finish(b, b.declare(y, 2, 5, 6))
