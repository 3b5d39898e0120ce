"""Ops that mix all indices of an axis without weights: that axis stays, the others pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from onnxprune.rules.base import Constraint, Lock, NodeView, Tie, Unknown, rule
from onnxprune.rules.broadcast import tie_broadcast


def mix(n: NodeView, axes: Collection[int], reason: str, option: str | None = None) -> Iterator[Constraint]:
    """Lock `axes` of the first input and of every output; tie the rest one to one."""
    rank = len(n.shape(0))
    mixed = {axis % rank for axis in axes}
    for axis, x in enumerate(n.xs(0)):
        if axis in mixed:
            yield Lock(x, reason, option=option)
        for slot in n.outputs():
            if len(n.out_shape(slot)) != rank:
                continue
            y = n.y(axis, slot)
            yield Lock(y, reason, option=option) if axis in mixed else Tie(x, y)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(n: NodeView) -> Iterator[Constraint]:
    """Before opset 13 every axis from `axis` on is mixed; after, `axis` alone."""
    reason = f"{n.node.op} mixes the axis"
    if n.opset < 13:
        yield from mix(n, range(n.attrs.get("axis", 1) % len(n.shape(0)), len(n.shape(0))), reason)
    else:
        yield from mix(n, [n.attrs.get("axis", -1)], reason)


@rule("LayerNormalization", "RMSNormalization")
def layer_norm(n: NodeView) -> Iterator[Constraint]:
    """Statistics run over every axis from `axis` on; cut along it, they are those of what remains."""
    rank = len(n.shape(0))
    first = n.attrs.get("axis", -1) % rank
    reason = f"{n.node.op} takes its statistics over the axis"
    yield from mix(n, [] if n.options.inexact else range(first, rank), reason, option="--allow-inexact")
    for slot in range(1, len(n.node.inputs)):
        if n.has(slot):
            yield from tie_broadcast(n, n.xs(slot), n.shape(slot), n.ys(), n.out_shape())
    if n.options.inexact:
        for slot in list(n.outputs())[1:]:
            for axis in range(first):
                yield Tie(n.x(0, axis), n.y(axis, slot))


@rule("LpNormalization")
def lp_norm(n: NodeView) -> Iterator[Constraint]:
    """The norm is taken over one axis."""
    yield from mix(n, [n.attrs.get("axis", -1)], "LpNormalization takes the norm over the axis")


@rule("MeanVarianceNormalization")
def mean_variance(n: NodeView) -> Iterator[Constraint]:
    """Statistics run over `axes`."""
    axes = n.attrs.get("axes", [0, 2, 3])
    yield from mix(n, axes, "the axis is normalised over")
    for axis, x in enumerate(n.xs(0)):
        if axis not in {a % len(n.shape(0)) for a in axes} and n.zero(x):
            yield Lock(x, "a removed index, which is zero, has no deviation to be divided by")


@rule("CumSum", "TopK")
def along_axis(n: NodeView) -> Iterator[Constraint]:
    """Order along the axis matters."""
    axes = n.ints(1) if n.node.op == "CumSum" else [n.attrs.get("axis", -1)]
    if axes is None:
        raise Unknown("the axis is computed")
    yield from mix(n, axes, f"{n.node.op} depends on every index of the axis")
