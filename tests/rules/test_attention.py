"""Fused attention: whole heads, in every spelling."""

from typing import Any

import numpy as np
import pytest

from onnxprune.testing import Builder, prove

MS = "com.microsoft::"
HEADS, WIDTH, TOKENS = 4, 8, 5


def builder(opset: int = 17) -> Builder:
    return Builder(opset, **{"com.microsoft": 1})


def project(b: Builder, x: str, name: str, size: int = HEADS * WIDTH) -> str:
    return b.op("MatMul", x, b.weight(6, size, name=name, fan=6))


def out(b: Builder, y: str, size: int = HEADS * WIDTH) -> str:
    return b.op("MatMul", b.declare(y, 2, TOKENS, size), b.weight(size, 6, name="out", fan=size))


def int_attrs(result: Any, op: str) -> dict[str, int]:
    node = next(n for n in result.model.graph.node if n.op_type == op)
    return {a.name: a.i for a in node.attribute}


@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_attention(bias: bool) -> None:
    b = builder()
    x = b.input("x", 2, TOKENS, 6)
    q, k, v = (project(b, x, name) for name in "qkv")
    extra = [b.weight(3 * HEADS * WIDTH, name="bias")] if bias else []
    y = b.op(f"{MS}MultiHeadAttention", q, k, v, *extra, num_heads=HEADS)
    result = prove(b.model(out(b, y)))
    for name in "qkv":
        assert result.choices(name, 1) == [HEADS]
    assert result.choices("out") == [HEADS]
    assert result.shape("q") == (6, 16)
    assert int_attrs(result, "MultiHeadAttention")["num_heads"] == 2
    if bias:
        assert result.shape("bias") == (48,)


def test_multi_head_attention_with_a_bias_for_each_head() -> None:
    b = builder()
    x = b.input("x", 2, TOKENS, 6)
    q, k, v = (project(b, x, name) for name in "qkv")
    scores = b.weight(1, HEADS, TOKENS, TOKENS, name="scores")
    y = b.op(f"{MS}MultiHeadAttention", q, k, v, None, None, scores, num_heads=HEADS)
    result = prove(b.model(out(b, y)))
    assert result.choices("q", 1) == result.choices("scores", 1) == [HEADS]
    assert result.shape("scores") == (1, 2, TOKENS, TOKENS)


def test_multi_head_attention_with_narrow_values() -> None:
    b = builder()
    x = b.input("x", 2, TOKENS, 6)
    q, k, v = project(b, x, "q"), project(b, x, "k"), project(b, x, "v", 12)
    y = b.op(f"{MS}MultiHeadAttention", q, k, v, num_heads=HEADS)
    result = prove(b.model(out(b, y, 12)))
    assert result.choices("v", 1) == result.choices("q", 1) == [HEADS]
    assert result.shape("v") == (6, 6)


def test_packed_attention() -> None:
    """One weight for queries, keys and values."""
    b = builder()
    x = b.op("MatMul", b.input("x", 2, TOKENS, 3), b.weight(3, 6, name="w1", fan=3))
    w = b.weight(6, 3 * HEADS * WIDTH, name="qkv", fan=6)
    y = b.op(f"{MS}Attention", x, w, b.weight(3 * HEADS * WIDTH, name="bias"), num_heads=HEADS)
    result = prove(b.model(out(b, y)))
    assert result.choices("qkv", 1) == result.choices("bias") == [HEADS]
    assert result.choices("w1", 1) == [6]
    assert result.shape("qkv") == (3, 48)


@pytest.mark.parametrize("packed", [False, True])
def test_grouped_queries(packed: bool) -> None:
    """Two key-value heads for four query heads: a unit is one of the two with its two queries."""
    b = builder()
    x = b.input("x", 2, TOKENS, 6)
    keys = 2 * WIDTH
    if packed:
        parts = [project(b, x, "q", HEADS * WIDTH + 2 * keys), "", ""]
    else:
        parts = [project(b, x, "q"), project(b, x, "k", keys), project(b, x, "v", keys)]
    lengths = b.const(np.full(2, TOKENS - 1, dtype=np.int32))
    rest = [None, None, lengths, np.array(TOKENS, dtype=np.int32)]
    y = b.op(f"{MS}GroupQueryAttention", *parts, *rest, num_heads=HEADS, kv_num_heads=2)
    result = prove(b.model(out(b, y)))
    assert result.choices("q", 1) == result.choices("out") == [2]
    assert int_attrs(result, "GroupQueryAttention") == {"num_heads": 2, "kv_num_heads": 1}
    if not packed:
        assert result.choices("k", 1) == result.choices("v", 1) == [2]


@pytest.mark.parametrize("keys", [4, 2, 1])
@pytest.mark.parametrize("rank", [3, 4])
def test_onnx_attention(rank: int, keys: int) -> None:
    b = builder(23)
    x = b.input("x", 2, TOKENS, 6)
    parts = [project(b, x, name, count * WIDTH) for name, count in (("q", HEADS), ("k", keys), ("v", keys))]
    attrs: dict[str, Any] = {"q_num_heads": HEADS, "kv_num_heads": keys}
    if rank == 4:
        attrs = {}
        counts = (HEADS, keys, keys)
        parts = [
            b.op("Transpose", b.op("Reshape", y, [2, TOKENS, count, WIDTH]), perm=[0, 2, 1, 3])
            for y, count in zip(parts, counts, strict=True)
        ]
    y = b.op("Attention", *parts, **attrs)
    if rank == 4:
        y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), [2, TOKENS, HEADS * WIDTH])
    result = prove(b.model(b.op("MatMul", y, b.weight(HEADS * WIDTH, 6, name="out", fan=8))))
    freedom = [keys] if keys > 1 else []
    if rank == 3:
        assert result.choices("q", 1) == result.choices("k", 1) == result.choices("out") == freedom
    else:
        assert result.choices("q", 1) == result.choices("k", 1) == freedom
        assert result.can_cut("v", 1) and result.can_cut("out")


@pytest.mark.parametrize("rank", [3, 4])
def test_rotary_embedding(rank: int) -> None:
    """Rotated queries and keys in front of an attention, as decoders have them."""
    b = builder(23)
    x = b.input("x", 2, TOKENS, 6)
    q, k, v = (project(b, x, name) for name in "qkv")
    angles = b.rng.uniform(0, 3, (2, TOKENS, WIDTH // 2)).astype(np.float32)
    cos, sin = b.const(np.cos(angles)), b.const(np.sin(angles))

    def rotate(y: str) -> str:
        if rank == 3:
            return b.op("RotaryEmbedding", y, cos, sin, num_heads=HEADS)
        y = b.op("Transpose", b.op("Reshape", y, [2, TOKENS, HEADS, WIDTH]), perm=[0, 2, 1, 3])
        y = b.op("Transpose", b.op("RotaryEmbedding", y, cos, sin), perm=[0, 2, 1, 3])
        return b.op("Reshape", y, [2, TOKENS, HEADS * WIDTH])

    y = b.op("Attention", rotate(q), rotate(k), v, q_num_heads=HEADS, kv_num_heads=HEADS)
    result = prove(b.model(b.op("MatMul", y, b.weight(HEADS * WIDTH, 6, name="out", fan=32))))
    assert result.choices("q", 1) == result.choices("v", 1) == [HEADS]


def test_microsoft_rotary_embedding() -> None:
    b = builder()
    x = b.input("x", 2, TOKENS, 6)
    q, k, v = (project(b, x, name) for name in "qkv")
    angles = b.rng.uniform(0, 3, (TOKENS, WIDTH // 2)).astype(np.float32)
    cos, sin = b.const(np.cos(angles)), b.const(np.sin(angles))
    where = b.const(np.zeros(1, dtype=np.int64))
    rotated = [
        b.declare(b.op(f"{MS}RotaryEmbedding", y, where, cos, sin, num_heads=HEADS), 2, TOKENS, HEADS * WIDTH)
        for y in (q, k)
    ]
    y = b.op(f"{MS}MultiHeadAttention", *rotated, v, num_heads=HEADS)
    result = prove(b.model(out(b, y)))
    assert result.choices("q", 1) == result.choices("v", 1) == [HEADS]
