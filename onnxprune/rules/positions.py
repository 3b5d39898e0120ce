"""Ops that move, sample or transform positions: they mix those, while the channels and the batch beside them pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from onnxprune.rules.base import Constraint, Dim, Lock, NodeView, Sized, Tie, Unknown, keeps_zero, rule, size_of
from onnxprune.rules.mixing import mix

keeps_zero("all", "GridSample", "Col2Im", "CenterCropPad", "DFT", "Trilu", slots=(0,))


def _tie(xs: Sequence[Dim], ys: Sequence[Dim]) -> Iterator[Constraint]:
    for x, y in zip(xs, ys, strict=True):
        yield Tie(x, y)


def _lock(dims: Sequence[Dim], reason: str) -> Iterator[Constraint]:
    for dim in dims:
        yield Lock(dim, reason)


@rule("GridSample")
def grid_sample(n: NodeView) -> Iterator[Constraint]:
    """X [N, C, ...] read at grid [N, ..., 2] -> Y [N, C, ...]: each place of Y has its own of the grid."""
    grid = n.xs(1)
    yield from _tie(n.xs(0)[:2], n.ys()[:2])
    yield from _tie(grid[:-1], [n.y(0), *n.ys()[2:]])
    yield from _lock([*n.xs(0)[2:], grid[-1]], "places of this axis are computed")


@rule("AffineGrid")
def affine_grid(n: NodeView) -> Iterator[Constraint]:
    """theta [N, 2, 3] -> a grid [N, H, W, 2]."""
    yield from _lock([*n.xs(0)[:1], *n.ys()[:1]], "AffineGrid's size says how many there are")
    yield from _lock([*n.xs(0)[1:], *n.ys()[1:]], "the matrix of a transformation, and its places")


@rule("Trilu", "Det")
def matrices(n: NodeView) -> Iterator[Constraint]:
    """The last two axes are one matrix; what lies before them counts matrices."""
    x, y = n.xs(0), n.ys()
    yield from _lock([*x[-2:], *(y[-2:] if n.node.op == "Trilu" else ())], f"{n.node.op} needs the whole matrix")
    yield from _tie(x[:-2], y[: len(x) - 2])


@rule("DFT")
def dft(n: NodeView) -> Iterator[Constraint]:
    """One axis is transformed; the last holds real and imaginary parts."""
    axis = n.ints(2) if n.opset >= 20 and n.has(2) else [n.attrs.get("axis", -2 if n.opset >= 20 else 1)]
    if axis is None:
        raise Unknown("the axis is computed")
    yield from mix(n, [*axis, -1], "DFT mixes the axis")


@rule("STFT")
def stft(n: NodeView) -> Iterator[Constraint]:
    """signal [N, length, 1] -> [N, frames, frequencies, 2]."""
    yield Tie(n.x(0, 0), n.y(0))
    yield from _lock([*n.xs(0)[1:], *n.ys()[1:]], "STFT mixes the axis")


@rule("Col2Im")
def col2im(n: NodeView) -> Iterator[Constraint]:
    """[N, C x block, places] -> [N, C, image...]: a channel is a run of rows, one for each place of the block."""
    block = n.ints(2)
    if block is None:
        raise Unknown("the size of the block is computed")
    rows = np.arange(size_of(n.shape(0)[1], "the rows"))
    yield Tie(n.x(0, 0), n.y(0))
    yield Tie(n.x(0, 1), n.y(1), rows, rows // prod(block))
    yield from _lock([n.x(0, 2), *n.ys()[2:]], "blocks of this axis are summed up")


@rule("CenterCropPad")
def center_crop_pad(n: NodeView) -> Iterator[Constraint]:
    """Some axes are brought to a size by cropping or padding both ends."""
    rank = len(n.shape(0))
    sized = {axis % rank for axis in n.attrs.get("axes", range(rank))}
    for axis, (x, y) in enumerate(zip(n.xs(0), n.ys(), strict=True)):
        if axis in sized:
            yield from _lock([x, y], "the axis is cropped or padded to a size")
        else:
            yield Tie(x, y)


@rule("MaxUnpool")
def max_unpool(n: NodeView) -> Iterator[Constraint]:
    """Values go back where MaxPool's indices say."""
    for dims in (n.xs(0), n.xs(1), n.ys()):
        yield from _lock(dims, "MaxUnpool's indices count across the channels")


@rule("EyeLike", "Range")
def numbered(n: NodeView) -> Iterator[Constraint]:
    """Each element says at which index it stands."""
    yield from _lock([*n.xs(0), *n.ys()], f"{n.node.op} numbers this axis")


@rule("ConstantOfShape")
def constant_of_shape(n: NodeView) -> Iterator[Constraint]:
    """One value everywhere: the sizes follow the numbers of the shape."""
    numbers = n.numbers(0)
    for axis, y in enumerate(n.ys()):
        yield Lock(y, "the shape is computed") if numbers is None else Sized(y, numbers[axis])
