"""What a result is added to: targets that make up for the error of the other branch of a residual sum."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.affine import Axis, affine_of
from onnxprune.consumers import Consumer
from onnxprune.graph import Graph, Node

Array = NDArray[Any]
Floats = NDArray[np.float64]
Index = NDArray[np.intp]

FAINT = 1e-3  # of the largest factor of a scale: channels that it makes so faint make up for nothing


class Branch(NamedTuple):
    """What a result is added to.

    Attributes:
        value: the other operand.
        share: [channels of the result], what its own units are worth in units of the result; None: the same.
    """

    value: str
    share: Floats | None


def branch_of(a: Consumer, b: Consumer) -> Branch | None:
    """The other branch, if a result is only added to one, and that is computed before it in both models.

    Scales and shifts of channels may lie between: biases, BatchNormalization, layer scales.

    Args:
        a, b: what the result is of, in the original and in the cut model.
    """
    graph, name, shape = a.coupling.graph, a.y.value, a.coupling.graph.shapes.get(a.y.value)
    if not shape:
        return None
    axis, factor = Axis(len(shape), a.y.axis - len(shape), a.coupling.size(a.y)), np.ones(1)
    while (reader := _sole_reader(graph, name)) is not None:
        found = affine_of(graph, reader, axis)
        if found is None or found[0] != name or graph.shapes.get(reader.outputs[0]) != shape:
            break
        name, factor = reader.outputs[0], factor * found[1].scale
    if reader is None or reader.op != "Add" or reader.domain:
        return None
    other = reader.inputs[1 - reader.inputs.index(name)]
    if other in graph.fixed or graph.shapes.get(other) != shape:
        return None
    if other not in b.coupling.graph.producer and other not in b.coupling.graph.inputs:  # of a block that was dropped
        return None
    late = any(
        (maker := model.producer.get(other)) is not None and maker.index > node.index
        for model, node in ((graph, a.node), (b.coupling.graph, b.node))
    )
    return None if late else Branch(other, _share(factor, axis.size))


def _share(factor: Floats, size: int) -> Floats | None:
    """[channels]: what a sum's units are worth in those of the result that is scaled by a factor; None: the same."""
    if (factor == 1).all():
        return None
    factor = np.broadcast_to(factor, size)
    seen = np.abs(factor) > FAINT * np.abs(factor).max(initial=0.0)
    return np.divide(1.0, factor, out=np.zeros(size), where=seen)


def _sole_reader(graph: Graph, value: str) -> Node | None:
    """The node that reads a value, if it is one, and nobody else sees it."""
    readers = graph.consumers.get(value, [])
    seen = value in graph.outputs or value in graph.captured
    return readers[0][0] if len(readers) == 1 and not seen else None


def corrected(y: Array, branch: Branch, full: Array, part: Array, axis: int, kept: Index | slice) -> Array:
    """What the cut model's result has to be, so that its sum with the other branch is the original's sum.

    Args:
        y: the original's result.
        branch: what it is added to.
        full, part: that, in the original and in the cut model.
        axis: of the channels.
        kept: those that the cut model has.
    """
    where = (slice(None),) * axis + (kept,)
    if full.shape != y.shape or part.shape != y[where].shape:
        return y
    target = y.astype(np.float32)
    wrong = full[where].astype(np.float32) - part.astype(np.float32)
    if branch.share is not None:
        wrong *= branch.share[kept].astype(np.float32).reshape(-1, *[1] * (y.ndim - axis - 1))
    target[where] += wrong
    return target
