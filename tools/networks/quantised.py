"""Steps in integers: quantised values, weights, convolutions and products."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tools.networks.grower import KINDS, Grower, step
from tools.networks.pointwise import smooth
from tools.networks.sizes import symbol

STEP = np.float32(0.03)
MS = "com.microsoft::"


def quantised(g: Grower, x: str, signed: bool) -> tuple[str, str, str]:
    """A value in integers, its scale and its zero point."""
    scale = g.const(STEP)
    point = g.const(np.array(g.pick(0, 3), np.int8) if signed else np.array(g.pick(128, 120), np.uint8))
    return g.op("QuantizeLinear", x, scale, point), scale, point


def weights(g: Grower, *shape: int, axis: int, point: bool = True) -> tuple[str, str, str]:
    """An integer weight, its scale and zero point: for all of it, or for each index of an axis."""
    count = shape[axis] if g.chance(0.5) else None
    w = g.const(g.rng.integers(-128, 128, shape).astype(np.int8))
    scale = g.const(np.asarray(g.rng.uniform(0.004, 0.01, count), np.float32))
    values = g.rng.integers(-9, 9, count) if point else np.zeros(count or ())
    return w, scale, g.const(np.asarray(values, np.int8))


@step(12, tag="quant", since=10)
def rounded(g: Grower, x: str) -> str:
    """QuantizeLinear and DequantizeLinear, as training with quantisation leaves them."""
    q, scale, point = quantised(g, x, g.chance(0.5))
    if g.chance(0.3) and g.opset >= 13:
        c, axis = g.channels(x), 1 if g.kind in ("map", "line", "flat", "heads") else 2
        scale = g.const(g.rng.uniform(0.02, 0.04, c).astype(np.float32))
        point = g.const(g.rng.integers(-3, 4, c).astype(np.int8))
        q = g.op("QuantizeLinear", x, scale, point, axis=axis)
        return g.op("DequantizeLinear", q, scale, point, axis=axis)
    return g.op("DequantizeLinear", q, scale, point)


@step(10, "map", "line", "tokens", "flat", tag="quant", since=13)
def dequantised_weights(g: Grower, x: str) -> str:
    out, c = g.width(), g.channels(x)
    if g.kind in ("map", "line"):
        return g.op("Conv", x, g.dequantized((out, c, *[1] * (len(g.shape(x)) - 2)), g.pick(0, 1)))
    return g.op("MatMul", x, g.dequantized((c, out), g.pick(0, 1)))


@step(12, "map", tag="quant", since=10)
def qlinear_conv(g: Grower, x: str) -> str:
    channels = g.channels(x)
    groups = g.pick(1, g.divisor(channels, 1) or 1)
    out = channels if g.chance(0.4) else groups * g.pick(1, 2, 3)
    q, scale, point = quantised(g, x, signed=False)
    w, w_scale, w_point = weights(g, out, channels // groups, 1, 1, axis=0, point=False)
    bias = [g.const(g.rng.integers(-900, 900, out).astype(np.int32))] if g.chance(0.5) else []
    y_scale, y_point = g.const(np.float32(0.04)), g.const(np.array(g.pick(128, 110), np.uint8))
    y = g.op("QLinearConv", q, scale, point, w, w_scale, w_point, y_scale, y_point, *bias, group=groups)
    return g.op("DequantizeLinear", y, y_scale, y_point)


@step(8, "map", tag="quant", since=10)
def conv_integer(g: Grower, x: str) -> str:
    c = g.channels(x)
    groups = g.pick(1, g.divisor(c, 1) or 1)
    out = g.width() if groups == 1 else groups * g.pick(1, 2, 3)
    q, scale, point = quantised(g, x, signed=False)
    w = g.const(g.rng.integers(0, 256, (out, c // groups, 1, 1)).astype(np.uint8))
    points = [point, g.const(np.array(g.pick(128, 3), np.uint8))] if g.chance(0.7) else []
    y = g.cast(g.op("ConvInteger", q, w, *points, group=groups), TensorProto.FLOAT)
    return g.op("Mul", y, g.op("Mul", scale, 0.01))


@step(12, "tokens", "flat", tag="quant", since=10)
def integer_products(g: Grower, x: str) -> str:
    """QLinearMatMul, MatMulInteger, and MatMulInteger behind a dynamic range."""
    out, c = g.width(), g.channels(x)
    kind = g.pick("QLinearMatMul", "MatMulInteger", "dynamic")
    w, w_scale, w_point = weights(g, c, out, axis=1)
    if kind == "dynamic" and g.opset >= 11:
        q, scale, point = g.ops("DynamicQuantizeLinear", smooth(g, x) if g.chance(0.5) else x, outputs=3)
        y = g.cast(g.op("MatMulInteger", q, w, point, w_point), TensorProto.FLOAT)
        return g.op("Mul", y, g.op("Mul", scale, 0.005))
    q, scale, point = quantised(g, x, signed=False)
    if kind == "QLinearMatMul":
        w = g.const(g.rng.integers(0, 256, (c, out)).astype(np.uint8))
        w_point = g.const(np.array(128, np.uint8))
        w_scale = g.const(STEP / 3)
        y = g.op(kind, q, scale, point, w, w_scale, w_point, scale, point)
        return g.op("DequantizeLinear", y, scale, point)
    y = g.cast(g.op("MatMulInteger", q, w, point, w_point), TensorProto.FLOAT)
    return g.op("Mul", y, 2e-4)


@step(12, "map", "tokens", "line", tag="quant", since=10)
def on_integers(g: Grower, x: str) -> str:
    """ONNX Runtime's operators between quantised values."""
    io = (g.const(STEP), g.const(np.array(128, np.uint8)))
    q = g.op("QuantizeLinear", x, *io)
    kind = g.pick("QLinearAdd", "QLinearMul", "QLinearWhere", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearConcat")
    other = g.op("QuantizeLinear", g.alike(x) or smooth(g, x), *io)
    channels, axis = g.channels(x), KINDS[g.kind]
    attrs: dict[str, Any] = {"alpha": 0.1} if "Leaky" in kind else {}
    if kind in ("QLinearAdd", "QLinearMul"):
        if g.chance(0.3):
            other = g.const(g.rng.integers(0, 255, g.along(x)).astype(np.uint8))
        y = g.op(MS + kind, q, *io, other, *io, *io)
    elif kind == "QLinearWhere":
        y = g.op(MS + kind, g.op("Greater", g.op("Tanh", x), 0.1), q, *io, other, *io, *io)
    elif kind == "QLinearConcat":
        y, channels = g.op(MS + kind, *io, q, *io, other, *io, axis=axis), 2 * channels
    else:
        y = g.op(MS + kind, q, *io, *io, **attrs)
    return g.op("DequantizeLinear", g.like(y, x, dtype=np.uint8, **{f"a{axis}": channels}), *io)


@step(8, "map", tag="quant", since=10)
def pooled_integers(g: Grower, x: str) -> str | None:
    """Pooling and softmax of quantised values, channels second or last."""
    io = (g.const(STEP), g.const(np.array(128, np.uint8)))
    kind = g.pick("QLinearAveragePool", "QLinearGlobalAveragePool", "NhwcMaxPool", "QLinearSoftmax")
    if "Global" not in kind and (not g.fixed(x) or min(g.shape(x)[2:]) < 2):
        return None
    q = g.op("QuantizeLinear", x, *io)
    if kind == "QLinearGlobalAveragePool":
        y = g.like(g.op(MS + kind, q, *io, *io), x, dtype=np.uint8, a2=1, a3=1)
        return g.op("Mul", x, g.op("Tanh", g.op("DequantizeLinear", y, *io)))
    if kind == "QLinearSoftmax":
        out = (g.const(np.float32(1 / 256)), g.const(np.array(0, np.uint8)))
        y = g.op(MS + kind, q, *io, *out, axis=g.pick(1, 2, 3), opset=g.pick(11, 13))
        return g.op("Add", x, g.op("DequantizeLinear", g.like(y, x, dtype=np.uint8), *out))
    h, w = (s - 1 for s in g.shape(x)[2:])
    if kind == "QLinearAveragePool":
        y = g.op(MS + kind, q, *io, *io, kernel_shape=[2, 2])
        return g.op("DequantizeLinear", g.like(y, x, dtype=np.uint8, a2=h, a3=w), *io)
    y = g.op(MS + kind, g.op("Transpose", q, perm=[0, 2, 3, 1]), kernel_shape=[2, 2])
    n = g.pairs(x)[0]
    y = g.declare(y, symbol(n), h, w, g.channels(x), dtype=np.uint8)
    return g.op("DequantizeLinear", g.op("Transpose", y, perm=[0, 3, 1, 2]), *io)


@step(8, "flat", tag="quant", since=10)
def qgemm(g: Grower, x: str) -> str:
    out, c, trans = g.width(), g.channels(x), g.random.randrange(2)
    io = (g.const(STEP), g.const(np.array(128, np.uint8)))
    count = out if g.chance(0.5) else None
    w = g.const(g.rng.integers(-127, 128, (out, c) if trans else (c, out)).astype(np.int8))
    scale = g.const(np.asarray(g.rng.uniform(0.004, 0.006, count), np.float32))
    point = g.const(np.zeros(count or (), np.int8))
    bias = g.const(g.rng.integers(-900, 900, out).astype(np.int32))
    integers = g.chance(0.5)
    y = g.op(
        f"{MS}QGemm",
        g.op("QuantizeLinear", x, *io),
        *io,
        w,
        scale,
        point,
        bias,
        *(io if integers else ()),
        transB=trans,
    )
    y = g.like(y, x, dtype=np.uint8 if integers else np.float32, a1=out)
    return g.op("DequantizeLinear", y, *io) if integers else y


@step(8, "map", tag="quant", since=10)
def channels_last(g: Grower, x: str) -> str:
    """A quantised convolution with channels last, as ONNX Runtime makes them at its highest level."""
    channels = g.channels(x)
    groups = g.pick(1, g.divisor(channels, 1) or 1)
    out = channels if g.chance(0.4) else groups * g.pick(1, 2, 3)
    io = (g.const(STEP), g.const(np.array(128, np.uint8)))
    q = g.op("Transpose", g.op("QuantizeLinear", x, *io), perm=[0, 2, 3, 1])
    w, w_scale, w_point = weights(g, out, channels // groups, 1, 1, axis=0, point=False)
    bias = g.const(g.rng.integers(-900, 900, out).astype(np.int32))
    y = g.op(f"{MS}QLinearConv", q, *io, w, w_scale, w_point, *io, bias, group=groups, channels_last=1)
    n, _, h, w_ = g.pairs(x)
    y = g.declare(y, symbol(n), symbol(h), symbol(w_), out, dtype=np.uint8)
    return g.op("DequantizeLinear", g.op("Transpose", y, perm=[0, 3, 1, 2]), *io)
