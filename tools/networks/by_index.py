"""Steps that read and write by index."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from tools.networks.grower import KINDS, Grower, step


def other_axis(g: Grower, x: str) -> int:
    """An axis that is neither that of the batch nor that of the channels; theirs, now and then."""
    axes = [a for a in range(1, len(g.shape(x))) if a != KINDS[g.kind]]
    return g.random.choice([*axes, *axes, KINDS[g.kind]])


def indices(g: Grower, shape: tuple[int, ...], below: int) -> str:
    return g.const(g.rng.integers(0, below, shape).astype(np.int64))


@step(1, "map", "line", "tokens", "heads", since=11)
def elements_gathered(g: Grower, x: str) -> str | None:
    """By constant indices, or by those of the largest."""
    axis = other_axis(g, x)
    if g.chance(0.5):
        order = g.ops("TopK", g.op("Tanh", x), [min(g.pairs(x)[axis])], axis=axis, outputs=2)[1]
        return g.op("GatherElements", x, order, axis=axis)
    if not (g.fixed(x) and g.fixed(x, 0)):
        return None
    shape = list(g.shape(x))
    shape[axis] += g.pick(0, 1)
    return g.op("GatherElements", x, indices(g, tuple(shape), g.shape(x)[axis]), axis=axis)


@step(1, "map", "line", "tokens", "heads", since=9)
def elements_scattered(g: Grower, x: str) -> str | None:
    if not (g.fixed(x) and g.fixed(x, 0)):
        return None
    axis = other_axis(g, x)
    shape = list(g.shape(x))
    shape[axis] = g.random.randint(1, shape[axis])
    # No place twice: what is written last is not defined.
    places = g.rng.permuted(
        np.broadcast_to(np.arange(g.shape(x)[axis]), (*shape[:axis], *shape[axis + 1 :], g.shape(x)[axis])), axis=-1
    )
    order = g.const(np.ascontiguousarray(np.moveaxis(places[..., : shape[axis]], -1, axis)).astype(np.int64))
    updates = g.slice(g.op("Tanh", x), axis, 0, shape[axis])
    if g.opset < 11:
        return g.op("Scatter", x, order, updates, axis=axis)
    attrs = {"reduction": g.pick("add", "mul", "max", "min")} if g.opset >= 18 and g.chance(0.5) else {}
    return g.op("ScatterElements", x, order, updates, axis=axis, **attrs)


@step(1, "tokens", since=13)
def rows_picked(g: Grower, x: str) -> str | None:
    """GatherND: tokens of each of the batch."""
    if not (g.fixed(x) and g.fixed(x, 0)):
        return None
    batch, s, _ = g.shape(x)
    picked = g.const(g.rng.integers(0, s, (batch, g.random.randint(1, 4), 1)).astype(np.int64))
    return g.op("GatherND", x, picked, batch_dims=1)


@step(1, "tokens", since=13)
def rows_written(g: Grower, x: str) -> str | None:
    """ScatterND: some tokens of the first of the batch are written anew."""
    if not (g.fixed(x) and g.fixed(x, 0)):
        return None
    count = g.random.randint(1, g.shape(x)[1])
    rows = g.squeeze(g.slice(g.slice(g.linear(x, g.channels(x)), 0, 0, 1), 1, 0, count), 0)
    places = np.stack([np.zeros(count, dtype=np.int64), g.rng.permutation(g.shape(x)[1])[:count]], axis=1)
    attrs = {"reduction": g.pick("add", "mul", "max")} if g.opset >= 18 and g.chance(0.5) else {}
    return g.op("ScatterND", x, g.const(places), rows, **attrs)


@step(2, "tokens", since=24)
def cached(g: Grower, x: str) -> str | None:
    if not g.fixed(x, 0) or not g.fixed(x, 1):
        return None
    new = g.slice(g.linear(x, g.channels(x)), 1, 0, 1)
    start = g.const(g.rng.integers(0, g.shape(x)[1], g.shape(x)[0]).astype(np.int64))
    return g.op("TensorScatter", x, new, start, axis=g.pick(1, -2))


@step(1, "map", "line", "tokens", "heads", "flat", since=9)
def compressed(g: Grower, x: str) -> str | None:
    axis = g.random.randrange(1, len(g.shape(x)))
    if not g.fixed(x, axis):
        return None
    stays = g.rng.random(g.shape(x)[axis]) < 0.6
    stays[0] = True
    target = [int(stays.sum()) if a == axis else s for a, s in enumerate(g.sizes(x))]
    return g.note(g.op("Compress", x, g.const(stays), axis=axis), target)


@step(1, "map", "line", "tokens", since=11)
def one_hot(g: Grower, x: str) -> str | None:
    """Where the largest is, as an axis of its own, in place of the axis that was searched."""
    axis = g.random.randrange(1, len(g.shape(x)))
    if not g.fixed(x, axis):
        return None
    best = g.op("ArgMax", x, axis=axis, keepdims=0)
    y = g.op("OneHot", best, np.array(g.shape(x)[axis]), np.array([0.0, 1.0], np.float32), axis=axis)
    return g.op("Add", g.op("Mul", y, 0.3), x)


@step(1, "tokens", "sequence", since=10)
def turned_round(g: Grower, x: str) -> str | None:
    if not (g.fixed(x) and g.fixed(x, 0)):
        return None
    time = 1 if g.kind == "tokens" else 0
    lengths = g.const(g.rng.integers(1, g.shape(x)[time] + 1, g.shape(x)[1 - time]).astype(np.int64))
    return g.op("ReverseSequence", x, lengths, time_axis=time, batch_axis=1 - time)


@step(1, "map", "line", "tokens", "flat", since=11)
def counted(g: Grower, x: str) -> str | None:
    """A Range over an axis, added to it, or as many ones as there are channels."""
    if g.chance(0.5):
        axis = g.pick(KINDS[g.kind], len(g.shape(x)) - 1)
        size = g.vector(g.size(x, axis))
        numbers = g.cast(g.op("Range", np.int64(0), g.squeeze(size, 0), np.int64(1)), TensorProto.FLOAT)
        tail = (1,) * (len(g.shape(x)) - axis - 1)
        numbers = g.note(numbers, [g.size(x, axis)]) if not g.declares else numbers
        column = g.note(g.op("Reshape", g.op("Mul", numbers, 0.1), [-1, *tail]), [g.size(x, axis), *tail])
        return g.note(g.op("Add", x, column), g.sizes(x))
    value = numpy_helper.from_array(np.full(1, 0.5, np.float32))
    shape = g.op("Shape", x) if g.chance(0.5) else g.vector(g.size(x, len(g.shape(x)) - 1))
    made = g.op("ConstantOfShape", shape, value=value)
    return g.note(g.op("Mul", x, g.op("Add", made, 1.0)), g.sizes(x))
