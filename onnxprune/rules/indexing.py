"""Ops that read or write where indices say: along the indexed axes every index is needed, the others pass.

What is written is not like what is read: a slice that updates lose is zero in the masked original and would still be
written there, so the axes that count the updates stay, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from onnxprune.rules.base import Constraint, Dim, Lock, NodeView, Tie, Unknown, keeps_zero, rule, size_of

READ = "it is indexed by data"
WRITTEN = "it is written where data say"
COUNTED = "each of its indices is written somewhere"

keeps_zero("all", "GatherElements", "GatherND", "Compress", "ReverseSequence", slots=(0,))
keeps_zero("all", "ScatterElements", "Scatter", "ScatterND", slots=(0, 2))
keeps_zero("all", "TensorScatter", slots=(0, 1))


def _lock(dims: Iterable[Dim], reason: str) -> Iterator[Constraint]:
    for dim in dims:
        yield Lock(dim, reason)


@rule("GatherElements")
def gather_elements(n: NodeView) -> Iterator[Constraint]:
    """y[i][j] = x[i][index[i][j]] (axis 1): beside the axis, an element is read at its own place."""
    axis = n.attrs.get("axis", 0) % len(n.shape(0))
    for i, (x, index, y) in enumerate(zip(n.xs(0), n.xs(1), n.ys(), strict=True)):
        yield Tie(index, y)
        if i == axis:
            yield Lock(x, READ)
        else:
            yield from _leading(x, y, n.shape(0)[i], n.out_shape()[i])


def _leading(x: Dim, y: Dim, wide: int | str | None, narrow: int | str | None) -> Iterator[Constraint]:
    """y may be shorter than x: it then has the first indices of x."""
    if wide == narrow:
        yield Tie(x, y)
    elif isinstance(wide, int) and isinstance(narrow, int):
        yield Tie(x, y, np.arange(narrow), np.arange(narrow))
    else:
        yield from _lock((x, y), "how much of this axis is indexed is not known; give --shape")


@rule("ScatterElements", "Scatter")
def scatter_elements(n: NodeView) -> Iterator[Constraint]:
    """y = x, but y[i][index[i][j]] = updates[i][j] (axis 1): beside the axis, an element is written at its place."""
    axis = n.attrs.get("axis", 0) % len(n.shape(0))
    for i, (x, index, updates, y) in enumerate(zip(n.xs(0), n.xs(1), n.xs(2), n.ys(), strict=True)):
        if i == axis:
            yield from _lock((x, y), WRITTEN)
            yield from _lock((index, updates), COUNTED)
        else:
            yield Tie(x, y)
            yield Tie(index, updates)
            yield from _leading(y, updates, n.out_shape()[i], n.shape(2)[i])


@rule("GatherND")
def gather_nd(n: NodeView) -> Iterator[Constraint]:
    """x [batch.., indexed.., rest..], indices [batch.., places.., k] -> y [batch.., places.., rest..]."""
    batch, x, index, y = n.attrs.get("batch_dims", 0), n.xs(0), n.xs(1), n.ys()
    end = batch + size_of(n.shape(1)[-1], "the last axis of the indices")
    yield Lock(index[-1], "each row of it is a place")
    yield from _lock(x[batch:end], READ)
    for a, b in zip(x[:batch], y[:batch], strict=True):
        yield Tie(a, b)
    for a, b in zip(index[:-1], y[: len(index) - 1], strict=True):
        yield Tie(a, b)
    for a, b in zip(x[end:], y[len(index) - 1 :], strict=True):
        yield Tie(a, b)


@rule("ScatterND")
def scatter_nd(n: NodeView) -> Iterator[Constraint]:
    """y = x [indexed.., rest..], but y[indices[places]] = updates [places.., rest..]."""
    x, index, updates, y = n.xs(0), n.xs(1), n.xs(2), n.ys()
    k = size_of(n.shape(1)[-1], "the last axis of the indices")
    yield from _lock((*x[:k], *y[:k]), WRITTEN)
    yield from _lock((*index, *updates[: len(index) - 1]), COUNTED)
    for a, b, c in zip(x[k:], updates[len(index) - 1 :], y[k:], strict=True):
        yield Tie(a, c)
        yield Tie(b, c)


@rule("TensorScatter")
def tensor_scatter(n: NodeView) -> Iterator[Constraint]:
    """A cache whose positions along `axis` are written from an index on; each of a batch has its own."""
    axis = n.attrs.get("axis", -2) % len(n.shape(0))
    for i, (cache, update, y) in enumerate(zip(n.xs(0), n.xs(1), n.ys(), strict=True)):
        if i == axis:
            yield from _lock((cache, y), WRITTEN)
            yield Lock(update, COUNTED)
        else:
            yield Tie(cache, y)
            yield Tie(update, y)
    if n.has(2):
        yield Tie(n.x(2, 0), n.y(0))


@rule("Compress")
def compress(n: NodeView) -> Iterator[Constraint]:
    """Indices of `axis` stay where a condition holds; without an axis everything is laid out flat."""
    if "axis" not in n.attrs:
        raise Unknown("Compress without an axis counts across all of them")
    axis = n.attrs["axis"] % len(n.shape(0))
    yield Lock(n.x(1, 0), "each index of it decides on another")
    for i, (x, y) in enumerate(zip(n.xs(0), n.ys(), strict=True)):
        if i == axis:
            yield from _lock((x, y), "data decide which indices stay")
        else:
            yield Tie(x, y)


@rule("OneHot")
def one_hot(n: NodeView) -> Iterator[Constraint]:
    """An axis appears whose indices are the values that the input may take."""
    y = n.ys()
    yield Lock(y.pop(n.attrs.get("axis", -1) % len(y)), "the indices of this axis are values of the input")
    for x, dim in zip(n.xs(0), y, strict=True):
        yield Tie(x, dim)


@rule("ReverseSequence")
def reverse_sequence(n: NodeView) -> Iterator[Constraint]:
    """The first positions along the time axis are reversed, as many as each of the batch says."""
    batch, time = n.attrs.get("batch_axis", 1), n.attrs.get("time_axis", 0) % len(n.shape(0))
    yield Tie(n.x(1, 0), n.y(batch))
    for i, (x, y) in enumerate(zip(n.xs(0), n.ys(), strict=True)):
        if i == time:
            yield from _lock((x, y), "data decide how much of this axis is reversed")
        else:
            yield Tie(x, y)


@rule("NonZero", "Unique")
def found(n: NodeView) -> Iterator[Constraint]:
    """What comes out, and how much of it, depends on every element."""
    for slot in n.outputs():
        yield from _lock(n.ys(slot), f"{n.node.op} depends on every element")
    yield from _lock(n.xs(0), f"{n.node.op} depends on every element")
