"""Ops that pick, cut or glue indices of an axis: Concat, Split, Slice, Gather, Pad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.number import Number
from onnxprune.rules.base import (
    Constraint,
    Dim,
    Edit,
    Index,
    Kept,
    Lock,
    NodeView,
    SetAttr,
    SetInput,
    Tie,
    Unknown,
    fixup,
    keeps_zero,
    rule,
    size_of,
)

keeps_zero("all", "Split", "Slice", "Gather", slots=(0,))
keeps_zero("all", "Concat")


@rule("Concat")
def concat(n: NodeView) -> Iterator[Constraint]:
    """Along `axis` the inputs follow one another; the other axes agree."""
    axis = n.attrs.get("axis", 1) % len(n.out_shape())
    sizes = [n.shape(slot)[axis] for slot in range(len(n.node.inputs))]
    known = [size for size in sizes if isinstance(size, int)]
    start = 0
    for slot, size in enumerate(sizes):
        for x, y in zip(n.xs(slot), n.ys(), strict=True):
            if x.axis != axis:
                yield Tie(x, y)
        if len(known) < len(sizes):
            yield Lock(n.x(slot, axis), "it is joined with an axis of open size")
        elif isinstance(size, int):
            yield Tie(n.x(slot, axis), n.y(axis), np.arange(size), np.arange(start, start + size))
            start += size
    if len(known) < len(sizes):
        yield Lock(n.y(axis), "it is joined with an axis of open size")


@rule("Split")
def split(n: NodeView) -> Iterator[Constraint]:
    """The outputs are consecutive parts of `axis`."""
    axis = n.attrs.get("axis", 0) % len(n.shape(0))
    start = 0
    for slot in range(len(n.node.outputs)):
        for x, y in zip(n.xs(0), n.ys(slot), strict=True):
            if x.axis != axis:
                yield Tie(x, y)
        size = size_of(n.out_shape(slot)[axis], "a part")
        yield Tie(n.y(axis, slot), n.x(0, axis), np.arange(size), np.arange(start, start + size))
        start += size


@fixup("Split")
def split_sizes(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The parts' new sizes; an implicit equal split becomes explicit where the parts differ."""
    axis = n.attrs.get("axis", 0) % len(n.shape(0))
    old = [n.out_shape(slot)[axis] for slot in range(len(n.node.outputs))]
    new = [kept(n.y(axis, slot)).size for slot in range(len(n.node.outputs))]
    implicit = "split" not in n.attrs and not n.has(1)
    if new == old or (implicit and len(set(new)) == 1):
        return
    if n.opset < 13:
        yield SetAttr("split", new)
    else:
        yield SetInput(1, np.array(new, dtype=np.int64))
        if "num_outputs" in n.attrs:
            yield SetAttr("num_outputs", None)


@rule("Slice")
def slice_(n: NodeView) -> Iterator[Constraint]:
    """A run of consecutive indices of an axis; what lies outside is free to go."""
    bounds = _bounds(n)
    for axis, (x, y) in enumerate(zip(n.xs(0), n.ys(), strict=True)):
        size = n.shape(0)[axis]
        if axis not in bounds:
            yield Tie(x, y)
        elif not isinstance(size, int) or (taken := bounds[axis]) is None:
            yield Lock(x, "the slice of this axis is computed")
            yield Lock(y, "the slice of this axis is computed")
        else:
            picked = np.arange(size)[taken]
            yield Tie(y, x, np.arange(picked.size), picked)
            if taken.step != 1:
                yield _stepped(x, size, taken)


def _stepped(x: Dim, size: int, taken: slice) -> Constraint:
    """One of each run of `step` indices, to the end: whole runs go, so that the others keep their places in one."""
    start, end, step = taken.indices(size)
    if step > 1 and size % step == 0 and start < step and end > size - step + start:
        index = np.arange(size)
        return Tie(x, x, index, index // step * step)
    return Lock(x, "a slice with steps needs every index in its place")


@fixup("Slice")
def slice_bounds(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """Starts and ends count the indices that remain before them."""
    changed = {}
    for axis, taken in _bounds(n).items():
        size = n.shape(0)[axis]
        if taken is None or not isinstance(size, int) or (rest := kept(n.x(0, axis))).size == size:
            continue
        start, end, step = taken.indices(size)
        first = start if step > 1 else int(np.searchsorted(rest, start))  # its place in a run does not move
        changed[axis] = (first, int(np.searchsorted(rest, end)))
    if not changed:
        return
    axes = _slice_axes(n)
    for slot, attr, side in ((1, "starts", 0), (2, "ends", 1)):
        values = list(n.ints(slot, attr) or ())
        for place, axis in enumerate(axes):
            if axis in changed:
                values[place] = changed[axis][side]
        yield SetAttr(attr, values) if attr in n.attrs else SetInput(slot, _like(n, slot, values))


def _slice_axes(n: NodeView) -> list[int]:
    rank = len(n.shape(0))
    if n.has(3) or "axes" in n.attrs:
        axes = n.ints(3, "axes")
        if axes is None:
            raise Unknown("the sliced axes are computed")
        return [axis % rank for axis in axes]
    starts = n.attrs["starts"] if "starts" in n.attrs else range(size_of(n.shape(1)[0], "starts"))
    return list(range(len(starts)))


def _bounds(n: NodeView) -> dict[int, slice | None]:
    """Sliced axis -> its slice, or None where that is computed."""
    axes = _slice_axes(n)
    columns: list[Sequence[int | None]] = []
    for slot, attr in ((1, "starts"), (2, "ends"), (4, "")):
        if attr in n.attrs:
            columns.append(n.attrs[attr])
        elif n.has(slot):
            numbers = n.numbers(slot)
            columns.append(_all_or_none(numbers, len(axes)))
        else:
            columns.append([1] * len(axes))
    found: dict[int, slice | None] = {}
    for axis, start, end, step in zip(axes, *columns, strict=True):
        known = start is not None and end is not None and step is not None
        # An end before the first index is "-1 or less" in ONNX where NumPy would count from the end.
        size = n.shape(0)[axis]
        if known and step < 0 and isinstance(size, int) and end < -size:
            end = None
        found[axis] = slice(start, end, step) if known else None
    return found


@rule("Gather")
def gather(n: NodeView) -> Iterator[Constraint]:
    """Constant indices copy and drop indices of `axis`; computed ones (an embedding) need all of them."""
    axis = n.attrs.get("axis", 0) % len(n.shape(0))
    indices, x, y = n.const(1), n.xs(0), n.ys()
    rank = len(n.shape(1))
    for i, dim in enumerate(x):
        if i != axis:
            yield Tie(dim, y[i if i < axis else i + rank - 1])
    for i, dim in enumerate(n.xs(1)):
        yield Tie(dim, y[axis + i]) if indices is None else Lock(dim, "these indices are counted anew")
    if indices is None:
        yield Lock(x[axis], "it is indexed by data")
        return
    size = n.shape(0)[axis]
    if not isinstance(size, int) or rank > 1:
        for dim in (x[axis], *y[axis : axis + rank]):
            yield Lock(dim, "a table of indices reads it" if rank > 1 else "the gathered axis has an open size")
        return
    picked = np.atleast_1d(indices).astype(np.intp) % size
    if rank == 0:
        yield Lock(x[axis], "this index is read alone", picked)
    else:
        yield Tie(y[axis], x[axis], np.arange(picked.size), picked)


@fixup("Gather")
def gather_indices(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The indices that remain, counted anew."""
    axis, indices = n.attrs.get("axis", 0) % len(n.shape(0)), n.const(1)
    size = n.shape(0)[axis]
    if indices is None or not isinstance(size, int):
        return
    rest = kept(n.x(0, axis))
    taken = indices.astype(np.intp) % size
    if indices.ndim:
        taken = taken[kept(n.y(axis))]
    if rest.size != size or taken.size != indices.size:
        yield SetInput(1, np.searchsorted(rest, taken).astype(indices.dtype))


@rule("Pad")
def pad(n: NodeView) -> Iterator[Constraint]:
    """Padded positions hold a constant: along a channel axis they are channels of their own, free to go."""
    pads = _pads(n)
    constant = n.attrs.get("mode", "constant") == "constant"
    for axis, (x, y) in enumerate(zip(n.xs(0), n.ys(), strict=True)):
        before, after = pads.get(axis, (0, 0))
        size = n.shape(0)[axis]
        if before is None or after is None:
            yield from _lock_both(x, y, "the padding is computed")
        elif before == after == 0:
            yield Tie(x, y)
        elif "pads" not in n.attrs and n.ints(1) is None:  # what is known cannot be rewritten alone
            yield from _lock_both(x, y, "the padding is computed")
        elif not constant or min(before, after) < 0 or not isinstance(size, int):
            yield from _lock_both(x, y, "the axis is padded with its own values, or cropped")
        else:
            yield Tie(x, y, np.arange(size), np.arange(before, before + size))


@fixup("Pad")
def pad_sizes(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """What remains of the padding of each axis."""
    pads = _pads(n)
    changed = {}
    for axis, (before, after) in pads.items():
        size = n.shape(0)[axis]
        if (not before and not after) or before is None or after is None or not isinstance(size, int):
            continue
        rest: Index = kept(n.y(axis))
        if rest.size != before + size + after:
            changed[axis] = (int((rest < before).sum()), int((rest >= before + size).sum()))
    if not changed:
        return
    values = list(n.ints(1, "pads") or ())
    for place, axis in enumerate(pads):
        if axis in changed:
            values[place], values[place + len(pads)] = changed[axis]
    yield SetAttr("pads", values) if "pads" in n.attrs else SetInput(1, _like(n, 1, values))


def _pads(n: NodeView) -> dict[int, tuple[int | None, int | None]]:
    """Axis -> (before, after), in the order in which the pads are written."""
    rank = len(n.shape(0))
    axes = n.ints(3) if n.has(3) else list(range(rank))
    if axes is None:
        raise Unknown("the padded axes are computed")
    if "pads" in n.attrs:
        values: Sequence[int | None] = n.attrs["pads"]
    elif (numbers := n.numbers(1)) is not None:
        values = _whole(numbers)
    else:
        values = [None] * (2 * len(axes))
    return {axis % rank: (values[i], values[i + len(axes)]) for i, axis in enumerate(axes)}


def _whole(numbers: Sequence[Number]) -> list[int | None]:
    return [None if m.value is None else int(m.value) for m in numbers]


def _all_or_none(numbers: Sequence[Number] | None, count: int) -> list[int | None]:
    """Bounds are rewritten together, so they count as known only together."""
    values = _whole(numbers) if numbers else []
    unknown: list[int | None] = [None] * count
    return unknown if not values or None in values else values


def _lock_both(x: Dim, y: Dim, reason: str) -> Iterator[Constraint]:
    yield Lock(x, reason)
    yield Lock(y, reason)


def _like(n: NodeView, slot: int, values: Sequence[int]) -> NDArray[Any]:
    return np.array(values, dtype=n.flow.dtype(n.node, slot))
