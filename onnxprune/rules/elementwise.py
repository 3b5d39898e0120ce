"""Ops that work on one element at a time, alone or with its broadcast partners."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.rules.base import Constraint, Lock, NodeView, Tie, free, keeps_zero, rule
from onnxprune.rules.broadcast import tie_broadcast

UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]

BROADCAST = [
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Clip",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]

keeps_zero(
    "all",
    *[
        "Abs",
        "Asin",
        "Asinh",
        "Atan",
        "Cast",
        "Ceil",
        "Celu",
        "Elu",
        "Erf",
        "Floor",
        "Gelu",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Mish",
        "Neg",
        "Relu",
    ],
    *[
        "Round",
        "Selu",
        "Sign",
        "Sin",
        "Sinh",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "Dropout",
    ],
    *["Add", "Max", "Mean", "Min", "Sub", "Sum"],
    slots=None,
)
keeps_zero("all", "CastLike", "Div", "PRelu", slots=(0,))
keeps_zero("all", "Where", slots=(1, 2))
keeps_zero("any", "Mul", "And")


def _spans_zero(n: NodeView) -> bool:
    """Whether a Clip leaves zero alone."""
    low = n.attrs.get("min", n.const(1) if n.has(1) else -1)
    high = n.attrs.get("max", n.const(2) if n.has(2) else 1)
    return low is not None and high is not None and bool((np.asarray(low) <= 0).all() and (np.asarray(high) >= 0).all())


keeps_zero("all", "Clip", slots=(0,), when=_spans_zero)
# An exponent for each channel is zero where the channel is gone, and anything to the power of zero is one.
keeps_zero("all", "Pow", slots=(0,), when=lambda n: (e := n.const(1)) is not None and e.size == 1 and bool(e.max() > 0))


@rule(*UNARY)
def unary(n: NodeView) -> Iterator[Constraint]:
    """Every axis of the input goes with the same axis of the output."""
    for x, y in zip(n.xs(0), n.ys(), strict=True):
        yield Tie(x, y)
    yield from _stay_finite(n)


# Where a zero at an input makes a NaN or an infinity, which no zero weight behind it takes away.
_NOT_AT_ZERO = {"Acosh": 0, "Log": 0, "Reciprocal": 0, "Div": 1, "Mod": 1}


def _stay_finite(n: NodeView) -> Iterator[Constraint]:
    slot = _NOT_AT_ZERO.get(n.node.op)
    if n.node.op == "Pow" and (power := n.const(1)) is not None and not (power >= 0).all():
        slot = 0
    if slot is None or n.node.domain or n.node.inputs[slot] in n.graph.fixed:
        return
    for dim in n.xs(slot):
        if n.zero(dim):
            yield Lock(dim, f"{n.node.op} of a removed index, which is zero, is no number")


@rule("CastLike")
def cast_like(n: NodeView) -> Iterator[Constraint]:
    """Only the type of the second input matters: its axes are free."""
    yield from unary(n)
    for dim in n.xs(1):
        yield free(dim)


@rule("Dropout")
def dropout(n: NodeView) -> Iterator[Constraint]:
    """Identity at inference; the optional mask has the same axes."""
    for slot in n.outputs():
        name = n.node.outputs[slot]
        if n.graph.shapes.get(name) is None and name not in n.graph.consumers:
            continue  # before opset 12 nothing infers the mask's shape, and nothing needs it
        for x, y in zip(n.xs(0), n.ys(slot), strict=True):
            yield Tie(x, y)


@rule(*BROADCAST)
def broadcast(n: NodeView) -> Iterator[Constraint]:
    """All inputs, constant or computed, broadcast against each other."""
    for slot in range(len(n.node.inputs)):
        if n.has(slot):
            yield from tie_broadcast(n, n.xs(slot), n.shape(slot), n.ys(), n.out_shape())
    yield from _stay_finite(n)
