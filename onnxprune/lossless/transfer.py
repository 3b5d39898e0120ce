"""What operators do to facts: one small function an operator or family.

A closed world: after an operator without an entry here, every channel has a new name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from onnxprune.lossless.elementwise import NARY, UNARY, nary, unary, where
from onnxprune.lossless.facts import Fact, Facts
from onnxprune.rules.base import RULES, Dim, NodeView, Tie, Unknown
from onnxprune.rules.regroup import blocks, named
from onnxprune.tensors import FLOATS

Transfer = Callable[[Facts, NodeView], Sequence[Fact]]
TRANSFERS: dict[str, Transfer] = {}

REDUCE = ("ReduceMax", "ReduceMean", "ReduceMin")
SUM = ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare")


def transfer(*ops: str) -> Callable[[Transfer], Transfer]:
    """Register what some operators do."""

    def add(function: Transfer) -> Transfer:
        TRANSFERS.update(dict.fromkeys(ops, function))
        return function

    return add


# Element by element


@transfer(*UNARY)
def _unary(f: Facts, n: NodeView) -> Sequence[Fact]:
    x = f.x(n, 0)
    return [f.combine(unary(n.node.op, x, n.attrs), x)]


@transfer(*NARY)
def _nary(f: Facts, n: NodeView) -> Sequence[Fact]:
    if "axis" in n.attrs or (n.node.op == "Div" and f.type(n.node.outputs[0]) not in FLOATS):
        raise Unknown("broadcasting before opset 7, or a division of integers")
    parts = [f.x(n, slot) for slot in range(len(n.node.inputs))]
    return [f.combine(nary(n.node.op, list(parts)), *parts)]


@transfer("Where")
def _where(f: Facts, n: NodeView) -> Sequence[Fact]:
    parts = [f.x(n, slot) for slot in range(3)]
    return [f.combine(where(*parts), *parts)]


@transfer("Clip")
def _clip(f: Facts, n: NodeView) -> Sequence[Fact]:
    parts = [f.x(n, 0)]
    values = parts[0]
    for slot, attr, op in ((1, "min", "Max"), (2, "max", "Min")):
        if n.has(slot) or attr in n.attrs:
            parts.append(f.x(n, slot) if n.has(slot) else np.full((1,) * parts[0].ndim, float(n.attrs[attr])))
            values = nary(op, [values, parts[-1]])
    return [f.combine(values, *parts)]


@transfer("Dropout")
def _dropout(f: Facts, n: NodeView) -> Sequence[Fact]:
    if n.has(2) and (n.const(2) is None or n.const(2)):
        raise Unknown("training")
    return [f.rename(f.x(n, 0))]


@transfer("DequantizeLinear", "QuantizeLinear")
def _quantize(f: Facts, n: NodeView) -> Sequence[Fact]:
    """Only zero is followed to the quantised side: it is the zero point there, and zero again after it."""
    x = f.x(n, 0)
    scale = _channels(f, n, 1, n.attrs.get("axis", 1))
    zero = _channels(f, n, 2, n.attrs.get("axis", 1)) if n.has(2) else np.zeros((1,) * x.ndim)
    if n.node.op == "QuantizeLinear":
        values = np.where(x == 0, zero, np.nan)
    else:
        values = nary("Mul", [nary("Sub", [x, zero]), scale])
    return [f.combine(values, x, scale, zero)]


# Normalisation


@transfer("BatchNormalization")
def _batch_norm(f: Facts, n: NodeView) -> Sequence[Fact]:
    if n.attrs.get("training_mode", 0):
        raise Unknown("training")
    x, (scale, bias, mean, var) = f.x(n, 0), (_channels(f, n, slot, 1) for slot in range(1, 5))
    deviation = np.sqrt(np.maximum(var, 0) + n.attrs.get("epsilon", 1e-5))
    values = np.where(scale == 0, bias, (x - mean) * scale / deviation + bias)
    return [f.combine(values, x, scale, bias, mean, var)]


@transfer("InstanceNormalization")
def _instance_norm(f: Facts, n: NodeView) -> Sequence[Fact]:
    """Of a constant only zero is sure to be its own mean in floating point."""
    x, scale, bias = f.x(n, 0), _channels(f, n, 1, 1), _channels(f, n, 2, 1)
    return [f.combine(np.where((scale == 0) | (x == 0), bias, np.nan), x, scale, bias)]


def _channels(f: Facts, n: NodeView, slot: int, axis: int) -> Fact:
    """A vector (or a scalar) that goes along an axis of the first input."""
    x, vector = f.x(n, 0), f.x(n, slot)
    return vector.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])


# Axes that are not channels


@transfer("MaxPool", "GlobalMaxPool", "GlobalAveragePool", "AveragePool", "Resize", "Upsample")
def _pool(f: Facts, n: NodeView) -> Sequence[Fact]:
    """A window of one value gives that value, unless padding is counted with it."""
    x = f.x(n, 0)
    padded = any(n.attrs.get("pads") or ()) or n.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    counted = n.attrs.get("count_include_pad", 0) and (padded or n.attrs.get("ceil_mode", 0))
    if counted or n.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return [f.combine(_only_zero(x), x)]
    return [f.rename(x)]


@transfer("LpPool", "GlobalLpPool")
def _norm_pool(f: Facts, n: NodeView) -> Sequence[Fact]:
    x = f.x(n, 0)
    return [f.combine(_only_zero(x), x)]


@transfer(*REDUCE, *SUM)
def _reduce(f: Facts, n: NodeView) -> Sequence[Fact]:
    axes = reduced_axes(n)
    x = f.collapse(f.x(n, 0), axes)
    x = f.combine(_only_zero(x), x) if n.node.op in SUM else f.rename(x)
    return [x if n.attrs.get("keepdims", 1) else x.reshape([s for a, s in enumerate(x.shape) if a not in axes])]


def reduced_axes(n: NodeView) -> list[int]:
    """The axes that a Reduce runs over."""
    rank = len(n.shape(0))
    axes = n.ints(1, "axes") if n.has(1) or "axes" in n.attrs else []
    if axes is None:
        raise Unknown("the reduced axes are computed")
    if not axes and not n.attrs.get("noop_with_empty_axes", 0):
        return list(range(rank))
    return sorted({axis % rank for axis in axes})


@transfer("Softmax", "LogSoftmax")
def _softmax(f: Facts, n: NodeView) -> Sequence[Fact]:
    """Every slice for itself: equal heads stay equal."""
    axes = list(range(n.attrs.get("axis", 1 if n.opset < 13 else -1) % len(n.shape(0)), len(n.shape(0))))
    return [f.unlike(f.collapse(f.x(n, 0), axes))]


@transfer("MatMul")
def _matmul(f: Facts, n: NodeView) -> Sequence[Fact]:
    """A product of two computed tensors: zero where a row or a column is; heads are known by both."""
    if min(len(n.shape(0)), len(n.shape(1))) < 2:
        raise Unknown("a vector")
    a, b = (f.collapse(x, [x.ndim - 1 - side]) for side, x in enumerate((f.x(n, 0), f.x(n, 1))))
    return [f.combine(nary("Mul", [_only_zero(a), _only_zero(b)]), a, b)]


def _only_zero(x: Fact) -> Fact:
    return np.where(x == 0, 0.0, np.nan)


# Indices that move


@transfer("Transpose")
def _transpose(f: Facts, n: NodeView) -> Sequence[Fact]:
    return [f.rename(f.x(n, 0).transpose(n.attrs.get("perm")))]


@transfer("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _regroup(f: Facts, n: NodeView) -> Sequence[Fact]:
    """Axes whose indices matter on either side are written out; the others stay one."""
    x, shape, out = f.x(n, 0), n.shape(0), n.out_shape()
    form, target = f.form(n.node.outputs[0]), [1] * len(out)
    for block in blocks(named(n.xs(0), shape), named(n.ys(), out)):
        if all(x.shape[a] == 1 for a in block.x) and all(form[a] == 1 for a in block.y):
            continue
        for axis in block.x:
            x = f.spread(x, axis, _size(shape[axis]))
        for axis in block.y:
            target[axis] = _size(out[axis])
    return [f.rename(x.reshape(target))]


@transfer("Concat")
def _concat(f: Facts, n: NodeView) -> Sequence[Fact]:
    axis = n.attrs["axis"] % len(n.out_shape())
    slots = range(len(n.node.inputs))
    parts = [f.x(n, slot) for slot in slots]
    if f.form(n.node.outputs[0])[axis] == 1:
        parts = [f.collapse(part, [axis]) for part in parts]
        values = parts[0]
        for part in parts[1:]:
            values = np.where(values == part, values, np.nan)
        return [f.combine(values, *parts)]
    parts = [f.spread(part, axis, _size(n.shape(slot)[axis])) for part, slot in zip(parts, slots, strict=True)]
    return [f.rename(np.concatenate(parts, axis=axis))]


@transfer("Split", "Slice", "Tile")
def _take(f: Facts, n: NodeView) -> Sequence[Fact]:
    """Where the rule ties output indices to input indices, these are what is copied."""
    ties = [t for t in (RULES.get(n.node.op)(n)) if isinstance(t, Tie)]
    return [f.rename(_taken(f, n, ties, name)) if name else f.x(n, 0) for name in n.node.outputs]


def _taken(f: Facts, n: NodeView, ties: Iterable[Tie], output: str) -> Fact:
    x, form = f.x(n, 0), f.form(output)
    for axis, size in enumerate(form):
        pairs = [t for t in ties if {t.a, t.b} == {Dim(output, axis), Dim(n.names[0], axis)}]
        if size == 1:
            x = f.collapse(x, [axis]) if x.shape[axis] != 1 else x
        elif len(pairs) != 1:
            x = f.spread(f.collapse(x, [axis]), axis, size)
        elif pairs[0].ia is not None and pairs[0].ib is not None:
            tie = pairs[0]
            y, source = (tie.ia, tie.ib) if tie.a.value == output else (tie.ib, tie.ia)
            assert y is not None and source is not None
            x = np.take(f.spread(x, axis, _size(n.shape(0)[axis])), source[np.argsort(y)], axis=axis)
    return x


@transfer("Expand")
def _expand(f: Facts, n: NodeView) -> Sequence[Fact]:
    x = f.x(n, 0)
    return [f.rename(x.reshape((1,) * (len(n.out_shape()) - x.ndim) + x.shape))]


@transfer("Gather")
def _gather(f: Facts, n: NodeView) -> Sequence[Fact]:
    axis = n.attrs.get("axis", 0) % len(n.shape(0))
    x, indices = f.x(n, 0), n.const(1)
    if indices is None or indices.ndim > 1:
        x, indices = f.collapse(x, [axis]), np.zeros((1,) * len(n.shape(1)), dtype=np.intp)
    elif x.shape[axis] == 1:
        indices = np.zeros((1,) * indices.ndim, dtype=np.intp)
    return [f.rename(np.take(x, indices, axis=axis))]


@transfer("Pad")
def _pad(f: Facts, n: NodeView) -> Sequence[Fact]:
    """Padding along channels makes channels of its own; along other axes it spoils every constant but its own."""
    x = f.x(n, 0)
    pads, axes = n.ints(1, "pads"), n.ints(3) if n.has(3) else range(x.ndim)
    if pads is None or axes is None:
        raise Unknown("the padding is computed")
    constant = n.attrs.get("mode", "constant") == "constant"
    value = float(n.attrs.get("value", 0.0))
    if n.has(2):
        given = n.const(2)
        value = np.nan if given is None else float(given.reshape(-1)[0])
    form = f.form(n.node.outputs[0])
    for place, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        axis = place % x.ndim
        if form[axis] == 1:
            x = f.combine(np.where(x == value, x, np.nan), x) if constant and (before or after) else x
        elif before or after:
            if not constant or min(before, after) < 0:
                raise Unknown("an axis that is padded with its own values")
            x = f.spread(x, axis, _size(n.shape(0)[axis]))
            width = [(before, after) if a == axis else (0, 0) for a in range(x.ndim)]
            x = np.pad(x, width, constant_values=value)
    return [f.rename(x)]


@transfer("DepthToSpace", "SpaceToDepth")
def _depth_space(f: Facts, n: NodeView) -> Sequence[Fact]:
    """A shallow channel is made of a block of deep ones, and each of these is a part of it."""
    tie = next(t for t in RULES.get(n.node.op)(n) if isinstance(t, Tie) and t.ib is not None)
    x, owner = f.x(n, 0), tie.ib
    assert owner is not None
    if n.node.op == "SpaceToDepth":
        x = np.take(f.spread(x, 1, int(owner.max()) + 1), owner, axis=1)
        return [f.combine(x, np.arange(owner.size).reshape([-1 if a == 1 else 1 for a in range(x.ndim)]))]
    x = np.take(f.spread(x, 1, owner.size), np.argsort(owner, kind="stable"), axis=1)
    x = f.collapse(x.reshape(x.shape[0], int(owner.max()) + 1, -1, *x.shape[2:]), [2])
    return [x.reshape(*x.shape[:2], *x.shape[3:])]


def _size(size: int | str | None) -> int:
    if not isinstance(size, int):
        raise Unknown("an open size")
    return size
