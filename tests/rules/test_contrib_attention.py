"""ONNX Runtime's fused attention in the forms of decoders and of cross-attention."""

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnxprune.testing import Builder, OracleResult, prove

MS = "com.microsoft::"
HEADS, WIDTH, TOKENS, PAST = 4, 8, 5, 3
HIDDEN = HEADS * WIDTH


def builder() -> Builder:
    return Builder(17, **{"com.microsoft": 1})


def project(b: Builder, x: str, name: str, size: int = HIDDEN) -> str:
    return b.op("MatMul", x, b.weight(6, size, name=name, fan=6))


def apart(b: Builder, y: str, tokens: int = TOKENS) -> str:
    """[B, S, H*D] -> [B, H, S, D]."""
    return b.op("Transpose", b.op("Reshape", y, [2, tokens, HEADS, WIDTH]), perm=[0, 2, 1, 3])


def out(b: Builder, y: str, size: int = HIDDEN, tokens: int = TOKENS) -> str:
    return b.op("MatMul", b.declare(y, 2, tokens, size), b.weight(size, 6, name="out", fan=size))


def heads_left(result: OracleResult, op: str) -> int:
    node = next(n for n in result.model.graph.node if n.op_type == op)
    return next(int(a.i) for a in node.attribute if a.name == "num_heads")


def test_cross_attention() -> None:
    """Keys and values are made once, and come as [B, heads, L, D]."""
    b = builder()
    x, memory = b.input("x", 2, TOKENS, 6), b.input("memory", 2, 7, 6)
    k, v = (apart(b, project(b, memory, name), 7) for name in "kv")
    y = b.op(f"{MS}MultiHeadAttention", project(b, x, "q"), k, v, num_heads=HEADS)
    result = prove(b.model(out(b, y)))
    assert result.choices("q", 1) == result.choices("k", 1) == result.choices("v", 1) == [HEADS]
    assert heads_left(result, "MultiHeadAttention") == 2


@pytest.mark.parametrize("bias", [False, True])
def test_a_cache(bias: bool) -> None:
    """Past keys and values that are computed go with their heads; the present ones are read on."""
    b = builder()
    x, before = b.input("x", 2, TOKENS, 6), b.input("before", 2, PAST, 6)
    q, k, v = (project(b, x, name) for name in "qkv")
    past = [apart(b, project(b, before, name), PAST) for name in ("pk", "pv")]
    vector = b.weight(3 * HIDDEN, name="bias") if bias else None
    parts = [q, k, v, vector, None, None, *past]
    y, *present = b.ops(f"{MS}MultiHeadAttention", *parts, outputs=3, num_heads=HEADS, unidirectional=1)
    for name in present:
        b.declare(name, 2, HEADS, TOKENS + PAST, WIDTH)
    again = b.op(f"{MS}MultiHeadAttention", project(b, x, "q2"), *present, num_heads=HEADS)
    y = b.op("Add", out(b, y), b.op("MatMul", b.declare(again, 2, TOKENS, HIDDEN), b.weight(HIDDEN, 6, fan=HIDDEN)))
    result = prove(b.model(y))
    assert [result.choices(name, 1) for name in ("q", "k", "pk", "pv", "q2")] == [[HEADS]] * 5
    assert not bias or result.shape("bias") == (3 * HIDDEN // 2,)


def test_a_cache_that_the_user_gives_locks() -> None:
    b = builder()
    x = b.input("x", 2, TOKENS, 6)
    past = [b.input(name, 2, HEADS, PAST, WIDTH) for name in ("past_k", "past_v")]
    parts = [project(b, x, "q"), project(b, x, "k"), project(b, x, "v"), None, None, None, *past]
    y, *present = b.ops(f"{MS}MultiHeadAttention", *parts, outputs=3, num_heads=HEADS)
    present = [b.declare(name, 2, HEADS, TOKENS + PAST, WIDTH) for name in present]
    result = prove(b.model(out(b, y), *present), rounds=1)
    assert result.reason("q", 1).startswith("a graph ")


def test_scores_that_are_read() -> None:
    b = builder()
    x = b.input("x", 2, TOKENS, 6)
    q, k, v = (project(b, x, name) for name in "qkv")
    y, _, _, qk = b.ops(f"{MS}MultiHeadAttention", q, k, v, outputs=["y", "", "", "qk"], num_heads=HEADS)
    mixed = b.op("Conv", b.declare(qk, 2, HEADS, TOKENS, TOKENS), b.weight(3, HEADS, 1, 1, name="mix"))
    result = prove(b.model(out(b, y), mixed))
    assert result.choices("q", 1) == result.choices("mix", 1) == [HEADS]


def test_decoding_one_token() -> None:
    """DecoderMaskedMultiHeadAttention, with room for four tokens in the cache."""
    b = builder()
    x, before = b.input("x", 2, 1, 6), b.input("before", 2, 4, 6)
    parts = [project(b, x, name) for name in "qkv"]
    past = [apart(b, project(b, before, name), 4) for name in ("pk", "pv")]
    rest = [None, None, *past, np.array([PAST], np.int32), None, None, b.weight(3 * HIDDEN, name="bias")]
    y, *present = b.ops(
        f"{MS}DecoderMaskedMultiHeadAttention",
        *[*parts, *rest],
        outputs=3,
        num_heads=HEADS,
        past_present_share_buffer=1,
    )
    for name in present:
        b.declare(name, 2, HEADS, 4, WIDTH)
    result = prove(b.model(out(b, y, tokens=1)))
    assert [result.choices(name, 1) for name in ("q", "k", "v", "pk", "pv")] == [[HEADS]] * 5
    assert result.choices("bias") == [HEADS]
    assert heads_left(result, "DecoderMaskedMultiHeadAttention") == 2


class MultiHeadAttention(OpRun):
    """What ONNX Runtime's CPU has no kernel for: packed operands."""

    op_domain = "com.microsoft"

    def _run(self, q: Any, k: Any = None, v: Any = None, num_heads: int = 1, **_: Any) -> tuple[Any]:
        if q.ndim == 5:
            q, k, v = (q[:, :, :, i] for i in range(3))
        else:
            q = q.reshape(*q.shape[:2], num_heads, -1)
            k, v = (k[:, :, :, i] for i in range(2))
        scores = np.einsum("bshd,blhd->bhsl", q, k) / q.shape[-1] ** 0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        y = np.einsum("bhsl,blhd->bshd", weights, v)
        return (y.reshape(*y.shape[:2], -1).astype(q.dtype),)


def by_the_book(model: ModelProto, feeds: Any) -> list[dict[str, Any]]:
    run = ReferenceEvaluator(model, new_ops=[MultiHeadAttention])
    return [dict(zip(run.output_names, run.run(None, feed), strict=True)) for feed in feeds]


@pytest.mark.parametrize("parts", [3, 2], ids=["queries, keys and values", "keys and values"])
def test_packed_operands(parts: int) -> None:
    """[B, S, heads, 3, D], or keys and values as [B, S, heads, 2, D]."""
    b = builder()
    x = b.input("x", 2, TOKENS, 6)
    packed = b.op("Reshape", project(b, x, "packed", parts * HIDDEN), [2, TOKENS, HEADS, parts, WIDTH])
    operands = [packed] if parts == 3 else [project(b, x, "q"), packed]
    result = prove(b.model(out(b, b.op(f"{MS}MultiHeadAttention", *operands, num_heads=HEADS))), evaluate=by_the_book)
    assert result.choices("packed", 1) == result.choices("out") == [HEADS]
    assert result.shape("packed") == (6, parts * HIDDEN // 2)


def self_attention(b: Builder, *rest: Any, size: int = HIDDEN, outputs: int = 1, **attrs: Any) -> list[str]:
    """com.microsoft::Attention on [2, 5, 6]; its weights are `w` and `b`."""
    columns = 2 * HIDDEN + size
    weights = b.weight(6, columns, name="w", fan=6), b.weight(columns, name="b")
    made = b.ops(
        f"{MS}Attention", b.input("x", 2, TOKENS, 6), *weights, *rest, outputs=outputs, num_heads=HEADS, **attrs
    )
    b.declare(made[0], 2, TOKENS, size)
    return made


def test_values_of_another_width() -> None:
    b = builder()
    (y,) = self_attention(b, size=12, qkv_hidden_sizes=[HIDDEN, HIDDEN, 12])
    result = prove(b.model(out(b, y, 12)))
    assert result.choices("w", 1) == result.choices("b") == result.choices("out") == [HEADS]
    sizes = next(a.ints for a in result.model.graph.node[0].attribute if a.name == "qkv_hidden_sizes")
    assert list(sizes) == [16, 16, 6]


@pytest.mark.parametrize("mask", ["none", "lengths", "tokens", "square"])
def test_masks(mask: str) -> None:
    shapes = {"none": (), "lengths": (2,), "tokens": (2, TOKENS), "square": (2, TOKENS, TOKENS)}
    b = builder()
    values: Any = np.ones(shapes[mask], np.int32) * (3 if mask == "lengths" else 1)
    (y,) = self_attention(b, *([] if mask == "none" else [values]), unidirectional=int(mask != "lengths"))
    assert prove(b.model(out(b, y))).choices("w", 1) == [HEADS]


def test_the_cache_of_self_attention() -> None:
    """GPT-2: past and present are [2, B, heads, T, D]."""
    b = builder()
    past = b.weight(2, 2, HEADS, PAST, WIDTH, name="past")
    y, present = self_attention(b, None, past, outputs=2, unidirectional=1)
    b.declare(present, 2, 2, HEADS, PAST + TOKENS, WIDTH)
    read = b.op("ReduceMax", b.op("Gather", present, b.const(1)), axes=[2, 3], keepdims=0)
    y = b.op("Add", out(b, y), b.op("Reshape", b.op("MatMul", read, b.weight(HEADS, 6, name="r")), [2, 1, 6]))
    result = prove(b.model(y))
    assert result.choices("w", 1) == result.choices("past", 2) == result.choices("r") == [HEADS]


def test_what_is_attended_to_is_zero_where_the_values_are() -> None:
    """A sum over the heads does not miss a removed one."""
    b = builder()
    (y,) = self_attention(b)
    assert prove(b.model(b.op("ReduceSum", y, [2]))).choices("w", 1) == [HEADS]


@pytest.mark.parametrize("columns", [False, True], ids=["one scale", "a scale for each column"])
def test_quantised_attention(columns: bool) -> None:
    b = builder()
    x = b.op("MatMul", b.input("x", 2, TOKENS, 3), b.weight(3, 6, name="w1", fan=3))
    x = b.op("QuantizeLinear", x, 0.02, np.array(128, np.uint8))
    w = b.const(b.rng.integers(-127, 128, (6, 3 * HIDDEN)).astype(np.int8), "w")
    scale = b.near_one(*([3 * HIDDEN] if columns else []), name="scale")
    bias, point = b.weight(3 * HIDDEN, name="b"), np.zeros([3 * HIDDEN] if columns else (), np.int8)
    b.graph.node.add(op_type="Mul", input=[scale, b.const(0.005)], output=["fine"])
    rest: list[Any] = [0.02, "fine", None, np.array(128, np.uint8), point]
    y = b.op(f"{MS}QAttention", x, w, bias, *rest, num_heads=HEADS)
    result = prove(b.model(out(b, y)))
    assert result.choices("w", 1) == result.choices("b") == result.choices("out") == [HEADS]
    assert result.choices("w1", 1) == result.choices("w") == [6]
    assert heads_left(result, "QAttention") == 2


def test_grouped_queries_with_sinks_and_a_cache() -> None:
    b = builder()
    x, before = b.input("x", 1, TOKENS, 6), b.input("before", 1, PAST, 6)
    q, k, v = project(b, x, "q"), project(b, x, "k", 2 * WIDTH), project(b, x, "v", 2 * WIDTH)
    past = [
        b.op("Transpose", b.op("Reshape", project(b, before, name, 2 * WIDTH), [1, PAST, 2, WIDTH]), perm=[0, 2, 1, 3])
        for name in ("pk", "pv")
    ]
    total = TOKENS + PAST
    counts = b.const(np.full(1, total - 1, np.int32)), np.array(total, np.int32)
    bias = b.weight(1, HEADS, TOKENS, total, name="scores")
    rest = [*past, *counts, None, None, None, bias, b.weight(HEADS, name="sink")]
    outputs = b.ops(f"{MS}GroupQueryAttention", q, k, v, *rest, outputs=3, num_heads=HEADS, kv_num_heads=2)
    for name in outputs[1:]:
        b.declare(name, 1, 2, total, WIDTH)
    result = prove(b.model(b.op("MatMul", b.declare(outputs[0], 1, TOKENS, HIDDEN), b.weight(HIDDEN, 6))))
    assert result.choices("q", 1) == result.choices("k", 1) == result.choices("pv", 1) == [2]
    assert result.choices("scores", 1) == result.choices("sink") == [2]
    assert result.shape("scores") == (1, 2, TOKENS, total)


def test_rotation_without_a_number_of_heads() -> None:
    """ONNX Runtime reads it off the angles."""
    b = builder()
    x = b.input("x", 2, TOKENS, 6)
    q, k, v = (project(b, x, name) for name in "qkv")
    angles = b.rng.uniform(0, 3, (TOKENS, WIDTH // 2)).astype(np.float32)
    rest = b.const(np.zeros(1, np.int64)), b.const(np.cos(angles)), b.const(np.sin(angles))
    q, k = (b.declare(b.op(f"{MS}RotaryEmbedding", y, *rest), 2, TOKENS, HIDDEN) for y in (q, k))
    result = prove(b.model(out(b, b.op(f"{MS}MultiHeadAttention", q, k, v, num_heads=HEADS))))
    assert result.choices("q", 1) == result.choices("v", 1) == [HEADS]
