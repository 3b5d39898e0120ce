"""Transpose, Expand and Tile."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.rules.base import (
    Constraint,
    Edit,
    Kept,
    Lock,
    NodeView,
    SetInput,
    Sized,
    Tie,
    fixup,
    free,
    keeps_zero,
    rule,
)
from onnxprune.sizes import LARGEST, factor

keeps_zero("all", "Transpose", "Expand", "Tile", slots=(0,))


@rule("Transpose")
def transpose(n: NodeView) -> Iterator[Constraint]:
    """Output axis i is input axis perm[i]."""
    perm = n.attrs.get("perm") or range(len(n.shape(0)))[::-1]
    for axis, source in enumerate(perm):
        yield Tie(n.x(0, source), n.y(axis))


@rule("Expand")
def expand(n: NodeView) -> Iterator[Constraint]:
    """Axes of size one are stretched to the size that the shape input says; the others pass."""
    rank = len(n.out_shape())
    numbers = n.numbers(1)
    for axis, x in enumerate(n.xs(0), start=rank - len(n.shape(0))):
        if n.shape(0)[x.axis] != 1:
            yield Tie(x, n.y(axis))
    for axis, y in enumerate(n.ys()):
        place = axis - rank + len(numbers) if numbers is not None else 0
        if numbers is None:
            yield Lock(y, "the target shape is computed")
        elif place >= 0 and numbers[place].value != 1:
            yield Sized(y, numbers[place])


@rule("Tile")
def tile(n: NodeView) -> Iterator[Constraint]:
    """An axis is repeated as a whole: all copies of an index go together."""
    for axis, (size, whole) in enumerate(zip(n.shape(0), n.out_shape(), strict=True)):
        x, y = n.x(0, axis), n.y(axis)
        if size == whole:
            yield Tie(x, y)
        elif size == 1:
            yield free(y) if n.ints(1) is not None else Lock(y, "the repeats are computed")
        elif isinstance(size, int) and whole and factor(whole) % size == 0 and n.instance(whole) <= LARGEST:
            index = np.arange(n.instance(whole))
            yield Tie(y, x, index, index % size)
        else:
            yield Lock(x, "the repeats are computed")
            yield Lock(y, "the repeats are computed")


@fixup("Tile")
def tile_repeats(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """An axis of size one is repeated as often as indices remain."""
    repeats = n.ints(1) or []  # where they are computed, no axis of size one is repeated and cut
    new = [kept(n.y(a)).size if n.shape(0)[a] == 1 else r for a, r in enumerate(repeats)]
    if new != repeats:
        yield SetInput(1, np.array(new, dtype=np.int64))


@rule("Shape", "Constant")
def no_constraint(n: NodeView) -> Iterator[Constraint]:
    """A Constant ties nothing; the sizes that Shape reads are followed by the shape arithmetic."""
    if n.node.op == "Shape":
        private = n.names[0] != n.node.inputs[0]  # a vector with other readers: this one's copy says how large it was
        for dim in n.xs(0):
            yield Lock(dim, "the size of a shared constant is read") if private else free(dim)
    else:
        for dim in n.ys():
            yield free(dim)
