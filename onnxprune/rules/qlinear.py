"""ONNX Runtime's operators on quantised activations: those of the floats, with one scale for each tensor.

A removed index holds some quantised value in the masked original, not a plain zero: sums over an axis stay closed.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import Constraint, Lock, NodeView, Tie, Unknown, rule
from onnxprune.rules.broadcast import tie_broadcast
from onnxprune.rules.mixing import mix
from onnxprune.rules.select import concat

MS = "com.microsoft::"
WINDOW = "the axis is pooled"
BINARY = {f"{MS}QLinearAdd": (0, 3), f"{MS}QLinearMul": (0, 3), f"{MS}QLinearWhere": (0, 1, 4)}


@rule(*BINARY)
def binary(n: NodeView) -> Iterator[Constraint]:
    """Operands broadcast against each other."""
    for slot in BINARY[n.key]:
        yield from tie_broadcast(n, n.xs(slot), n.shape(slot), n.ys(), n.out_shape())


@rule(f"{MS}QLinearSigmoid", f"{MS}QLinearLeakyRelu")
def unary(n: NodeView) -> Iterator[Constraint]:
    """Element by element, through a table."""
    for x, y in zip(n.xs(0), n.ys(), strict=True):
        yield Tie(x, y)


@rule(f"{MS}QLinearSoftmax")
def softmax(n: NodeView) -> Iterator[Constraint]:
    """Before opset 13, which the node says itself, every axis from `axis` on is mixed; after, `axis` alone."""
    rank = len(n.shape(0))
    axis = n.attrs.get("axis", -1) % rank
    axes = range(axis, rank) if n.attrs["opset"] < 13 else [axis]
    yield from mix(n, axes, "QLinearSoftmax mixes the axis")


@rule(f"{MS}QLinearConcat")
def joined(n: NodeView) -> Iterator[Constraint]:
    """Scale and zero point of the output, then each input with its own."""
    yield from concat(n.as_op("Concat", range(2, len(n.node.inputs), 3)))


@rule(f"{MS}QLinearAveragePool", f"{MS}QLinearGlobalAveragePool", f"{MS}NhwcMaxPool")
def pool(n: NodeView) -> Iterator[Constraint]:
    """Channels pass; they may come last."""
    rank = len(n.shape(0))
    if len(n.out_shape()) != rank:
        raise Unknown("its output has other axes")
    channels = rank - 1 if n.node.op == "NhwcMaxPool" or n.attrs.get("channels_last", 0) else 1
    for axis, (x, y) in enumerate(zip(n.xs(0), n.ys(), strict=True)):
        if axis in (0, channels):
            yield Tie(x, y)
        else:
            yield Lock(x, WINDOW)
            yield Lock(y, WINDOW)
