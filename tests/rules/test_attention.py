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


@pytest.mark.parametrize("keys", [4, 2])
@pytest.mark.parametrize("rank", [3, 4])
def test_caches_and_scores_of_onnx_attention(rank: int, keys: int) -> None:
    """Computed caches lose the heads of the new keys and values; scores and masks have one index a query head."""
    b, past = Builder(23), 3
    x, before = b.input("x", 2, TOKENS, 6), b.input("before", 2, past, 6)

    def apart(name: str, count: int, y: str, tokens: int) -> str:
        y = b.op("Reshape", project(b, y, name, count * WIDTH), [2, tokens, count, WIDTH])
        return b.op("Transpose", y, perm=[0, 2, 1, 3])

    counts = {"q": HEADS, "k": keys, "v": keys}
    parts = [
        project(b, x, name, count * WIDTH) if rank == 3 else apart(name, count, x, TOKENS)
        for name, count in counts.items()
    ]
    caches = [apart(name, keys, before, past) for name in ("pk", "pv")]
    mask = b.weight(1, HEADS, TOKENS, TOKENS + past, name="mask")
    attrs: dict[str, Any] = {"q_num_heads": HEADS, "kv_num_heads": keys} if rank == 3 else {}
    y, _, values, qk = b.ops(
        "Attention", *parts, mask, *caches, outputs=4, softcap=2.0, qk_matmul_output_mode=1, **attrs
    )
    if rank == 4:
        y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), [2, TOKENS, HEADS * WIDTH])
    y = b.op("MatMul", y, b.weight(HEADS * WIDTH, 6, name="out", fan=8))
    mixed = b.op("Conv", qk, b.weight(3, HEADS, 1, 1, name="mix"))
    read = b.op("Conv", values, b.weight(3, keys, 1, 1, name="read"))
    result = prove(b.model(y, mixed, read))
    for name in ("q", "k", "pk"):
        assert result.choices(name, 1) == [keys]
    assert result.choices("mask", 1) == result.choices("mix", 1) == result.choices("read", 1) == [keys]
    assert result.shape("mask") == (1, HEADS // 2, TOKENS, TOKENS + past)


def test_lengths_of_a_padded_cache() -> None:
    """nonpad_kv_seqlen, from opset 24 on."""
    b = Builder(24)
    x = b.input("x", 2, TOKENS, 6)
    parts = [project(b, x, name) for name in "qkv"]
    lengths = b.const(np.array([3, 5]))
    y = b.op("Attention", *parts, None, None, None, lengths, q_num_heads=HEADS, kv_num_heads=HEADS)
    result = prove(b.model(b.op("MatMul", y, b.weight(HEADS * WIDTH, 6, name="out", fan=8))))
    assert result.choices("q", 1) == result.choices("v", 1) == result.choices("out") == [HEADS]


def test_a_cache_that_is_written_in_place() -> None:
    """TensorScatter, from opset 24 on: heads pass."""
    b = Builder(24)
    x = b.input("x", 2, 1, 6)
    q, k, v = (
        b.op("Transpose", b.op("Reshape", project(b, x, name), [2, 1, HEADS, WIDTH]), perm=[0, 2, 1, 3])
        for name in "qkv"
    )
    place = b.const(np.array([1, 2]))
    k, v = (
        b.op("TensorScatter", b.weight(2, HEADS, 4, WIDTH, name=f"past.{name}", fan=8), y, place, axis=2)
        for name, y in (("k", k), ("v", v))
    )
    y = b.op("Reshape", b.op("Transpose", b.op("Attention", q, k, v), perm=[0, 2, 1, 3]), [2, 1, HEADS * WIDTH])
    result = prove(b.model(b.op("MatMul", y, b.weight(HEADS * WIDTH, 6, name="out", fan=8))))
    assert result.choices("q", 1) == result.choices("past.k", 1) == [HEADS]
