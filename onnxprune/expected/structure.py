"""What operators that move elements do to laws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.expected.law import LARGEST, Floats, Law
from onnxprune.expected.laws import Laws, expects
from onnxprune.rules.base import RULES, Dim, NodeView, Tie, Unknown, size_of
from onnxprune.rules.regroup import blocks, named


@expects("Transpose")
def _transpose(f: Laws, n: NodeView) -> Sequence[Law]:
    return [f.x(n, 0).moved(lambda entry: entry.transpose(n.attrs.get("perm")))]


@expects("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _regroup(f: Laws, n: NodeView) -> Sequence[Law]:
    """Axes along which elements differ are written out where they are regrouped; the others stay one."""
    x, shape, out = f.x(n, 0), n.shape(0), n.out_shape()
    form, target = list(x.form), [1] * len(out)
    for block in blocks(named(n.xs(0), shape), named(n.ys(), out)):
        if any(form[axis] != 1 for axis in block.x):
            for axis in block.x:
                form[axis] = size_of(shape[axis], "an axis")
            for axis in block.y:
                target[axis] = size_of(out[axis], "an axis")
    return [Law(_broadcast(x.table, [len(x.table), *form]).reshape(len(x.table), *target))]


@expects("Concat")
def _concat(f: Laws, n: NodeView) -> Sequence[Law]:
    axis = n.attrs["axis"] % len(n.out_shape())
    parts = [f.x(n, slot) for slot in range(len(n.node.inputs))]
    form = list(np.broadcast_shapes(*((*p.form[:axis], 1, *p.form[axis + 1 :]) for p in parts)))
    length = max(len(p.table) for p in parts)
    tables = []
    for slot, part in enumerate(parts):
        form[axis] = size_of(n.shape(slot)[axis], "an axis")
        tables.append(_broadcast(part.table, [length, *form]))
    return [Law(np.concatenate(tables, axis=axis + 1))]


@expects("Split", "Slice")
def _take(f: Laws, n: NodeView) -> Sequence[Law]:
    """Where the rule ties output indices to input indices, these are what is copied."""
    ties = [t for t in RULES.get(n.node.op)(n) if isinstance(t, Tie)]
    return [_taken(f.x(n, 0), n, ties, name) for name in n.node.outputs]


def _taken(x: Law, n: NodeView, ties: Sequence[Tie], output: str) -> Law:
    for axis, size in enumerate(x.form):
        if size == 1:
            continue
        pairs = [t for t in ties if {t.a, t.b} == {Dim(output, axis), Dim(n.names[0], axis)}]
        if len(pairs) != 1:
            raise Unknown("indices that are not known")
        (tie,) = pairs
        y, source = (tie.ia, tie.ib) if tie.a.value == output else (tie.ib, tie.ia)
        if y is not None and source is not None:
            x = Law(np.take(x.table, source[np.argsort(y)], axis=axis + 1))
    return x


@expects("Gather")
def _gather(f: Laws, n: NodeView) -> Sequence[Law]:
    x, axis, indices = f.x(n, 0), n.attrs.get("axis", 0) % len(n.shape(0)), n.const(1)
    if indices is None or indices.ndim > 1:
        raise Unknown("indices that are not known")
    places = indices if x.form[axis] != 1 else np.zeros_like(indices)
    return [x.moved(lambda entry: np.take(entry, places, axis=axis))]


@expects("Expand")
def _expand(f: Laws, n: NodeView) -> Sequence[Law]:
    x = f.x(n, 0)
    return [x.moved(lambda entry: entry.reshape((1,) * (len(n.out_shape()) - entry.ndim) + entry.shape))]


@expects("Pad")
def _pad(f: Laws, n: NodeView) -> Sequence[Law]:
    """The inside of it; channels that are put beside others are another matter."""
    x, pads, axes = f.x(n, 0), n.ints(1, "pads"), n.ints(3) if n.has(3) else range(len(n.shape(0)))
    if pads is None or axes is None:
        raise Unknown("the padding is computed")
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if (before or after) and x.form[axis] != 1:
            raise Unknown("channels are padded")
    return [Law(x.table)]


def _broadcast(table: Floats, shape: Sequence[int]) -> Floats:
    if np.prod(shape) > LARGEST:
        raise Unknown("too many entries")
    return np.broadcast_to(table, shape)
