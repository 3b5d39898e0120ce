"""Steps that mix an axis without weights: norms, reductions, pooling, sorting."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tools.networks.grower import KINDS, Grower, step
from tools.networks.pointwise import bumped, smooth

SUMS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


@step(3, "map", "line")
def channel_norm(g: Grower, x: str) -> str | None:
    c, places = g.channels(x), int(np.prod(g.shape(x)[2:]))
    kind = g.pick("batch", "batch", "instance", "group", "group", "decomposed", "lrn", "mvn")
    if kind == "batch" or places < 4:
        return g.batch_norm(x)
    if kind == "instance":
        return g.op("InstanceNormalization", x, g.near_one(c), g.weight(c), epsilon=0.1)
    if kind == "lrn":
        return g.op("LRN", x, size=3) if g.kind == "map" else None
    if kind == "mvn":  # ONNX Runtime divides a constant channel, such as a masked one, by zero
        if g.kind != "map" or not g.fixed(x):
            return None
        y = g.op("Add", x, g.near_one(*g.shape(x)[2:]))
        return g.op("MeanVarianceNormalization", y, axes=g.pick([0, 2, 3], [2, 3], [1, 2, 3]))
    groups = g.divisor(c, 1) or 1
    if kind == "group" and g.opset >= 21:
        return g.op("GroupNormalization", x, g.near_one(c), g.weight(c), num_groups=groups, epsilon=0.1)
    y = g.op("Reshape", x, [0, groups, -1])
    y = g.op("InstanceNormalization", y, g.near_one(groups), g.weight(groups), epsilon=0.1)
    sizes = g.sizes(x)
    y = g.note(g.op("Reshape", y, g.op("Shape", x)), sizes) if g.chance(0.5) else g.reshape(y, *sizes)
    return g.op("Mul", y, g.near_one(*g.along(x)))


@step(4, "tokens", "heads", "heads", "sequence", "flat", "map", "line")
def last_axis_norm(g: Grower, x: str) -> str:
    """LayerNorm and RMSNorm, fused or written out; over the width of maps, where that is known."""
    if not g.fixed(x, len(g.shape(x)) - 1):
        return g.op("Tanh", x)
    c = g.shape(x)[-1]
    kind = g.pick("layer", "rms", "written", "written rms", "lp")
    if kind == "layer" and g.opset >= 17:
        first = g.pick(-1, -1, -2) if g.fixed(x) and len(g.shape(x)) > 2 else -1
        shape = g.shape(x)[first:]
        return g.op(
            "LayerNormalization", x, g.near_one(*shape), *g.pick([], [g.weight(*shape)]), axis=first, epsilon=0.1
        )
    if kind == "rms" and g.opset >= 23:
        return g.op("RMSNormalization", x, g.near_one(c), epsilon=0.1)
    if kind == "lp":
        return g.op("Mul", g.op("LpNormalization", x, axis=g.pick(-1, KINDS[g.kind]), p=g.pick(1, 2)), 2.0)
    y = x
    if kind == "written":
        y = g.op("Sub", x, g.reduce("ReduceMean", x, [-1]))
    square = g.op("Pow", y, 2.0) if g.chance(0.5) else g.op("Mul", y, y)
    spread = g.op("Sqrt", g.op("Add", g.reduce("ReduceMean", square, [-1]), 0.1))
    y = g.op("Div", y, spread) if g.chance(0.5) else g.op("Mul", y, g.op("Reciprocal", spread))
    return g.op("Mul", g.near_one(c), y)


@step(2, since=10)
def over_channels(g: Grower, x: str) -> str:
    """A value made from all channels, as a factor or beside them."""
    axis, kind = KINDS[g.kind], g.pick(*SUMS)
    y = x
    if kind in ("LogSum", "Prod"):
        y = g.op("Add", g.op("Mul", g.op("Sigmoid", x), 0.8), 0.4)
    elif g.chance(0.5):
        y = smooth(g, x) if g.chance(0.5) else bumped(g, x)
    y = g.reduce(f"Reduce{kind}", y, [axis - len(g.shape(x)) if g.opset >= 11 and g.chance(0.5) else axis])
    if g.chance(0.5):
        return g.op("Mul", x, g.op("Tanh", y))
    return g.op("Concat", x, y, axis=axis)


@step(2, "map", "line", "tokens", "heads", since=10)
def over_places(g: Grower, x: str) -> str:
    """Any reduction over an axis that is not that of the channels."""
    axis = g.pick(*(a for a in range(1, len(g.shape(x))) if a != KINDS[g.kind]))
    kind = g.pick(*SUMS)
    y = g.op("Add", g.op("Sigmoid", x), 0.3) if kind in ("LogSum", "Prod") else x
    y = g.reduce(f"Reduce{kind}", y, [axis])
    return g.op("Add" if g.chance(0.5) else "Mul", g.op("Tanh", y), x)


@step(2)
def softmax(g: Grower, x: str) -> str:
    axis = g.pick(-1, KINDS[g.kind], *range(1, len(g.shape(x)))) if g.opset >= 11 else KINDS[g.kind]
    kind = g.pick("Softmax", "Softmax", "LogSoftmax", "Hardmax")
    y = g.op(kind, x, axis=axis)
    return g.op("Add", x, y) if g.chance(0.5) else y


@step(1, since=11)
def ordered(g: Grower, x: str) -> str:
    """CumSum, TopK, ArgMax and ArgMin along any axis."""
    rank = len(g.shape(x))
    axis, kind = g.random.randrange(1, rank), g.pick("CumSum", "TopK", "ArgMax", "ArgMin")
    if kind == "CumSum":
        return g.op(kind, x, g.const(np.int64(axis)))
    if kind == "TopK":
        count = min(g.pairs(x)[axis])
        return g.ops(kind, x, [g.random.randint(1, count)], axis=axis, outputs=2)[0]
    y = g.op("Mul", g.cast(g.op(kind, x, axis=axis), TensorProto.FLOAT), 0.2)
    return g.op("Add", x, y)


@step(1)
def normalised(g: Grower, x: str) -> str:
    """Divided by the length of the vector of channels, or by their sum."""
    kind = g.pick("ReduceL2", "ReduceL1")
    y = g.op(g.pick("Relu", "Tanh", "Sigmoid"), x) if g.chance(0.5) else x
    length = g.reduce(kind, y, [KINDS[g.kind]])
    return g.op("Div", y, g.op("Max", length, 0.1) if g.opset >= 8 else g.op("Add", length, 0.1))


@step(4, "map", "line")
def pooled(g: Grower, x: str) -> str | None:
    rank = len(g.shape(x)) - 2
    if min(s for pair in g.pairs(x)[2:] for s in pair) < 2:
        return None
    kind = g.pick("MaxPool", "AveragePool", "LpPool", "Global")
    if kind == "Global":
        kinds = ["Max", "Average", *(["Lp"] if g.opset < 22 else [])]  # ONNX Runtime's last GlobalLpPool is of opset 2
        return g.op("Mul", x, g.op("Tanh", g.op(f"Global{g.random.choice(kinds)}Pool", x)))
    strides = g.pick([1] * rank, [2] * rank)
    pads = g.pick([0] * 2 * rank, [0] * rank + [1] * rank)
    return g.op(kind, x, kernel_shape=[2] * rank, strides=strides, pads=pads)


@step(3, "map", since=11)
def resized(g: Grower, x: str) -> str | None:
    """By scales, to sizes, or to sizes that are computed."""
    n, c, h, w = g.sizes(x)
    if max(g.shape(x)[2:]) > 4:
        return None
    nothing = None if g.opset >= 13 else g.const(np.zeros(0, np.float32))
    roi = None if g.opset >= 13 else g.const(np.zeros(0, np.float32))
    if g.chance(0.4):
        scales = g.pick([1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 1.0], [1.0, 1.0, 1.5, 1.0])
        return g.op("Resize", x, roi, scales, mode="nearest")
    if g.opset >= 18 and g.chance(0.2):
        return g.op("Resize", x, None, [2.0], axes=[3])
    target = g.pick([n, c, h * 2, w], [n, c, h * 2, w * 2], [n, c, h, w])
    if g.fixed(x) and g.chance(0.4):
        target = [n, c, h, g.shape(x)[3] + 1]
    sizes = g.written(x, target, zeros=False, rest=False)
    mode = g.pick("nearest", "linear", "cubic")
    return g.op("Resize", x, roi, nothing, sizes, mode=mode)


@step(3, "map", until=9)
def upsampled(g: Grower, x: str) -> str | None:
    if max(g.shape(x)[2:]) > 4:
        return None
    return g.op("Upsample", x, g.pick([1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 1.0, 2.0]), mode="nearest")
