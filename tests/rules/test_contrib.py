"""ONNX Runtime's fused operators."""

from typing import Any

import pytest

from onnxprune.rules.base import Options
from onnxprune.testing import Builder, prove

MS = "com.microsoft::"


def builder() -> Builder:
    return Builder(**{"com.microsoft": 1})


def tokens(b: Builder, width: int = 8) -> str:
    """MatMul `w1` on [2, 5, 3]."""
    return b.op("MatMul", b.input("x", 2, 5, 3), b.weight(3, width, name="w1", fan=3))


def last(b: Builder, y: str, width: int = 8) -> str:
    return b.op("MatMul", y, b.weight(width, 4, name="w2", fan=width))


@pytest.mark.parametrize("kind", ["Gelu", "QuickGelu", "FastGelu", "BiasGelu"])
def test_gelus(kind: str) -> None:
    b = builder()
    bias = [b.weight(8, name="bias")] if kind in ("FastGelu", "BiasGelu") else []
    y = b.declare(b.op(MS + kind, tokens(b), *bias), 2, 5, 8)
    result = prove(b.model(last(b, y)))
    assert result.choices("w1", 1) == result.choices("w2") == [8]
    if bias:
        assert result.choices("bias") == [8]


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "LeakyRelu"])
@pytest.mark.parametrize("group", [1, 2, 8], ids=["dense", "grouped", "depthwise"])
def test_fused_conv(group: int, activation: str) -> None:
    b = builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    attrs: dict[str, Any] = {"activation": activation, "group": group}
    if activation == "LeakyRelu":
        attrs["activation_params"] = [0.1]
    y = b.op(f"{MS}FusedConv", y, b.weight(8, 8 // group, 1, 1, name="w"), b.weight(8, name="bias"), **attrs)
    result = prove(b.model(b.conv(b.declare(y, 2, 8, 6, 6), 4, name="w2")))
    assert result.choices("w") == result.choices("bias") == ([4] if group == 2 else [8])
    assert result.can_cut("w1")


def test_fused_conv_with_a_sum() -> None:
    b = builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    z = b.op(f"{MS}FusedConv", y, b.weight(8, 8, 1, 1, name="w"), b.weight(8), y, activation="Relu")
    result = prove(b.model(b.conv(b.declare(z, 2, 8, 6, 6), 4, name="w2")))
    assert result.choices("w1") == result.choices("w") == result.choices("w", 1) == [8]
    assert len(result.coupling.groups) == 1


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("trans_a", [0, 1])
def test_fused_matmul(trans_a: int, trans_b: int) -> None:
    b = builder()
    y = b.op("Transpose", tokens(b), perm=[0, 2, 1]) if trans_a else tokens(b)
    w = b.weight(*((6, 8) if trans_b else (8, 6)), name="w")
    y = b.op(f"{MS}FusedMatMul", y, w, transA=trans_a, transB=trans_b, alpha=0.5)
    result = prove(b.model(last(b, b.declare(y, 2, 5, 6), 6)))
    assert result.choices("w1", 1) == result.choices("w", trans_b) == [8]
    assert result.choices("w", 1 - trans_b) == result.choices("w2") == [6]


def test_fused_matmul_of_computed_tensors() -> None:
    b = builder()
    x = b.input("x", 2, 5, 3)
    q, k = (b.op("MatMul", x, b.weight(3, 8, name=name)) for name in "qk")
    model = b.model(b.declare(b.op(f"{MS}FusedMatMul", q, k, transB=1), 2, 5, 5))
    assert not prove(model).can_cut("q", 1)
    assert prove(model, options=Options(head_dims=True)).choices("q", 1) == [8]


@pytest.mark.parametrize("kind", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_norms_of_sums_lock(kind: str) -> None:
    b = builder()
    y = tokens(b)
    rest = [b.near_one(8), *([b.weight(8)] if kind == "SkipLayerNormalization" else [])]
    z = b.op(MS + kind, y, b.op("Tanh", y), *rest)
    y = b.op("MatMul", b.op("Relu", last(b, b.declare(z, 2, 5, 8))), b.weight(4, 2, name="w3"))
    result = prove(b.model(y))
    assert result.reason("w1", 1) == f"{kind} takes its statistics over the axis"
    assert result.choices("w2", 1) == [4]


def test_simplified_norm_locks() -> None:
    b = builder()
    z = b.op("SimplifiedLayerNormalization", tokens(b), b.near_one(8), axis=-1)
    result = prove(b.model(last(b, b.declare(z, 2, 5, 8))))
    assert result.reason("w1", 1) == "SimplifiedLayerNormalization takes its statistics over the axis"
