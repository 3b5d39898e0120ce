"""Steps that pick, glue and shuffle channels."""

from __future__ import annotations

import numpy as np

from tools.networks.grower import Grower, step


@step(5)
def concat(g: Grower, x: str) -> str | None:
    shape = g.shape(x)
    other = g.fitting(lambda s: (s[0], *s[2:]) == (shape[0], *shape[2:]))
    parts = [x, *([other] if other else []), *([x] if g.random.random() < 0.1 else [])]
    g.random.shuffle(parts)
    return g.op("Concat", *parts, axis=g.random.choice([1, -3])) if len(parts) > 1 else None


@step(5)
def split(g: Grower, x: str) -> str | None:
    """In halves or unevenly; the parts live on, meet again, or are glued the other way round."""
    channels = g.shape(x)[1]
    if channels < 2:
        return None
    if channels % 2 == 0 and g.random.random() < 0.6:
        parts = g.halves(x)
    else:
        first = g.random.randint(1, channels - 1)
        parts = g.ops("Split", x, [first, channels - first], axis=1, outputs=2)
    g.live += parts
    if g.shape(parts[0]) == g.shape(parts[1]) and g.random.random() < 0.4:
        return g.op("Mul", parts[0], g.op("Sigmoid", parts[1]))
    if g.random.random() < 0.5:
        return g.op("Concat", g.conv(parts[0], g.width()), parts[1], axis=1)
    return g.op("Concat", parts[1], parts[0], axis=1)


@step(2)
def slice_(g: Grower, x: str) -> str | None:
    channels = g.shape(x)[1]
    start = g.random.randint(0, channels - 1)
    end = g.random.randint(start + 1, channels)
    if g.random.random() < 0.2:
        return g.op("Slice", x, [0], [channels], [1], [2])
    starts = [start - channels if g.random.random() < 0.3 else start]
    return g.op("Slice", x, starts, [2**40 if end == channels else end], [g.random.choice([1, -3])])


@step(2)
def gather(g: Grower, x: str) -> str:
    channels = g.shape(x)[1]
    picked = [g.random.randrange(-channels, channels) for _ in range(g.random.randint(1, channels + 1))]
    order = g.random.choice([list(range(channels))[::-1], picked])
    return g.op("Gather", x, np.array(order, dtype=g.random.choice([np.int64, np.int32])), axis=1)


@step(2)
def pad(g: Grower, x: str) -> str:
    before, after = g.random.randint(0, 2), g.random.randint(0, 3)
    return g.op("Pad", x, [0, before, 0, 1, 0, after, 0, 0], g.random.choice([0.0, 0.5]))


@step(2)
def repeat(g: Grower, x: str) -> str:
    c = g.shape(x)[1]
    if c == 1 or g.random.random() < 0.3:
        one = x if c == 1 else g.conv(x, 1)
        target = g.random.choice([4, 6])
        if g.random.random() < 0.5:
            return g.op("Tile", one, [1, target, 1, 1])
        return g.op("Expand", one, [1, target, 1, 1])
    return g.op("Tile", x, [1, 2, 1, 1])


@step(5)
def shuffle(g: Grower, x: str) -> str | None:
    """A channel shuffle; its sizes are constants or computed."""
    n, c, h, w = g.shape(x)
    groups = g.divisor(c)
    if not groups:
        return None
    if g.random.random() < 0.3:
        batch, channels, rows, columns = g.sizes(x)
        per = g.op("Div", channels, [groups])
        target = g.op("Concat", batch, [groups], per, rows, columns, axis=0)
        back = g.op("Concat", batch, [-1], rows, columns, axis=0)
    else:
        target = g.const([0, groups, c // groups, h, w] if not n else [n, groups, c // groups, h, w])
        back = g.const(g.random.choice([[0, c, h, w], [0, -1, h, w]]))
    y = g.op("Transpose", g.op("Reshape", x, target), perm=[0, 2, 1, 3, 4])
    y = g.op("Reshape", y, back)
    return y if g.shape(y) else g.declare(y, "N", c, h, w)


@step(2)
def chunk(g: Grower, x: str) -> str | None:
    """Halves as torchscript writes them, by arithmetic on the shape."""
    if g.shape(x)[1] % 2 or not g.shape(x)[0]:
        return None
    channels = g.sizes(x)[1]
    half = g.op("Div", g.op("Add", channels, [1]), [2])
    left = g.op("Slice", x, [0], g.op("Mul", half, [1]), [1])
    right = g.op("Slice", x, g.op("Mul", half, [1]), g.op("Mul", half, [2]), [1])
    return g.op("Add", left, right) if g.random.random() < 0.3 else g.op("Concat", right, left, axis=1)


@step(2)
def blocks(g: Grower, x: str) -> str | None:
    """Pixel shuffle and unshuffle."""
    _, c, h, w = g.shape(x)
    if c % 4 == 0 and h <= 8 and g.random.random() < 0.6:
        return g.op("DepthToSpace", x, blocksize=2, mode=g.random.choice(["DCR", "CRD"]))
    return g.op("SpaceToDepth", x, blocksize=2) if h % 2 == w % 2 == 0 else None
