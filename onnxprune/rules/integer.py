"""Integer arithmetic: QLinearConv, QLinearMatMul, ConvInteger, MatMulInteger, DynamicQuantizeLinear, MatMulNBits.

A removed weight slice is one at its zero point, which adds nothing: the ties are those of the float operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from onnxprune.rules.base import (
    Constraint,
    Dim,
    Edit,
    Kept,
    Linear,
    Lock,
    NodeView,
    SetAttr,
    Tie,
    fixup,
    keeps_zero,
    linear,
    rule,
)
from onnxprune.rules.conv import conv, conv_group, conv_linear
from onnxprune.rules.matmul import matmul, matmul_linear

CONV = {"QLinearConv": (0, 3, 8), "ConvInteger": (0, 1)}
MATMUL = {
    "QLinearMatMul": (0, 3),
    "MatMulInteger": (0, 1),
    "com.microsoft::DynamicQuantizeMatMul": (0, 1),
    "com.microsoft::MatMulIntegerToFloat": (0, 1),
}
# Slots of scales, zero points and biases that may run along the output channels.
VECTORS = {
    "QLinearConv": (4, 5),
    "ConvInteger": (3,),
    "QLinearMatMul": (4, 5),
    "MatMulInteger": (3,),
    "com.microsoft::DynamicQuantizeMatMul": (2, 3, 4),
    "com.microsoft::MatMulIntegerToFloat": (3, 5, 6),
}

# What the QLinear operators return is a zero point where the masked original is zero, and no plain zero.
keeps_zero("all", "ConvInteger", slots=(1,))
keeps_zero("any", "MatMulInteger", slots=(0, 1))


@rule(*CONV)
def integer_conv(n: NodeView) -> Iterator[Constraint]:
    """As Conv, with scales and zero points per tensor or per output channel."""
    yield from conv(n.as_op("Conv", CONV[n.key]))
    yield from _vectors(n, n.y(1))


@fixup(*CONV)
def integer_conv_group(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """As Conv."""
    yield from conv_group(n.as_op("Conv", CONV[n.key]), kept)


@linear(*CONV)
def integer_conv_linear(n: NodeView) -> Linear | tuple[Linear, ...]:
    """As Conv; its bias is no place for floats."""
    made = conv_linear(n.as_op("Conv", CONV[n.key]))
    assert isinstance(made, Linear)
    return replace(made, bias=None, bias_slot=None)


@rule(*MATMUL)
def integer_matmul(n: NodeView) -> Iterator[Constraint]:
    """As MatMul; scales, zero points and bias per tensor or per column."""
    yield from matmul(n.as_op("MatMul", MATMUL[n.key]))
    yield from _vectors(n, n.y(-1))


@linear(*MATMUL)
def integer_matmul_linear(n: NodeView) -> Linear | tuple[Linear, ...]:
    """As MatMul."""
    return matmul_linear(n.as_op("MatMul", MATMUL[n.key]))


def _vectors(n: NodeView, y: Dim) -> Iterator[Constraint]:
    for slot in VECTORS[n.key]:
        if n.has(slot) and len(n.shape(slot)) == 1 and n.shape(slot) != (1,):
            yield Tie(n.x(slot, 0), y)


@rule("DynamicQuantizeLinear")
def dynamic_quantize(n: NodeView) -> Iterator[Constraint]:
    """The range is that of the whole tensor and always spans zero: it does not miss zeros, but anything else."""
    for x, y in zip(n.xs(0), n.ys(), strict=True):
        yield Tie(x, y)
        if not n.zero(x):
            yield Lock(x, "DynamicQuantizeLinear takes the range of the whole tensor")


@rule("com.microsoft::MatMulNBits")
def matmul_nbits(n: NodeView) -> Iterator[Constraint]:
    """Rows of B (output channels) are whole bytes and can go; the contracted axis is packed in blocks."""
    rows = n.attrs["N"]
    for x, y in zip(n.xs(0)[:-1], n.ys()[:-1], strict=True):
        yield Tie(x, y)
    yield Lock(n.x(0, -1), "the weights are packed along the axis")
    yield Tie(n.x(1, 0), n.y(-1))
    for slot in (2, 3, 5):  # scales and zero points: some per row, flat or not; bias
        if not n.has(slot):
            continue
        size = n.shape(slot)[0]
        if isinstance(size, int) and size > rows and size % rows == 0:
            index = np.arange(size)
            yield Tie(n.x(slot, 0), n.y(-1), index, index // (size // rows))
        else:
            yield Tie(n.x(slot, 0), n.y(-1))


@fixup("com.microsoft::MatMulNBits")
def nbits_rows(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The rows that remain."""
    remaining = kept(n.y(-1)).size
    if remaining != n.attrs["N"]:
        yield SetAttr("N", remaining)
