"""Steps element by element, on values of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tools.networks.grower import Grower, step

# Operators whose values stay in bounds, and the opset that has them.
SMOOTH = {
    "Relu": 6,
    "LeakyRelu": 6,
    "Tanh": 6,
    "Sigmoid": 6,
    "Softplus": 1,
    "Elu": 6,
    "Softsign": 1,
    "Abs": 6,
    "Neg": 6,
}
UNARY = SMOOTH | {
    "Acos": 7,
    "Acosh": 9,
    "Asin": 7,
    "Asinh": 9,
    "Atan": 7,
    "Atanh": 9,
    "Ceil": 6,
    "Celu": 12,
    "Cos": 7,
    "Cosh": 9,
    "Erf": 9,
    "Exp": 6,
    "Floor": 6,
    "Gelu": 20,
    "HardSigmoid": 6,
    "HardSwish": 14,
    "Identity": 1,
    "Log": 6,
    "Mish": 18,
    "Reciprocal": 6,
    "Round": 11,
    "Selu": 6,
    "Shrink": 9,
    "Sign": 9,
    "Sin": 7,
    "Sinh": 9,
    "Sqrt": 6,
    "Swish": 24,
    "Tan": 7,
    "ThresholdedRelu": 10,
}
# Where an operator is not defined everywhere, or grows fast, its input is brought into these bounds.
BOUNDS = {"Acos", "Asin", "Atanh", "Cosh", "Sinh", "Tan", "Exp"}
POSITIVE = {"Acosh": 1.1, "Log": 0.3, "Reciprocal": 0.5, "Sqrt": 0.0}
POINTWISE = ["Add", "Add", "Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum"]
COMPARISONS = ["Greater", "Less", "GreaterOrEqual", "LessOrEqual"]


def smooth(g: Grower, x: str) -> str:
    """Something that is not linear."""
    return g.op(g.random.choice(list(SMOOTH)), x)


def bumped(g: Grower, x: str) -> str:
    """Something that is not zero where `x` is."""
    kind = g.pick("Sigmoid", "Softplus", "Exp", "Add", "Where")
    if kind == "Exp":
        return g.op(kind, g.op("Tanh", x))
    if kind == "Add":
        return g.op(kind, x, g.pick(0.3, g.near_one(1)))
    if kind == "Where":
        return g.op(kind, g.op("Greater", x, 0.1), x, 0.4) if g.opset >= 9 else g.op("Add", x, 0.4)
    return g.op(kind, x)


@step(6)
def unary(g: Grower, x: str) -> str:
    names = [op for op, since in UNARY.items() if since <= g.opset]
    kind = g.random.choice(names if g.chance(0.6) else list(SMOOTH))
    if kind in BOUNDS:
        x = g.op("Mul", g.op("Tanh", x), 0.9)
    if kind in POSITIVE:
        x = g.op("Add", g.op("Abs", x), POSITIVE[kind])
    if kind in ("Ceil", "Floor", "Round", "Sign"):  # not at once where values are near a step
        x = g.op("Mul", x, 3.0)
    attrs: dict[str, Any] = {"bias": g.pick(0.0, 0.2), "lambd": g.pick(0.2, -0.5)} if kind == "Shrink" else {}
    if kind in ("HardSigmoid", "Elu", "ThresholdedRelu") and g.chance(0.5):
        attrs = {"alpha": g.pick(0.3, 0.8)}
    return g.op(kind, x, **attrs)


@step(4)
def constant(g: Grower, x: str) -> str:
    """With a constant along the channels, along other axes, or along none."""
    c = g.channels(x)
    shape = g.shape(x)
    forms = [g.along(x), (1, *g.along(x)), (), (1,), g.along(x, 1)]
    if g.fixed(x):
        forms += [shape[-1:], shape[1:], shape[max(1, len(shape) - 2) :]]
    form = g.pick(*forms, g.along(x, c))
    kind = g.pick("Add", "Sub", "Mul", "Mul", "Add", "Max", "Min", "Div", "Pow")
    if kind in ("Max", "Min") and g.opset < 12:
        kind = "Add"
    if kind == "Pow":
        return g.op(kind, g.op("Abs", x), g.near_one(*form))
    operands = [x, g.near_one(*form)]
    if kind == "Div" and g.chance(0.3):
        return g.op(kind, operands[1], g.op("Add", g.op("Abs", x), 0.5))
    if kind != "Div":
        g.random.shuffle(operands)
    return g.op(kind, *operands)


@step(8)
def joined(g: Grower, x: str) -> str | None:
    """With another value of the same sizes, or one that broadcasts."""
    pairs = g.pairs(x)
    other = g.fitting(lambda v: all(a in ((1, 1), b) for a, b in zip(g.pairs(v), pairs, strict=True)))
    if other is None:
        return None
    operands = [x, other, *([g.near_one(*g.along(x))] if g.chance(0.1) else [])]
    g.random.shuffle(operands)
    kind = g.random.choice(POINTWISE)
    return g.op(kind, *operands[: 2 if kind in ("Sub", "Mul", "Add") else 3])


@step(3)
def glued(g: Grower, x: str) -> str | None:
    """Behind one another, along the channels or another axis."""
    axis = g.random.randrange(1, len(g.shape(x))) if g.chance(0.3) else g.random.choice([1, len(g.shape(x)) - 1])
    size = len(g.pairs(x))
    other = g.fitting(
        lambda v: all(g.pairs(v)[a] == g.pairs(x)[a] for a in range(size) if a != axis) and g.fixed(v, axis)
    )
    if other is None or not g.fixed(x, axis):
        return None
    parts = [x, other, *([x] if g.chance(0.1) else [])]
    g.random.shuffle(parts)
    return g.op("Concat", *parts, axis=g.pick(axis, axis - len(g.shape(x))) if g.opset >= 11 else axis)


@step(1, since=12)
def compared(g: Grower, x: str) -> str:
    """A mask that is made by a comparison, and combined with others."""
    other = g.alike(x) if g.chance(0.5) else None
    other = other if other and other != x else g.near_one(*g.along(x))
    mask = g.op(g.random.choice(COMPARISONS), x, other)
    if g.chance(0.2):
        mask = g.op("Equal", g.op("Sign", x), g.op("Sign", g.op("Sub", x, other)))
    if g.chance(0.4):
        second = g.op(g.pick("Less", "Greater"), g.op("Tanh", x), g.pick(0.3, -0.3))
        mask = g.op(g.pick("And", "Or", "Xor"), mask, second)
    if g.chance(0.3):
        mask = g.op("Not", mask)
    if g.chance(0.4):
        return g.op("Mul", x, g.cast(mask, TensorProto.FLOAT))
    return g.op("Where", mask, x, g.pick(g.op("Tanh", x), g.const(0.5), g.near_one(*g.along(x))))


@step(1, since=9)
def chosen(g: Grower, x: str) -> str:
    """Where, with a mask that is a constant."""
    mask = g.const(g.rng.random(g.along(x)) < 0.5)
    operands = [x, g.pick(smooth(g, x), g.const(0.0), g.const(0.5), g.weight(*g.along(x)))]
    g.random.shuffle(operands)
    return g.op("Where", mask, *operands)


@step(1, since=18)
def bits(g: Grower, x: str) -> str:
    """Integer arithmetic on bits, and back."""
    x = g.clip(g.op("Mul", x, 10.0), 0.0, 250.0)
    y = g.cast(g.op("Floor", x), TensorProto.UINT8)
    other = g.pick(y, g.const(g.rng.integers(0, 9, g.along(x)).astype(np.uint8)))
    kind = g.random.choice(["BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift", "BitwiseNot"])
    if kind == "BitwiseNot":
        y = g.op(kind, y)
    elif kind == "BitShift":
        y = g.op(kind, y, g.const(g.rng.integers(0, 3, g.along(x)).astype(np.uint8)), direction=g.pick("LEFT", "RIGHT"))
    else:
        y = g.op(kind, y, other)
    return g.op("Mul", g.cast(y, TensorProto.FLOAT), 0.02)


@step(1, since=10)
def remainder(g: Grower, x: str) -> str:
    return g.op("Mod", x, g.near_one(*g.along(x)), fmod=1)


@step(1, since=10)
def strange(g: Grower, x: str) -> str:
    """What is not a number, and what is infinite: nothing, here."""
    if g.chance(0.5):
        return g.op("Where", g.op("IsInf", x), 0.5, x)
    return g.op("Where", g.op("IsNaN", x), g.near_one(*g.along(x)), x)


@step(1)
def prelu(g: Grower, x: str) -> str:
    return g.op("PRelu", x, g.near_one(*g.pick(g.along(x), (1,))))


@step(1)
def clipped(g: Grower, x: str) -> str:
    return g.clip(x, g.pick(-0.5, 0.0, 0.1), 1.5)


@step(1)
def dropped(g: Grower, x: str) -> str:
    return g.ops("Dropout", x, outputs=g.pick(1, 2))[0]


@step(1)
def recast(g: Grower, x: str) -> str:
    """In double precision and back."""
    y = g.op("Tanh", g.cast(x, TensorProto.DOUBLE))
    if g.opset >= 15 and g.chance(0.5):
        return g.op("CastLike", y, x)
    return g.cast(y, TensorProto.FLOAT)


@step(12, tag="half", since=13)
def halved(g: Grower, x: str) -> str:
    """In half precision and back, a layer or an activation in between."""
    y = g.cast(x, TensorProto.FLOAT16)
    if g.kind in ("tokens", "flat", "sequence") and g.chance(0.6):
        c, out = g.channels(x), g.width()
        y = g.op("MatMul", y, g.const((g.rng.standard_normal((c, out)) / c**0.5).astype(np.float16)))
    y = g.op(g.pick("Relu", "Tanh", "Sigmoid"), y)
    return g.cast(y, TensorProto.FLOAT)
