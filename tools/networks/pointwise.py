"""Steps element by element, norms, reductions and pooling."""

from __future__ import annotations

from tools.networks.grower import POINTWISE, SMOOTH, Grower, step


@step(6)
def unary(g: Grower, x: str) -> str:
    return g.op(g.random.choice(SMOOTH), x)


@step(3)
def constant(g: Grower, x: str) -> str:
    c, h, w = g.shape(x)[1:]
    form = g.random.choice([(c, 1, 1), (1, c, 1, 1), (), (1,), (h, w), (c, h, w), (1, 1, w)])
    operands = [x, g.near_one(*form)]
    g.random.shuffle(operands)
    return g.op(g.random.choice(["Add", "Sub", "Mul", "Max", "Min"]), *operands)


@step(6)
def pointwise(g: Grower, x: str) -> str | None:
    """With another value of the same shape, or one that broadcasts."""
    shape = g.shape(x)
    broadcasts = lambda s: s[0] == shape[0] and all(a in (1, b) for a, b in zip(s[1:], shape[1:], strict=True))  # noqa: E731
    other = g.fitting(broadcasts)
    return other and g.op(g.random.choice(POINTWISE), x, other)


@step(5)
def residual(g: Grower, x: str) -> str:
    branch = g.conv(x, g.shape(x)[1], g.random.choice([1, 3]))
    return g.op("Add", x, g.op("Tanh", branch))


@step(3)
def gate(g: Grower, x: str) -> str:
    """Squeeze and excite."""
    channels = g.shape(x)[1]
    pooled = g.op("GlobalAveragePool", x) if g.random.random() < 0.5 else g.reduce("ReduceMean", x, [2, 3])
    hidden = g.op("Relu", g.conv(pooled, g.width(), 1))
    return g.op("Mul", x, g.op("Sigmoid", g.conv(hidden, channels, 1)))


@step(1)
def where(g: Grower, x: str) -> str:
    channels = g.shape(x)[1]
    mask = g.const(g.rng.random((channels, 1, 1)) < 0.5)
    return g.op("Where", mask, x, g.pick(g.op("Tanh", x), 0.5, g.weight(channels, 1, 1)))


@step(1)
def prelu(g: Grower, x: str) -> str:
    return g.op("PRelu", x, g.near_one(*g.random.choice([(g.shape(x)[1], 1, 1), (1,)])))


@step(1)
def clip(g: Grower, x: str) -> str:
    return g.op("Clip", x, g.random.choice([-0.5, 0.1]), 1.5)


@step(3)
def norm(g: Grower, x: str) -> str | None:
    c, h, w = g.shape(x)[1:]
    kind = g.random.choice(["batch", "instance", "group", "decomposed", "lrn"])
    if kind == "batch" or h * w < 9:
        return g.batch_norm(x)
    if kind == "instance":
        return g.op("InstanceNormalization", x, g.near_one(c), g.weight(c), epsilon=0.1)
    if kind == "lrn":
        return g.op("LRN", x, size=3) if g.random.random() < 0.3 else None
    groups = g.divisor(c, 1) or 1
    if kind == "group" and g.opset >= 21:
        return g.op("GroupNormalization", x, g.near_one(c), g.weight(c), num_groups=groups, epsilon=0.1)
    y = g.op("Reshape", x, [0, groups, -1])
    y = g.op("InstanceNormalization", y, g.near_one(groups), g.weight(groups), epsilon=0.1)
    y = g.op("Reshape", y, g.pick([0, c, h, w], g.op("Shape", x)))
    return g.op("Mul", y, g.near_one(c, 1, 1))


@step(2)
def over_channels(g: Grower, x: str) -> str:
    """A map from all channels, as a gate or beside them."""
    kind = g.random.choice(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL1", "Softmax"])
    if kind == "Softmax":
        return g.op("Softmax", x, axis=g.random.choice([1, -1]))
    y = g.reduce(kind, x, [1])
    if g.random.random() < 0.5:
        return g.op("Mul", x, g.op("Tanh", y))
    return g.op("Concat", x, y, axis=1)


@step(3)
def pool(g: Grower, x: str) -> str | None:
    if min(g.shape(x)[2:]) < 2:
        return None
    kind = g.random.choice(["MaxPool", "AveragePool"])
    strides = g.random.choice([[1, 1], [2, 2]])
    return g.op(kind, x, kernel_shape=[2, 2], strides=strides, pads=g.random.choice([[0] * 4, [0, 0, 1, 1]]))


@step(2)
def resize(g: Grower, x: str) -> str | None:
    n, c, h, w = g.shape(x)
    if h > 8:
        return None
    if g.random.random() < 0.4 or not n:
        return g.op("Resize", x, None, [1.0, 1.0, 2.0, 2.0])
    if g.random.random() < 0.5:
        return g.op("Resize", x, None, None, [n, c, h + 1, w], mode="linear")
    first, second, *_ = g.sizes(x)
    return g.op("Resize", x, None, None, g.op("Concat", first, second, [h, w + 2], axis=0))
