"""Steps that pick, repeat and shuffle channels."""

from __future__ import annotations

import numpy as np

from tools.networks.grower import KINDS, Grower, step
from tools.networks.pointwise import smooth


def axis_of(g: Grower, x: str) -> int:
    """The axis of the channels, counted from the front or from the back."""
    axis = KINDS[g.kind]
    return g.pick(axis, axis - len(g.shape(x))) if g.opset >= 11 else axis


def mixed(g: Grower, x: str, width: int | None = None) -> str:
    """A layer over the channels of a value of any kind."""
    width = width or g.width()
    if g.kind in ("map", "line"):
        return g.conv(x, width, g.pick(1, 1, 3), bias=g.chance(0.6))
    if g.kind == "heads":
        return g.op("MatMul", x, g.weight(g.shape(x)[3], g.shape(x)[3], fan=g.shape(x)[3]))
    return g.linear(x, width)


@step(5)
def split(g: Grower, x: str) -> str | None:
    """In halves or unevenly; the parts live on, meet again, or are glued the other way round."""
    channels, axis = g.channels(x), axis_of(g, x)
    if channels < 2:
        return None
    first = channels // 2 if channels % 2 == 0 and g.chance(0.6) else g.random.randint(1, channels - 1)
    parts = g.split(x, axis, first, channels - first)
    for part in parts:
        g.keep(g.kind, part)
    if g.pairs(parts[0]) == g.pairs(parts[1]) and g.chance(0.5):
        return g.op("Mul", parts[0], g.op(g.pick("Sigmoid", "Tanh"), parts[1]))
    if g.chance(0.5) and g.kind != "heads":
        return g.op("Concat", mixed(g, parts[0]), parts[1], axis=axis)
    return g.op("Concat", parts[1], parts[0], axis=axis)


@step(2)
def sliced(g: Grower, x: str) -> str | None:
    """A run of channels, every second one, or all of them the other way round."""
    channels, axis = g.channels(x), axis_of(g, x)
    start = g.random.randint(0, channels - 1)
    end = g.random.randint(start + 1, channels)
    if g.opset >= 10 and g.chance(0.2):
        return g.slice(x, axis, -1, -(2**40), -1) if g.chance(0.5) else g.slice(x, axis, 0, channels, 2)
    if g.opset >= 10 and g.chance(0.2):
        target = [s if a != KINDS[g.kind] else channels - start for a, s in enumerate(g.sizes(x))]
        return g.note(g.slice(x, axis, g.const([start]), g.vector(g.size(x, axis))), target)
    return g.slice(x, axis, start - channels if g.chance(0.3) else start, 2**40 if end == channels else end)


@step(2)
def gathered(g: Grower, x: str) -> str:
    channels = g.channels(x)
    lowest = -channels if g.opset >= 11 else 0
    picked = [g.random.randrange(lowest, channels) for _ in range(g.random.randint(1, channels + 1))]
    order = g.pick(list(range(channels))[::-1], picked)
    indices = np.array(order, dtype=g.pick(np.int64, np.int32))
    return g.op("Gather", x, g.const(indices), axis=axis_of(g, x))


@step(2)
def padded(g: Grower, x: str) -> str:
    """Along the channels, along another axis, or along both."""
    rank = len(g.shape(x))
    pads = np.zeros((2, rank), dtype=int)
    pads[:, KINDS[g.kind]] = g.pick((0, 0), (1, 0), (0, 2), (2, 1))
    if g.chance(0.5) and g.kind != "flat":
        pads[:, g.random.randrange(1, rank)] = g.pick((0, 1), (1, 0), (1, 1))
    mode = g.pick("constant", "constant", "constant", "edge")
    return g.pad(x, pads.reshape(-1).tolist(), g.pick(0.0, 0.0, 0.5) if mode == "constant" else 0.0, mode)


@step(2)
def repeated(g: Grower, x: str) -> str | None:
    """Tile and Expand, from one channel or from many."""
    c, axis, rank = g.channels(x), KINDS[g.kind], len(g.shape(x))
    if (c == 1 or g.chance(0.3)) and g.kind != "heads":
        one = x if c == 1 else mixed(g, x, 1)
        target = g.random.choice([4, 6])
        if g.chance(0.5):
            return g.op("Tile", one, [target if a == axis else 1 for a in range(rank)])
        sizes = g.sizes(one)
        return g.expand(one, *(target if a == axis else s for a, s in enumerate(sizes)))
    return g.op("Tile", x, [2 if a == axis else 1 for a in range(rank)])


@step(5, "map", "line", "tokens", "flat")
def shuffled(g: Grower, x: str) -> str | None:
    """A channel shuffle."""
    axis, groups = KINDS[g.kind], g.divisor(g.channels(x))
    if not groups:
        return None
    sizes = g.sizes(x)
    per = g.pick(g.size(x, axis) // groups, g.channels(x) // groups)
    y = g.reshape(x, *sizes[:axis], groups, per, *sizes[axis + 1 :])
    perm = list(range(len(sizes) + 1))
    perm[axis], perm[axis + 1] = axis + 1, axis
    y = g.op("Transpose", y, perm=perm)
    if g.chance(0.2):
        y = smooth(g, y)
    whole = g.pick(g.channels(x), g.size(y, axis) * g.size(y, axis + 1), g.size(x, axis))
    return g.reshape(y, *sizes[:axis], whole, *sizes[axis + 1 :])


@step(2, since=10)
def chunked(g: Grower, x: str) -> str | None:
    """Halves as torchscript writes them, by arithmetic on the shape."""
    axis = KINDS[g.kind]
    if g.channels(x) % 2:
        return None
    half = g.op("Div", g.op("Add", g.vector(g.size(x, axis)), [1]), [2])
    target = [s if a != axis else g.channels(x) // 2 for a, s in enumerate(g.sizes(x))]
    left = g.note(g.slice(x, axis, g.const([0]), g.op("Mul", half, [1])), target)
    right = g.note(g.slice(x, axis, g.op("Mul", half, [1]), g.op("Mul", half, [2])), target)
    return g.op("Add", left, right) if g.chance(0.3) else g.op("Concat", right, left, axis=axis)


@step(2, "map")
def blocks(g: Grower, x: str) -> str | None:
    """Pixel shuffle and unshuffle, fused or written out."""
    n, c, h, w = g.sizes(x)
    channels, rows, columns = g.shape(x)[1:]
    if channels % 4 == 0 and rows <= 4 and columns <= 4 and g.chance(0.6):
        if g.opset >= 11 and g.chance(0.6):
            return g.op("DepthToSpace", x, blocksize=2, mode=g.pick("DCR", "CRD"))
        y = g.op("Transpose", g.reshape(x, n, channels // 4, 2, 2, h, w), perm=[0, 1, 4, 2, 5, 3])
        return g.reshape(y, n, c // 4, h * 2, w * 2)
    if any(s % 2 for pair in g.pairs(x)[2:] for s in pair):
        return None
    if g.chance(0.6):
        return g.op("SpaceToDepth", x, blocksize=2)
    if g.opset < 10:
        return None
    corners = [g.slice(g.slice(x, 2, i, 2**40, 2), 3, j, 2**40, 2) for j in (0, 1) for i in (0, 1)]
    return g.op("Concat", *corners, axis=1)


@step(2, "map", "line", "tokens", "flat")
def maxout(g: Grower, x: str) -> str | None:
    """Channels in pieces, of which the largest stays."""
    axis, pieces = KINDS[g.kind], g.divisor(g.channels(x))
    if not pieces:
        return None
    sizes, inner = g.sizes(x), g.chance(0.5)
    parts = [g.channels(x) // pieces, pieces] if inner else [pieces, g.channels(x) // pieces]
    y = g.reshape(x, *sizes[:axis], *parts, *sizes[axis + 1 :])
    kind = g.pick("ReduceMax", "ReduceMax", "ReduceMean", "ReduceSum", "ReduceMin")
    return g.reduce(kind, y, [axis + 1 if inner else axis], keepdims=0)


@step(2, "map", "tokens", "line")
def merged(g: Grower, x: str) -> str | None:
    """Channels and another axis as one, and apart again."""
    if not g.fixed(x):
        return None
    sizes = g.sizes(x)
    other = g.pick(1, 2) if len(sizes) == 4 else 1
    y = g.reshape(x, *sizes[:other], sizes[other] * sizes[other + 1], *sizes[other + 2 :])
    back = [size if i and g.chance(0.5) else s for i, (s, size) in enumerate(zip(sizes, g.shape(x), strict=True))]
    return g.reshape(smooth(g, y), *back)


@step(2, "map", "tokens", "line")
def through_a_matrix(g: Grower, x: str) -> str | None:
    """All axes but the batch as one, perhaps through a layer, and apart again."""
    if not g.fixed(x):
        return None
    wide = int(np.prod(g.shape(x)[1:]))
    y = g.op("Flatten", x)
    if g.chance(0.5) and wide <= 128:
        y = g.linear(y, wide)
    return g.reshape(smooth(g, y), *g.sizes(x))
