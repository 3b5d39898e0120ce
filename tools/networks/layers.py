"""Steps with weights: convolutions of all kinds and linear layers, with weights shared or stored behind other ops."""

from __future__ import annotations

import numpy as np

from tools.networks.grower import Grower, step


@step(8)
def dense(g: Grower, x: str) -> str:
    kernel = g.random.choice([1, 3])
    strides = [2, 2] if g.random.random() < 0.1 else [1, 1]
    return g.conv(x, g.width(), kernel, bias=g.random.random() < 0.7, strides=strides)


@step(4)
def grouped(g: Grower, x: str) -> str | None:
    groups = g.divisor(g.shape(x)[1])
    return None if not groups else g.conv(x, groups * g.random.choice([1, 2, 3]), group=groups)


@step(3)
def depthwise(g: Grower, x: str) -> str:
    channels = g.shape(x)[1]
    return g.conv(x, channels * g.random.choice([1, 1, 2]), group=channels)


@step(2)
def transposed(g: Grower, x: str) -> str | None:
    channels = g.shape(x)[1]
    groups = g.random.choice([1, g.divisor(channels, 1), channels])
    if not groups or g.shape(x)[2] > 8:
        return None
    narrow = g.random.choice([1, 2, 4])
    return g.op("ConvTranspose", x, g.weight(channels, narrow, 2, 2, fan=channels), group=groups, strides=[2, 2])


@step(3)
def shared(g: Grower, x: str) -> str | None:
    """One weight in two places, or one bias under two layers."""
    channels = g.shape(x)[1]
    if g.random.random() < 0.5:
        w = g.weight(channels, channels, 1, 1)
        return g.op("Conv", g.op("Tanh", g.op("Conv", x, w)), w)
    bias = g.weight(channels)
    y = g.op("Conv", x, g.weight(channels, channels, 1, 1), bias)
    return g.op("Conv", g.op("Tanh", y), g.weight(channels, channels, 1, 1), bias)


@step(2)
def channels_last(g: Grower, x: str) -> str:
    """A linear layer, sometimes a norm, between transposes."""
    y = g.op("Transpose", x, perm=[0, 2, 3, 1])
    if g.opset >= 17 and g.random.random() < 0.3:
        y = g.op("LayerNormalization", y, g.near_one(g.shape(x)[1]), epsilon=0.1)
    y = g.op("MatMul", y, g.weight(g.shape(x)[1], g.width(), fan=g.shape(x)[1]))
    return g.op("Transpose", y, perm=[0, 3, 1, 2])


@step(2)
def stored(g: Grower, x: str) -> str:
    """A weight behind Transpose, Identity, Reshape or DequantizeLinear."""
    out, channels = g.width(), g.shape(x)[1]
    kind = g.random.choice(["Transpose", "Identity", "Reshape", "DequantizeLinear", "Split"])
    if kind == "Transpose":
        w = g.op(kind, g.weight(1, 1, channels, out, fan=channels), perm=[3, 2, 0, 1])
    elif kind == "Reshape":
        w = g.op(kind, g.weight(out, channels), [out, channels, 1, 1])
    elif kind == "DequantizeLinear":
        values = g.const(g.rng.integers(-99, 99, (out, channels, 1, 1)).astype(np.int8))
        points = g.const(g.rng.integers(-9, 9, out).astype(np.int8))
        w = g.op(kind, values, g.const(g.rng.uniform(0.004, 0.01, out).astype(np.float32)), points, axis=0)
    elif kind == "Split":
        w, _ = g.ops(kind, g.weight(out + 2, channels, 1, 1), [out, 2], axis=0, outputs=2)
    else:
        w = g.op(kind, g.weight(out, channels, 1, 1))
    return g.op("Conv", x, w)
