"""Matrix products: MatMul and Gemm."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import (
    NOWHERE,
    Constraint,
    Dim,
    Linear,
    Lock,
    NodeView,
    Tie,
    Unknown,
    keeps_zero,
    linear,
    rule,
)
from onnxprune.rules.broadcast import tie_broadcast

COMPUTED = "a product of two computed tensors: nothing proves that a removed index adds zero"
INSIDE = "contracted between two computed tensors, as inside attention heads: whole heads are cut"

keeps_zero("any", "MatMul")
keeps_zero("all", "Gemm", slots=(1, 2))


@rule("MatMul")
def matmul(n: NodeView) -> Iterator[Constraint]:
    """A [..., M, K] x B [..., K, N] -> Y [..., M, N]; either side may be one vector."""
    a, b, y = n.xs(0), n.xs(1), n.ys()
    yield from contract(n, a[-1], b[-2] if len(b) > 1 else b[0])
    if len(b) > 1:
        yield Tie(b[-1], y.pop())
    if len(a) > 1:
        yield Tie(a[-2], y.pop())
    for side, slot in ((a, 0), (b, 1)):
        yield from tie_broadcast(n, side[:-2], n.shape(slot)[:-2], y, n.out_shape()[: len(y)])


@linear("MatMul")
def matmul_linear(n: NodeView) -> Linear:
    """MACs: K for each element of the output."""
    a, b, y = n.xs(0), n.xs(1), n.ys()
    k_a, k_b = a[-1], b[-2] if len(b) > 1 else b[0]
    if not (n.is_weight(0) or n.is_weight(1)):
        raise Unknown("neither side is a weight")
    if n.is_weight(1):
        out, y_out = (b[-1], y[-1]) if len(b) > 1 else (NOWHERE, NOWHERE)
        x, w_in = k_a, k_b
    else:
        out, y_out = (a[-2], y[-2 if len(b) > 1 else -1]) if len(a) > 1 else (NOWHERE, NOWHERE)
        x, w_in = k_b, k_a
    return Linear(x, w_in, out, y_out, (w_in, *y), 1.0)


@rule("Gemm")
def gemm(n: NodeView) -> Iterator[Constraint]:
    """A [M, K] (or transposed) x B [K, N] (or transposed) + C -> Y [M, N]."""
    (m, k), (kb, nb) = _sides(n)
    yield from contract(n, k, kb)
    yield Tie(m, n.y(0))
    yield Tie(nb, n.y(1))
    if n.has(2):
        yield from tie_broadcast(n, n.xs(2), n.shape(2), n.ys(), n.out_shape())


@linear("Gemm")
def gemm_linear(n: NodeView) -> Linear:
    """MACs: M x K x N."""
    (_, k), (kb, nb) = _sides(n)
    if not n.is_weight(1):
        raise Unknown("the second operand is no weight")
    bias = n.names[2] if n.has(2) else None
    return Linear(k, kb, nb, n.y(1), (kb, *n.ys()), 1.0, bias=bias, bias_slot=2)


def _sides(n: NodeView) -> tuple[tuple[Dim, Dim], tuple[Dim, Dim]]:
    a, b = n.xs(0), n.xs(1)
    if n.attrs.get("transA", 0):
        a.reverse()
    if n.attrs.get("transB", 0):
        b.reverse()
    return (a[0], a[1]), (b[0], b[1])


def contract(n: NodeView, a: Dim, b: Dim) -> Iterator[Constraint]:
    """Tie the contracted axis. Between two computed tensors it is the inside of heads: opened by an option."""
    yield Tie(a, b)
    if not (n.zero(a) or n.zero(b)):
        yield Lock(a, COMPUTED)
    elif not (any(n.is_weight(s) for s in range(len(n.node.inputs))) or n.options.head_dims):
        yield Lock(a, INSIDE, option="--head-dims")
