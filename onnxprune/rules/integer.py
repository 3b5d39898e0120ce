"""Integer arithmetic with weights: QLinearConv, QLinearMatMul, QGemm, ConvInteger, MatMulInteger and their kin.

A removed weight slice is one at its zero point, which adds nothing: the ties are those of the float operators.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from onnxprune.rules.base import (
    Constraint,
    Dim,
    Edit,
    Kept,
    Linear,
    Lock,
    NodeView,
    Tie,
    fixup,
    keeps_zero,
    linear,
    rule,
)
from onnxprune.rules.conv import conv, conv_group, conv_linear
from onnxprune.rules.matmul import gemm, gemm_linear, matmul, matmul_linear

T = TypeVar("T")
CONV = {"QLinearConv": (0, 3, 8), "ConvInteger": (0, 1)}
GEMM = "com.microsoft::QGemm"
NHWC = "com.microsoft::QLinearConv"
MATMUL = {
    "QLinearMatMul": (0, 3),
    "MatMulInteger": (0, 1),
    "com.microsoft::MatMulInteger16": (0, 1),
    "com.microsoft::DynamicQuantizeMatMul": (0, 1),
    "com.microsoft::MatMulIntegerToFloat": (0, 1),
}
# Slots of scales, zero points and biases that may run along the output channels.
VECTORS = {
    "QLinearConv": (4, 5),
    NHWC: (4, 5),
    GEMM: (4, 5),
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


@rule(NHWC)
def channels_last_conv(n: NodeView) -> Iterator[Constraint]:
    """As QLinearConv; the channels of X and Y may come last, those of W never do."""
    yield from conv(_as_conv(n))
    yield from _vectors(n, _as_conv(n).y(1))


@fixup(NHWC)
def channels_last_group(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """As Conv."""
    yield from conv_group(_as_conv(n), kept)


@linear(NHWC)
def channels_last_linear(n: NodeView) -> Linear | tuple[Linear, ...]:
    """As Conv; its bias is no place for floats."""
    made = conv_linear(_as_conv(n))
    assert isinstance(made, Linear)
    return replace(made, bias=None, bias_slot=None)


class _ChannelsLast(NodeView):
    """A Conv whose X and Y have their channels last, as if they came second."""

    def shape(self, slot: int) -> tuple[int | str | None, ...]:
        """As of a Conv."""
        return _second(super().shape(slot)) if slot == 0 else super().shape(slot)

    def out_shape(self, slot: int = 0) -> tuple[int | str | None, ...]:
        """As of a Conv."""
        return _second(super().out_shape(slot))

    def xs(self, slot: int) -> list[Dim]:
        """As of a Conv."""
        return list(_second(super().xs(slot)) if slot == 0 else super().xs(slot))

    def ys(self, slot: int = 0) -> list[Dim]:
        """As of a Conv."""
        return list(_second(super().ys(slot)))

    def x(self, slot: int, axis: int) -> Dim:
        """As of a Conv."""
        return self.xs(slot)[axis]

    def y(self, axis: int, slot: int = 0) -> Dim:
        """As of a Conv."""
        return self.ys(slot)[axis]


def _second(axes: Sequence[T]) -> tuple[T, ...]:
    return (axes[0], axes[-1], *axes[1:-1])


def _as_conv(n: NodeView) -> NodeView:
    plain = n.as_op("Conv", (0, 3, 8))
    if not n.attrs.get("channels_last", 0):
        return plain
    return _ChannelsLast(plain.graph, plain.flow, plain.node, plain.names, plain.options, plain.zero)


@rule(GEMM)
def integer_gemm(n: NodeView) -> Iterator[Constraint]:
    """As Gemm; scales and zero points of B per tensor or per column."""
    yield from gemm(n.as_op("Gemm", (0, 3, 6)))
    yield from _vectors(n, n.y(1))


@linear(GEMM)
def integer_gemm_linear(n: NodeView) -> Linear | tuple[Linear, ...]:
    """As Gemm; its bias is no place for floats."""
    made = gemm_linear(n.as_op("Gemm", (0, 3, 6)))
    assert isinstance(made, Linear)
    return replace(made, bias=None, bias_slot=None)


def _vectors(n: NodeView, y: Dim) -> Iterator[Constraint]:
    for slot in VECTORS.get(n.key, ()):
        if n.has(slot) and len(n.shape(slot)) == 1 and n.shape(slot) != (1,):
            yield Tie(n.x(slot, 0), y)


@rule("DynamicQuantizeLinear")
def dynamic_quantize(n: NodeView) -> Iterator[Constraint]:
    """The range is that of the whole tensor and always spans zero: it does not miss zeros, but anything else."""
    for x, y in zip(n.xs(0), n.ys(), strict=True):
        yield Tie(x, y)
        if not n.zero(x):
            yield Lock(x, "DynamicQuantizeLinear takes the range of the whole tensor")
