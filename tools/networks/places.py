"""Steps that read an image where data say, and that transform the last axes as matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.networks.grower import Grower, step


@step(2, "map", since=16)
def sampled(g: Grower, x: str) -> str:
    """GridSample, at places that a layer finds."""
    grid = g.op("Transpose", g.op("Tanh", g.conv(x, 2, 1)), perm=[0, 2, 3, 1])
    if g.opset >= 20 and g.chance(0.4) and g.fixed(x) and g.fixed(x, 0):
        n, channels, _, _ = g.shape(x)
        theta = g.op("Reshape", g.linear(g.pooled(x, [2, 3]), 6), [n, 2, 3])
        grid = g.op("AffineGrid", theta, [n, channels, 3, 4])
    attrs = {"mode": g.pick("bilinear", "nearest")} if g.opset < 20 else {"mode": g.pick("linear", "nearest")}
    return g.op("GridSample", x, grid, padding_mode=g.pick("zeros", "border"), **attrs)


@step(1, "map", "tokens", "line", "heads", since=14)
def triangle(g: Grower, x: str) -> str:
    return g.op("Trilu", x, *g.pick([], [g.const(np.int64(g.pick(-1, 0, 1)))]), upper=g.pick(0, 1))


@step(1, "map", "line", since=17)
def spectrum(g: Grower, x: str) -> str | None:
    """A DFT of real numbers along any axis; real and imaginary parts become places."""
    if not g.fixed(x):
        return None
    sizes, rank = g.sizes(x), len(g.shape(x))
    axis = g.random.randrange(1, rank)
    real = g.unsqueeze(x, rank)
    y = g.op("DFT", real, None, np.int64(axis)) if g.opset >= 20 else g.op("DFT", real, axis=axis)
    y = g.op("Mul", g.note(y, [*sizes, 2]), 0.3)
    return g.reshape(y, *sizes[:-1], g.shape(x)[-1] * 2)


@step(1, "map", "line", since=18)
def folded(g: Grower, x: str) -> str | None:
    """Col2Im: patches are put back, a channel a run of rows."""
    if g.kind != "map" or not g.fixed(x) or max(g.shape(x)[2:]) > 4:
        return None
    _, _, h, w = g.shape(x)
    wide = g.pick(2, 3, 4)
    rows = g.reshape(g.conv(x, wide * 4, 1), g.size(x, 0), wide * 4, h * w)
    return g.op("Col2Im", rows, [2 * h, 2 * w], [2, 2], strides=[2, 2])


@step(1, "map", "tokens", since=18)
def cropped(g: Grower, x: str) -> str | None:
    axis = g.random.randrange(1, len(g.shape(x)))
    size = g.random.randint(1, 6)
    target = [size if a == axis else s for a, s in enumerate(g.sizes(x))]
    return g.note(g.op("CenterCropPad", x, [size], axes=[axis]), target) if g.fixed(x, axis) else None


@step(1, "map", since=11)
def unpooled(g: Grower, x: str) -> str | None:
    if not g.fixed(x) or any(s % 2 for s in g.shape(x)[2:]):
        return None
    y, places = g.ops("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], outputs=2)
    return g.like(g.op("MaxUnpool", y, places, kernel_shape=[2, 2], strides=[2, 2]), x)


@step(1, "map", since=10, until=21)
def boxes(g: Grower, x: str) -> str | None:
    """RoiAlign and MaxRoiPool: what lies inside of boxes, one of each of the batch."""
    if not (g.fixed(x) and g.fixed(x, 0)):
        return None
    n = g.shape(x)[0]
    corners = np.sort(g.rng.uniform(0, 4, (n, 2, 2)), axis=1).reshape(n, 4).astype(np.float32)
    if g.chance(0.4):
        rois = np.concatenate([np.arange(n)[:, None], corners], axis=1).astype(np.float32)
        return g.op("MaxRoiPool", x, rois, pooled_shape=[2, 2])
    attrs: dict[str, Any] = {"output_height": 2, "output_width": 2}
    return g.op("RoiAlign", x, g.const(corners), g.const(np.arange(n)), **attrs)


@step(2, "map", since=19)
def deformed(g: Grower, x: str) -> str | None:
    """A convolution whose taps are moved by a layer."""
    channels = g.channels(x)
    groups = g.pick(1, g.divisor(channels, 1) or 1)
    moved = g.divisor(channels, 1) if g.chance(0.3) else 1
    if not moved or moved > 4:
        return None
    out, taps = groups * g.pick(1, 2, 3), 4
    offset = g.conv(x, moved * taps * 2, 1)
    rest = [g.weight(out) if g.chance(0.5) else None]
    rest += [g.op("Sigmoid", g.conv(x, moved * taps, 1))] if g.chance(0.5) else []
    w = g.weight(out, channels // groups, 2, 2)
    attrs: dict[str, Any] = {"group": groups, "offset_group": moved, "pads": [0, 0, 1, 1]}
    return g.op("DeformConv", x, w, offset, *rest, **attrs)
