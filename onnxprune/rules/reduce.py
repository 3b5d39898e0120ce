"""Reductions and pooling: what they run over stays, channels pass."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import Constraint, Dim, Lock, NodeView, Tie, Unknown, free, keeps_zero, rule

REDUCE = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]

keeps_zero(
    "all",
    "AveragePool",
    "LpPool",
    "MaxPool",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    slots=(0,),
)
keeps_zero("all", *(f"Reduce{kind}" for kind in REDUCE if not kind.startswith("Log") and kind != "Prod"), slots=(0,))
keeps_zero("any", "ReduceProd")


@rule(*(f"Reduce{kind}" for kind in REDUCE), "ArgMax", "ArgMin")
def reduce(n: NodeView) -> Iterator[Constraint]:
    """Reduced axes are mixed; the others go with their place in the output."""
    rank = len(n.shape(0))
    if n.node.op in ("ArgMax", "ArgMin"):
        axes: list[int] | None = [n.attrs.get("axis", 0)]
    elif n.has(1) or "axes" in n.attrs:
        axes = n.ints(1, "axes")
    else:
        axes = [] if n.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    if axes is None:
        raise Unknown("the reduced axes are computed")
    reduced = {axis % rank for axis in axes}
    if not axes and not n.attrs.get("noop_with_empty_axes", 0):
        reduced = set(range(rank))
    out = iter(n.ys())
    for axis, x in enumerate(n.xs(0)):
        if axis in reduced:
            yield _reduced(n, x)
            if n.attrs.get("keepdims", 1):
                next(out)
        else:
            yield Tie(x, next(out))
            if n.node.op == "ReduceLogSum" and n.zero(x):
                yield Lock(x, "the logarithm of a removed index, which is zero, is no number")


def _reduced(n: NodeView, x: Dim) -> Constraint:
    # A sum does not miss the zeros that a removed index would add.
    if n.node.op in ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare") and n.zero(x):
        return free(x)
    # What is kept as an axis of size one is a statistic that goes back onto what it was taken of: a norm written out.
    norm = n.node.op in ("ReduceMean", "ReduceL2") and n.attrs.get("keepdims", 1)
    if norm and n.options.inexact:
        return free(x)
    return Lock(x, f"{n.node.op} mixes the axis", option="--allow-inexact" if norm else None)


@rule("AveragePool", "LpPool", "MaxPool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")
def pool(n: NodeView) -> Iterator[Constraint]:
    """X [N, C, ...] -> Y [N, C, ...]."""
    for x, y in zip(n.xs(0)[:2], n.ys()[:2], strict=True):
        yield Tie(x, y)
    for dim in (*n.xs(0)[2:], *n.ys()[2:]):
        yield Lock(dim, "the axis is pooled")
    if len(list(n.outputs())) > 1:
        for dim in (n.x(0, 1), *n.ys(1)):
            yield Lock(dim, "MaxPool's indices count across the channels")
