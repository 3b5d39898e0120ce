"""ONNX Runtime's fused operators."""

from typing import Any

import numpy as np
import pytest

from onnxprune import couple, load
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


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "LeakyRelu"])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_fused_gemm(trans_b: int, activation: str) -> None:
    b = builder()
    y = b.gemm(b.input("x", 5, 3), 8, name="w1")
    w = b.weight(*((6, 8) if trans_b else (8, 6)), name="w")
    extra: dict[str, Any] = {"activation_alpha": 0.1} if activation == "LeakyRelu" else {}
    y = b.op(f"{MS}FusedGemm", y, w, b.weight(6, name="bias"), transB=trans_b, activation=activation, **extra)
    result = prove(b.model(b.gemm(b.declare(y, 5, 6), 4, "w2")))
    assert result.choices("w1") == result.choices("w", trans_b) == [8]
    assert result.choices("w", 1 - trans_b) == result.choices("bias") == result.choices("w2", 1) == [6]


def test_transposed_matmul() -> None:
    b = builder()
    y = b.op(f"{MS}TransposeMatMul", tokens(b), b.weight(6, 8, name="w"), transB=1)
    result = prove(b.model(last(b, b.declare(y, 2, 5, 6), 6)))
    assert result.choices("w1", 1) == result.choices("w", 1) == [8]
    assert result.choices("w") == result.choices("w2") == [6]


@pytest.mark.parametrize("segments", [False, True])
def test_embeddings(segments: bool) -> None:
    """Words, positions and segments, summed up and normalised."""
    b = builder()
    ids = b.input("ids", 2, 5, dtype=np.int32)
    tables = [b.weight(9, 8, name="words", fan=1), b.weight(7, 8, name="places", fan=1)]
    kinds = [b.const(np.array([[0, 1, 1, 0, 1]] * 2, np.int32)) if segments else None]
    extra = [b.weight(2, 8, name="segments", fan=1) if segments else None, b.near_one(8, name="gamma"), b.weight(8)]
    y, _ = b.ops(f"{MS}EmbedLayerNormalization", ids, *kinds, *tables, *extra, outputs=2)
    y = b.op("Tanh", last(b, b.declare(y, 2, 5, 8)))
    model = b.model(b.op("MatMul", y, b.weight(4, 2, name="w3")))
    result = prove(model)
    assert result.reason("words", 1) == "EmbedLayerNormalization takes its statistics over the axis"
    assert result.reason("words") == "a table is read by index"
    assert result.choices("w2", 1) == [4]
    opened = couple(load(model), Options(inexact=True)).groups
    assert {m.constant for g in opened for m in g.members} >= {"words", "places", "gamma"}


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
