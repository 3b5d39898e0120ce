"""Steps on sequences of tokens, and from one kind of value to another."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tools.networks.grower import Grower, step
from tools.networks.pointwise import smooth


@step(4, "tokens", "flat", "sequence")
def feed_forward(g: Grower, x: str) -> str:
    """Two layers, plain or gated: packed, apart, or with the gate in a GLU."""
    width, c = g.width(), g.channels(x)
    kind = g.pick("plain", "swiglu", "packed", "gelu")
    if kind == "plain":
        y = smooth(g, g.linear(x, width))
    elif kind == "gelu":  # as torch writes it before opset 20
        y = g.linear(x, width)
        inner = g.op("Add", g.op("Erf", g.op("Div", y, 1.4142)), 1.0) if g.opset >= 9 else g.op("Tanh", y)
        y = g.op("Mul", g.op("Mul", y, inner), 0.5)
    elif kind == "swiglu":
        gate = g.linear(x, width, bias=False)
        y = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), g.linear(x, width, bias=False))
    else:
        gate, up = (
            g.split(g.linear(x, 2 * width), g.pick(-1, len(g.shape(x)) - 1) if g.opset >= 11 else 2, width, width)
            if len(g.shape(x)) == 3
            else g.split(g.linear(x, 2 * width), 1, width, width)
        )
        y = g.op("Mul", g.op(g.pick("Sigmoid", "Relu", "Tanh"), gate), up)
    y = g.linear(y, c)
    return g.op("Add", x, y) if g.chance(0.6) else y


@step(2, "tokens")
def class_token(g: Grower, x: str) -> str | None:
    """A learnt token before all others; positions are added where there is a fixed number of them."""
    b, _, c = g.sizes(x)
    wide = g.channels(x)
    token = g.weight(1, 1, wide, fan=1)
    if g.pairs(x)[0] != (1, 1):
        token = g.expand(token, b, g.pick(1, g.size(token, 1)), g.pick(wide, c))
    y = g.op("Concat", token, x, axis=1)
    if g.fixed(x) and g.chance(0.6):
        y = g.op("Add", y, g.weight(g.pick(1, 1), g.shape(y)[1], wide, fan=1))
    return y


@step(1, "tokens")
def positions(g: Grower, x: str) -> str | None:
    """A table of positions: added whole, or as much of it as there are tokens."""
    longest = max(g.pairs(x)[1])
    table = g.weight(1, longest + 2, g.channels(x), fan=1)
    if g.opset < 10:
        return None
    return g.op("Add", x, g.slice(table, 1, 0, g.vector(g.size(x, 1))))


@step(1, "flat", "tokens", since=13)
def embedded(g: Grower, x: str) -> str:
    """Rows of a table that data choose."""
    table = g.weight(5, g.channels(x), fan=1)
    ids = g.cast(g.op("ArgMax", g.linear(x, 5, bias=False), axis=-1, keepdims=0), TensorProto.INT64)
    return g.op("Add", x, g.op("Gather", table, ids, axis=0))


@step(2, "tokens", gives="flat")
def one_token(g: Grower, x: str) -> str:
    """The first token, the last, or their mean."""
    kind = g.pick("gather", "slice", "mean", "max")
    if kind == "gather":
        return g.op("Gather", x, g.const(np.int64(g.pick(0, -1) if g.opset >= 11 else 0)), axis=1)
    if kind == "slice":
        return g.squeeze(g.slice(x, 1, 0, 1), 1)
    return g.reduce("ReduceMean" if kind == "mean" else "ReduceMax", x, [1], keepdims=0)


@step(2, "flat", gives="tokens")
def to_tokens(g: Grower, x: str) -> str:
    """One token more, or channels as tokens."""
    groups = g.divisor(g.channels(x), 1)
    if groups and g.chance(0.5):
        return g.reshape(x, g.size(x, 0), groups, g.channels(x) // groups)
    return g.op("Concat", g.unsqueeze(x, 1), g.unsqueeze(g.linear(x, g.channels(x)), 1), axis=1)


@step(2, "map", gives="tokens")
def patches(g: Grower, x: str) -> str:
    """[N, C, H, W] -> [N, H*W, C]."""
    n, c, h, w = g.sizes(x)
    if g.chance(0.5):
        return g.op("Transpose", g.reshape(x, n, c, h * w), perm=[0, 2, 1])
    return g.reshape(g.op("Transpose", x, perm=[0, 2, 3, 1]), n, h * w, c)


@step(2, "tokens", gives="map")
def to_map(g: Grower, x: str) -> str | None:
    """[N, H*W, C] -> [N, C, H, W]."""
    if not g.fixed(x):
        return None
    n, s, c = g.sizes(x)
    rows = g.divisor(g.shape(x)[1], 1) or 1
    columns = g.pick(g.shape(x)[1] // rows, s // rows)
    if g.chance(0.5):
        return g.reshape(g.op("Transpose", x, perm=[0, 2, 1]), n, c, rows, columns)
    return g.op("Transpose", g.reshape(x, n, rows, columns, c), perm=[0, 3, 1, 2])


@step(2, "map", gives="flat")
def flattened(g: Grower, x: str) -> str | None:
    if g.chance(0.6):
        return g.pooled(x, [2, 3])
    if not g.fixed(x):
        return None
    y = g.op("Flatten", x) if g.chance(0.5) else g.reshape(x, g.size(x, 0), int(np.prod(g.shape(x)[1:])))
    return g.linear(y, g.width()) if g.chance(0.7) else y


@step(2, "flat", gives="map")
def unfolded(g: Grower, x: str) -> str:
    """A vector as a map: channels by themselves, or cut into rows and columns."""
    side = g.pick(1, 2)
    wide = g.width()
    y = smooth(g, g.linear(x, wide * side * side))
    return g.reshape(y, g.size(x, 0), wide, side, side)


@step(2, "map", gives="line")
def to_line(g: Grower, x: str) -> str:
    n, c, h, w = g.sizes(x)
    if g.chance(0.3) and g.fixed(x):
        return g.reshape(x, n, c * h, w)
    return g.reshape(x, n, c, h * w)


@step(1, "line", gives="map")
def stood_up(g: Grower, x: str) -> str:
    if g.chance(0.5) or not g.fixed(x):
        return g.unsqueeze(x, g.pick(2, 3))
    n, c, _ = g.sizes(x)
    rows = g.divisor(g.shape(x)[2], 1) or 1
    return g.reshape(x, n, c, rows, g.shape(x)[2] // rows)


@step(2, "line", gives="tokens")
def line_to_tokens(g: Grower, x: str) -> str:
    return g.op("Transpose", x, perm=[0, 2, 1])


@step(1, "tokens", gives="line")
def tokens_to_line(g: Grower, x: str) -> str:
    return g.op("Transpose", x, perm=[0, 2, 1])


@step(2, "tokens", gives="heads")
def apart(g: Grower, x: str) -> str | None:
    heads = g.divisor(g.channels(x), 1)
    return g.split_heads(x, heads) if heads else None


@step(2, "heads", gives="tokens")
def together(g: Grower, x: str) -> str:
    return g.merge_heads(x)


@step(2, "tokens", "line", "map")
def windows(g: Grower, x: str) -> str | None:
    """A partition into windows, something in them, and back."""
    sizes = g.sizes(x)
    if g.kind != "map":
        axis = 1 if g.kind == "tokens" else 2
        parts = [d for d in (2, 4) if all(p % d == 0 for p in g.pairs(x)[axis])]
        if not parts:
            return None
        count = g.random.choice(parts)
        y = g.reshape(x, *sizes[:axis], sizes[axis] // count, count, *sizes[axis + 1 :])
        return g.reshape(smooth(g, y), *sizes)
    if any(s % 2 for pair in g.pairs(x)[2:] for s in pair):
        return None
    n, c, h, w = sizes
    last = g.op("Transpose", x, perm=[0, 2, 3, 1])
    y = g.op("Transpose", g.reshape(last, n, h // 2, 2, w // 2, 2, c), perm=[0, 1, 3, 2, 4, 5])
    y = g.reshape(y, n * (h // 2) * (w // 2), 4, c)
    wide = g.channels(x)
    y = g.op("Add", y, g.op("Tanh", g.linear(y, wide)))
    if g.chance(0.5):  # attention inside the windows
        scores = g.op("Softmax", g.op("MatMul", g.linear(y, 2), g.op("Transpose", g.linear(y, 2), perm=[0, 2, 1])))
        if g.opset >= 13:
            y = g.op("MatMul", scores, y)
    y = g.op("Transpose", g.reshape(y, n, h // 2, w // 2, 2, 2, wide), perm=[0, 1, 3, 2, 4, 5])
    return g.op("Transpose", g.reshape(y, n, h, w, wide), perm=[0, 3, 1, 2])


@step(1, "tokens")
def patch_merging(g: Grower, x: str) -> str | None:
    """Neighbours side by side, and a layer that reads them."""
    if any(s % 2 for s in g.pairs(x)[1]) or g.opset < 10:
        return None
    even, odd = (g.slice(x, 1, i, 2**40, 2) for i in (0, 1))
    return g.linear(g.op("Concat", even, odd, axis=g.pick(2, -1) if g.opset >= 11 else 2), g.width())


@step(1, "tokens")
def square(g: Grower, x: str) -> str | None:
    """Axes of equal size that change places."""
    if g.pairs(x)[1] != g.pairs(x)[2]:
        return None
    y = g.op("Transpose", x, perm=[0, 2, 1])
    return g.op("Add", y, x) if g.chance(0.5) else y
