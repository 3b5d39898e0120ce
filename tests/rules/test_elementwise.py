"""Element-wise ops: every unary, every broadcast with every form of partner, Where, Clip, PRelu, casts."""

from typing import Any

import numpy as np
import pytest

from onnxprune.rules.elementwise import BROADCAST, UNARY
from onnxprune.testing import Builder, OracleResult, prove, sandwich

BOOLEAN = {"And", "Or", "Xor", "Not"}
COMPARING = {"IsInf", "IsNaN", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
WHOLE = {"BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"}
# A removed channel of the masked original is zero: keep it off the points where a function has no value.
POSITIVE = {"Sqrt", "Log", "Acosh", "Pow", "Reciprocal", "Div", "Mod"}
UNIT = {"Acos", "Asin", "Atanh"}
OPSETS = {"Swish": 24, "Gelu": 20, "IsInf": 20} | dict.fromkeys([*WHOLE, "Mish"], 18)
ATTRS: dict[str, dict[str, Any]] = {
    "Cast": {"to": 10},
    "BitShift": {"direction": "LEFT"},
    "Mod": {"fmod": 1},
    "Shrink": {"lambd": 0.2, "bias": 0.1},
}


def typed(b: Builder, kind: str, y: str) -> str:
    """Bring a float tensor into the domain of an op."""
    if kind in WHOLE:
        return b.op("Cast", b.op("Mul", y, 9.0), to=6)
    if kind == "BitShift":
        return b.op("Cast", b.op("Add", b.op("Mul", b.op("Abs", y), 2.0), 1.0), to=12)
    if kind in BOOLEAN:
        return b.op("Greater", y, 0.0)
    if kind in POSITIVE:
        return b.op("Add", b.op("Abs", y), 1.0)
    if kind == "Equal":
        return b.op("Round", y)
    if kind == "IsNaN":
        return b.op("Log", b.op("Sub", y, 0.1))
    if kind == "IsInf":
        return b.op("Div", y, b.op("Relu", b.op("Sub", y, 0.1)))
    return b.op("Tanh", y) if kind in UNIT else y


def untyped(b: Builder, kind: str, y: str) -> str:
    """Back to float32."""
    return b.op("Cast", y, to=1) if kind in {*WHOLE, *BOOLEAN, *COMPARING, "BitShift", "Cast"} else y


def prove_free(kind: str, result: OracleResult) -> None:
    assert result.choices("w1") == result.choices("w2", 1) == [8], kind


@pytest.mark.parametrize("kind", UNARY)
def test_unary(kind: str) -> None:
    def middle(b: Builder, y: str) -> str:
        return untyped(b, kind, b.op(kind, typed(b, kind, y), **ATTRS.get(kind, {})))

    prove_free(kind, prove(sandwich(middle, opset=OPSETS.get(kind, 17))))


PARTNERS: dict[str, tuple[int, ...] | str] = {
    "full": (1, 8, 1, 1),
    "channels": (8, 1, 1),
    "scalar": (),
    "one": (1,),
    "plane": (6, 6),
    "gate": "gate",
    "map": "map",
}


def partner(b: Builder, x: str, form: tuple[int, ...] | str) -> str:
    """The second operand: a constant, a computed gate [N, C, 1, 1], or a computed map [N, 1, H, W]."""
    if form == "gate":
        pooled = b.op("GlobalAveragePool", x)
        return b.op("Sigmoid", b.conv(b.op("Relu", b.conv(pooled, 4, 1, "squeeze")), 8, 1, "excite"))
    if form == "map":
        return b.op("Sigmoid", b.conv(x, 1, 3, "spatial"))
    assert not isinstance(form, str)
    return b.near_one(*form, name="partner")


TWO_SIDED = [k for k in BROADCAST if k not in ("Where", "Clip", "PRelu")]


@pytest.mark.parametrize("form", PARTNERS.values(), ids=PARTNERS)
@pytest.mark.parametrize("kind", TWO_SIDED)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_broadcast(kind: str, form: tuple[int, ...] | str, left: bool) -> None:
    def middle(b: Builder, y: str) -> str:
        operands = [typed(b, kind, y), typed(b, kind, partner(b, y, form))]
        if left:
            operands.reverse()
        return untyped(b, kind, b.op(kind, *operands, **ATTRS.get(kind, {})))

    result = prove(sandwich(middle, opset=OPSETS.get(kind, 17)), rounds=1)
    prove_free(kind, result)
    if form in ((1, 8, 1, 1), (8, 1, 1)):
        assert result.choices("partner", len(form) - 3) == [8]
        assert result.shape("partner") == tuple(4 if size == 8 else size for size in form)
    if form == "gate":
        assert result.choices("excite") == [8]
        assert result.choices("squeeze") == [4]


@pytest.mark.parametrize("kind", ["Max", "Mean", "Min", "Sum"])
def test_variadic(kind: str) -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op(kind, y, b.weight(8, 1, 1, name="c"), b.conv(y, 8, name="w"), 0.5)

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("w") == result.choices("c") == [8]


def test_residual_sum_couples_its_branches() -> None:
    result = prove(sandwich(lambda b, y: b.op("Add", y, b.conv(b.op("Relu", y), 8, name="w"))))
    assert result.choices("w1") == result.choices("w") == [8]
    assert len(result.coupling.groups) == 1


def test_a_sum_with_the_input_locks() -> None:
    b = Builder()
    x = b.input("x", 2, 8, 6, 6)
    result = prove(b.model(b.conv(b.op("Add", x, b.conv(x, 8, name="w1")), 4)))
    assert result.reason("w1") == "a graph input"


def test_where() -> None:
    """A constant condition, a computed one, and a value that is a constant per channel."""

    def middle(b: Builder, y: str) -> str:
        mask = b.const(np.arange(8).reshape(8, 1, 1) % 3 > 0, "mask")
        y = b.op("Where", mask, y, b.weight(8, 1, 1, name="other"))
        return b.op("Where", b.op("Greater", y, 0.1), b.conv(y, 8, name="w"), 0.0)

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("w") == result.choices("other") == [8]
    assert result.shape("mask") == (4, 1, 1)


@pytest.mark.parametrize("opset", [6, 11, 17])
def test_clip(opset: int) -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Clip", y, min=-0.1, max=0.4) if opset < 11 else b.op("Clip", y, -0.1, 0.4)

    prove_free("Clip", prove(sandwich(middle, opset=opset)))


def test_clip_with_one_bound() -> None:
    prove_free("Clip", prove(sandwich(lambda b, y: b.op("Clip", y, None, 0.4))))


@pytest.mark.parametrize("slope", [(8, 1, 1), (1, 8, 1, 1), (1, 1, 1), (1,), ()], ids=str)
def test_prelu(slope: tuple[int, ...]) -> None:
    result = prove(sandwich(lambda b, y: b.op("PRelu", y, b.near_one(*slope, name="slope"))))
    prove_free("PRelu", result)
    if 8 in slope:
        assert result.shape("slope") == tuple(4 if size == 8 else size for size in slope)


def test_prelu_slope_behind_an_unsqueeze() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("PRelu", y, b.op("Unsqueeze", b.near_one(8, name="slope"), [1, 2]))

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("slope") == [8]


@pytest.mark.parametrize("to", [10, 11, 16], ids=["float16", "double", "bfloat16"])
def test_cast_and_back(to: int) -> None:
    prove_free("Cast", prove(sandwich(lambda b, y: b.op("Cast", b.op("Cast", y, to=to), to=1))))


@pytest.mark.parametrize("kind", ["Div", "Reciprocal"])
def test_divisors_behind_another_op(kind: str) -> None:
    """Slices of what is divided by stay in the mask: a zero there would be no channel that is gone, but infinity."""

    def middle(b: Builder, y: str) -> str:
        scale = b.op("Unsqueeze", b.near_one(8, name="scale"), [1, 2])
        return b.op("Div", y, scale) if kind == "Div" else b.op("Mul", y, b.op("Reciprocal", scale))

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("scale") == [8]


def test_cast_like_reads_only_the_type() -> None:
    def middle(b: Builder, y: str) -> str:
        like = b.conv(y, 6, name="like")
        return b.op("Concat", b.op("CastLike", y, like), b.op("Relu", like), axis=1)

    result = prove(sandwich(middle))
    assert result.choices("w1") == [8]
    assert result.choices("like") == [6]


@pytest.mark.parametrize("opset", [9, 12, 17])
@pytest.mark.parametrize("outputs", [1, 2])
def test_dropout(opset: int, outputs: int) -> None:
    result = prove(sandwich(lambda b, y: b.ops("Dropout", y, outputs=outputs)[0], opset=opset))
    prove_free("Dropout", result)


def test_gate_without_hidden_layer() -> None:
    """ECA: a 1-D convolution over the channels locks them."""

    def middle(b: Builder, y: str) -> str:
        pooled = b.op("ReduceMean", y, axes=[2, 3])  # [N, C]
        gate = b.conv(b.op("Unsqueeze", pooled, [1]), 1, 3, "eca")
        gate = b.op("Unsqueeze", b.op("Squeeze", b.op("Sigmoid", gate), [1]), [2, 3])
        return b.op("Mul", y, gate)

    result = prove(sandwich(middle))
    assert result.reason("w1") == "the axis is convolved"


# Zeros: a sum over the channels does not miss a removed one that would be zero.


def summed(b: Builder, y: str) -> str:
    return b.op("Concat", y, b.op("ReduceSum", y, [1]), axis=1)


NOT_ZERO_AT_ZERO = {"Acos", "Acosh", "Cos", "Cosh", "Exp", "HardSigmoid", "Log", "Not", "Reciprocal", "Sigmoid"}
NOT_ZERO_AT_ZERO |= {"Softplus", "BitwiseNot"}


@pytest.mark.parametrize("kind", [k for k in UNARY if k not in COMPARING])
def test_zeros_through_unary(kind: str) -> None:
    def middle(b: Builder, y: str) -> str:
        y = b.op("Tanh", y) if kind in UNIT else typed(b, kind, y) if kind in {*WHOLE, *BOOLEAN} else y
        if kind in ("Log", "Acosh", "Reciprocal"):
            y = typed(b, kind, y)
        return summed(b, untyped(b, kind, b.op(kind, y, **ATTRS.get(kind, {}))))

    result = prove(sandwich(middle, opset=OPSETS.get(kind, 17)))
    if kind in NOT_ZERO_AT_ZERO:
        assert not result.can_cut("w1")
        assert result.reason("w1") == "ReduceSum mixes the axis"


@pytest.mark.parametrize("form", [(8, 1, 1), (), "gate", "branch"], ids=["channels", "scalar", "gate", "branch"])
@pytest.mark.parametrize("kind", TWO_SIDED)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_zeros_through_broadcast(kind: str, form: tuple[int, ...] | str, left: bool) -> None:
    """Whatever the engine decides must be exact; a product with one zero always is."""

    def middle(b: Builder, y: str) -> str:
        other = b.conv(y, 8) if form == "branch" else partner(b, y, form)
        kinds = {*WHOLE, *BOOLEAN, "BitShift", "Equal"}
        operands = [typed(b, kind, y) if kind in kinds else y, typed(b, kind, other)]
        if kind in ("Div", "Mod", "Pow") and left:
            operands[0] = typed(b, kind, y)
        elif kind == "Pow":
            operands[0] = b.op("Relu", y)
        if left:
            operands.reverse()
        return summed(b, untyped(b, kind, b.op(kind, *operands, **ATTRS.get(kind, {}))))

    result = prove(sandwich(middle, opset=OPSETS.get(kind, 17)), rounds=1)
    if kind == "Mul":
        assert result.choices("w1") == [8]


@pytest.mark.parametrize("bounds", [(-0.1, 0.4), (0.1, 0.4), (0.0, None), (None, -0.2), (None, None)], ids=str)
def test_zeros_through_clip(bounds: tuple[float | None, float | None]) -> None:
    result = prove(sandwich(lambda b, y: summed(b, b.op("Clip", y, *bounds))))
    keeps = (bounds[0] is None or bounds[0] <= 0) and (bounds[1] is None or bounds[1] >= 0)
    assert result.can_cut("w1") == keeps


def test_zeros_through_where() -> None:
    """Both values must be zero where the channel goes, whatever the condition."""

    def middle(b: Builder, y: str, other: float | str) -> str:
        return summed(b, b.op("Where", b.op("Greater", y, 0.1), y, other))

    assert prove(sandwich(lambda b, y: middle(b, y, b.op("Tanh", y)))).choices("w1") == [8]
    assert not prove(sandwich(lambda b, y: middle(b, y, 0.5))).can_cut("w1")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_zeros_through_padding_of_the_channels(value: float) -> None:
    """Padded channels are what the padding says, not zero because they are new."""
    prove(sandwich(lambda b, y: summed(b, b.op("Pad", y, [0, 2, 0, 0, 0, 1, 0, 0], value))), rounds=4)


def test_zeros_through_norms() -> None:
    def middle(b: Builder, y: str) -> str:
        return summed(b, b.op("Relu", b.batch_norm(y, "bn")))

    assert prove(sandwich(middle)).choices("w1") == [8]


def test_zeros_through_a_broadcast_scalar_sum() -> None:
    """x + 1 is 1 where x is zero: the sum would miss it."""
    result = prove(sandwich(lambda b, y: summed(b, b.op("Add", y, 1.0))))
    assert not result.can_cut("w1")


@pytest.mark.parametrize("values", [np.arange(8) % 3 > 0, np.arange(8)], ids=["bool", "int64"])
def test_constants_that_are_no_weights_are_not_zero(values: Any) -> None:
    """A mask that is added stays what it is in the masked original."""

    def middle(b: Builder, y: str) -> str:
        return summed(b, b.op("Add", y, b.op("Cast", values.reshape(8, 1, 1), to=1)))

    assert not prove(sandwich(middle)).can_cut("w1")
