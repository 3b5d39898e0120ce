"""What a result is added to: targets that make up for the error of the other branch of a residual sum."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.consumers import Consumer
from onnxprune.graph import Graph, Node

Array = NDArray[Any]
Floats = NDArray[np.float64]
Index = NDArray[np.intp]

FAINT = 1e-3  # of the largest factor of a BatchNormalization: channels that it makes so faint make up for nothing


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

    BatchNormalization may lie between.

    Args:
        a, b: what the result is of, in the original and in the cut model.
    """
    graph, share = a.coupling.graph, None
    name, reader = a.y.value, _sole_reader(graph, a.y.value)
    if reader is not None and reader.op == "BatchNormalization" and not reader.domain and a.y.axis == 1:
        if any(n not in graph.constants for n in reader.inputs[1:]):
            return None
        gamma, _, _, variance = (graph.array(n).astype(np.float64) for n in reader.inputs[1:])
        factor = gamma / np.sqrt(variance + float(reader.attrs.get("epsilon", 1e-5)))
        seen = np.abs(factor) > FAINT * np.abs(factor).max(initial=0.0)
        share = np.divide(1.0, factor, out=np.zeros_like(factor), where=seen)
        name = reader.outputs[0]
        reader = _sole_reader(graph, name)
    if reader is None or reader.op != "Add" or reader.domain:
        return None
    other = reader.inputs[1 - reader.inputs.index(name)]
    if other in graph.fixed or graph.shapes.get(other) != graph.shapes.get(a.y.value):
        return None
    late = any(
        (maker := model.producer.get(other)) is not None and maker.index > node.index
        for model, node in ((graph, a.node), (b.coupling.graph, b.node))
    )
    return None if late else Branch(other, share)


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
