"""Steps with weights: convolutions of all kinds and linear layers."""

from __future__ import annotations

from typing import Any

from tools.networks.channels import mixed
from tools.networks.grower import KINDS, Grower, step
from tools.networks.pointwise import smooth


@step(6)
def dense(g: Grower, x: str) -> str:
    return mixed(g, x)


@step(4, "map", "line")
def convolved(g: Grower, x: str) -> str | None:
    """With strides, dilations, uneven or automatic padding."""
    rank = len(g.shape(x)) - 2
    if min(s for pair in g.pairs(x)[2:] for s in pair) < 3:
        return g.conv(x, g.width(), 1)
    kernel = g.pick(2, 3, 3)
    attrs: dict[str, Any] = {"auto_pad": g.pick("SAME_UPPER", "SAME_LOWER", "VALID")}
    if g.chance(0.6):
        attrs = {"pads": [kernel // 2] * rank + [kernel // 2 - (kernel == 2)] * rank}
    if g.chance(0.3):
        attrs |= {"strides": [2] * rank}
    elif g.chance(0.2) and "pads" in attrs and kernel == 3:
        attrs |= {"dilations": [2] * rank, "pads": [2] * 2 * rank}
    return g.conv(x, g.width(), kernel, bias=g.chance(0.7), **attrs)


@step(4, "map", "line")
def grouped(g: Grower, x: str) -> str | None:
    groups = g.divisor(g.channels(x))
    return None if not groups else g.conv(x, groups * g.pick(1, 2, 3), g.pick(1, 3), group=groups, bias=g.chance(0.6))


@step(3, "map", "line")
def depthwise(g: Grower, x: str) -> str:
    channels = g.channels(x)
    return g.conv(x, channels * g.pick(1, 1, 2), g.pick(1, 3), group=channels, bias=g.chance(0.6))


@step(2, "map", "line")
def transposed(g: Grower, x: str) -> str | None:
    channels, rank = g.channels(x), len(g.shape(x)) - 2
    groups = g.pick(1, g.divisor(channels, 1), channels)
    if not groups or max(g.shape(x)[2:]) > 4:
        return None
    narrow = g.pick(1, 2, 4)
    bias = [g.weight(groups * narrow)] if g.chance(0.5) else []
    w = g.weight(channels, narrow, *[2] * rank, fan=channels // groups)
    return g.op("ConvTranspose", x, w, *bias, group=groups, strides=[2] * rank)


@step(3, "map", "line", "tokens", "flat")
def shared(g: Grower, x: str) -> str | None:
    """One weight in two places, or one bias under two layers."""
    channels, rank = g.channels(x), len(g.shape(x)) - 2
    convolution = g.kind in ("map", "line")
    shape = (channels, channels, *[1] * rank) if convolution else (channels, channels)
    op = "Conv" if convolution else "MatMul"
    if g.chance(0.5):
        w = g.weight(*shape)
        again = g.op("Transpose", w) if g.chance(0.4) and not convolution else w
        return g.op(op, smooth(g, g.op(op, x, w)), again)
    bias = g.weight(channels)
    if convolution:
        y = g.op(op, x, g.weight(*shape), bias)
        return g.op(op, smooth(g, y), g.weight(*shape), bias)
    y = g.op("Add", g.op(op, x, g.weight(*shape)), bias)
    return g.op("Add", g.op(op, smooth(g, y), g.weight(*shape)), bias)


@step(4)
def residual(g: Grower, x: str) -> str:
    branch = mixed(g, smooth(g, mixed(g, x)), g.channels(x)) if g.chance(0.4) else mixed(g, x, g.channels(x))
    return g.op("Add", x, smooth(g, branch) if g.chance(0.5) else branch)


@step(3, "map", "line", "tokens", "flat")
def gated(g: Grower, x: str) -> str:
    """Two branches, one as a gate of the other."""
    width = g.width()
    one, other = mixed(g, x, width), mixed(g, x, width)
    if g.pairs(one) != g.pairs(other):
        return one
    return mixed(g, g.op("Mul", one, g.op("Mul", other, g.op("Sigmoid", other))), g.channels(x))


@step(2, "map")
def channels_last(g: Grower, x: str) -> str:
    """A linear layer, sometimes a norm, between transposes."""
    y = g.op("Transpose", x, perm=[0, 2, 3, 1])
    if g.opset >= 17 and g.chance(0.3):
        y = g.op("LayerNormalization", y, g.near_one(g.channels(x)), epsilon=0.1)
    return g.op("Transpose", g.linear(y, g.width()), perm=[0, 3, 1, 2])


@step(3, "map", "line", "tokens")
def squeeze_and_excite(g: Grower, x: str) -> str:
    channels, axis = g.channels(x), KINDS[g.kind]
    axes = [a for a in range(1, len(g.shape(x))) if a != axis]
    pooled = g.op("GlobalAveragePool", x) if axis == 1 and g.chance(0.5) else g.reduce("ReduceMean", x, axes)
    if axis == 1 and g.chance(0.3):  # through a matrix
        y = g.linear(g.op("Relu", g.linear(g.squeeze(pooled, *axes), g.width())), channels)
        gate = g.unsqueeze(y, *axes)
    else:
        gate = mixed(g, g.op("Relu", mixed(g, pooled)), channels)
    return g.op("Mul", x, g.op(g.pick("Sigmoid", "HardSigmoid"), gate))


@step(1, "map", "line")
def dynamic_filter(g: Grower, x: str) -> str:
    """A convolution whose filters are made from other weights."""
    c, out, ones = g.channels(x), g.width(), [1] * (len(g.shape(x)) - 2)
    w = g.op(g.pick("Tanh", "Exp", "Softplus", "Abs"), g.op("Mul", g.weight(out, c, *ones), 0.5))
    if g.chance(0.5):
        w = g.op("Mul", w, g.near_one(*g.pick((out, 1, *ones), (1, c, *ones))))
    return g.op("Mul", g.op("Conv", x, w), 0.3)


@step(2, "map", "line", "tokens")
def mixer(g: Grower, x: str) -> str | None:
    """Positions are mixed by a matrix."""
    if not g.fixed(x):
        return None
    y = x
    if g.kind == "map":
        n, c, h, w = g.sizes(x)
        y = g.reshape(x, n, c, h * w)
    elif g.kind == "tokens":
        y = g.op("Transpose", x, perm=[0, 2, 1])
    places = g.shape(y)[2]
    if places > 24:
        return None
    hidden = g.pick(places, 3)
    y = g.op("MatMul", smooth(g, g.op("MatMul", y, g.weight(places, hidden, fan=places))), g.weight(hidden, places))
    return g.op("Transpose", y, perm=[0, 2, 1]) if g.kind == "tokens" else g.reshape(y, *g.sizes(x))
