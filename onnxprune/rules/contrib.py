"""ONNX Runtime's fused operators: each is one or two standard ones."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import (
    Constraint,
    Dim,
    Edit,
    Kept,
    Linear,
    Lock,
    NodeView,
    Tie,
    Unknown,
    fixup,
    keeps_zero,
    linear,
    rule,
)
from onnxprune.rules.broadcast import tie_broadcast
from onnxprune.rules.conv import conv, conv_group, conv_linear
from onnxprune.rules.elementwise import broadcast, unary
from onnxprune.rules.matmul import contract, gemm, gemm_linear

MS = "com.microsoft::"

keeps_zero("all", *(f"{MS}{op}" for op in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")))
keeps_zero(
    "all",
    f"{MS}FusedConv",
    slots=(1, 2, 3),
    when=lambda n: n.attrs.get("activation", "Relu") in ("Relu", "LeakyRelu", "Tanh"),
)
keeps_zero("any", f"{MS}FusedMatMul", f"{MS}TransposeMatMul")
keeps_zero(
    "all",
    f"{MS}FusedGemm",
    slots=(1, 2),
    when=lambda n: n.attrs.get("activation", "Relu") in ("Relu", "LeakyRelu", "Tanh"),
)

rule(f"{MS}Gelu", f"{MS}QuickGelu")(unary)
rule(f"{MS}BiasGelu", f"{MS}FastGelu")(broadcast)
rule(f"{MS}FusedGemm")(gemm)
linear(f"{MS}FusedGemm")(gemm_linear)


@rule(f"{MS}FusedConv")
def fused_conv(n: NodeView) -> Iterator[Constraint]:
    """Conv, then an optional sum with Z, then an activation."""
    yield from conv(n.as_op("Conv", (0, 1, 2)))
    if n.has(3):
        for z, y in zip(n.xs(3), n.ys(), strict=True):
            yield Tie(z, y)


@fixup(f"{MS}FusedConv")
def fused_conv_group(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """As Conv."""
    yield from conv_group(n.as_op("Conv", (0, 1, 2)), kept)


@linear(f"{MS}FusedConv")
def fused_conv_linear(n: NodeView) -> Linear | tuple[Linear, ...]:
    """As Conv."""
    return conv_linear(n.as_op("Conv", (0, 1, 2)))


@rule(f"{MS}FusedMatMul", f"{MS}TransposeMatMul")
def fused_matmul(n: NodeView) -> Iterator[Constraint]:
    """alpha * op(A) x op(B), where op may swap the last two axes."""
    (a_rest, m, k), (b_rest, nb, kb) = _sides(n)
    yield from contract(n, k, kb)
    yield Tie(m, n.y(-2))
    yield Tie(nb, n.y(-1))
    for rest, slot in ((a_rest, 0), (b_rest, 1)):
        yield from tie_broadcast(n, rest, n.shape(slot)[:-2], n.ys()[:-2], n.out_shape()[:-2])


@linear(f"{MS}FusedMatMul", f"{MS}TransposeMatMul")
def fused_matmul_linear(n: NodeView) -> Linear:
    """MACs: rows x K x N."""
    (_, _, k), (_, nb, kb) = _sides(n)
    if not n.is_weight(1):
        raise Unknown("the second operand is no weight")
    return Linear(k, kb, nb, n.y(-1), (kb, *n.ys()), 1.0)


def _sides(n: NodeView) -> tuple[tuple[list[Dim], Dim, Dim], tuple[list[Dim], Dim, Dim]]:
    if n.attrs.get("transBatchA", 0) or n.attrs.get("transBatchB", 0):
        raise Unknown("FusedMatMul swaps batch axes")
    a, b = n.xs(0), n.xs(1)
    if len(a) < 2 or len(b) < 2:
        raise Unknown("FusedMatMul with a vector")
    m, k = (a[-1], a[-2]) if n.attrs.get("transA", 0) else (a[-2], a[-1])
    nb, kb = (b[-2], b[-1]) if n.attrs.get("transB", 0) else (b[-1], b[-2])
    return (a[:-2], m, k), (b[:-2], nb, kb)


@rule(
    "SimplifiedLayerNormalization",
    f"{MS}SkipLayerNormalization",
    f"{MS}SkipSimplifiedLayerNormalization",
)
def skip_layer_norm(n: NodeView) -> Iterator[Constraint]:
    """Norms over the last axis, of a sum with a residual for the "Skip" kinds."""
    last = len(n.shape(0)) - 1
    reason = f"{n.node.op} takes its statistics over the axis"
    skip = n.node.op.startswith("Skip")
    for axis, x in enumerate(n.xs(0)):
        if axis == last and not n.options.inexact:
            yield Lock(x, reason, option="--allow-inexact")
        for slot in n.outputs():
            if len(n.out_shape(slot)) == last + 1 and (slot in (0, 3)):
                yield Tie(x, n.y(axis, slot))
        if skip:
            yield from tie_broadcast(n, n.xs(1), n.shape(1), n.xs(0), n.shape(0))
    for slot in range(2 if skip else 1, len(n.node.inputs)):
        if n.has(slot):
            yield Tie(n.x(slot, 0), n.x(0, last))


@rule(f"{MS}EmbedLayerNormalization")
def embed_layer_norm(n: NodeView) -> Iterator[Constraint]:
    """Tables of words, positions and segments are summed up and normalised: they share their last axis."""
    reason = "EmbedLayerNormalization takes its statistics over the axis"
    tables = [slot for slot in (2, 3, 4) if n.has(slot)]
    for slot in tables:
        yield Lock(n.x(slot, 0), "a table is read by index")
        yield Tie(n.x(slot, 1), n.y(2))
    if not n.options.inexact:
        yield Lock(n.y(2), reason, option="--allow-inexact")
    for slot in (5, 6):
        yield Tie(n.x(slot, 0), n.y(2))
    if 2 in n.outputs():
        yield Tie(n.y(2, 2), n.y(2))
