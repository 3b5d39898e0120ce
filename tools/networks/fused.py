"""Steps with fused operators, of ONNX and of ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.testing.builder import Operand
from tools.networks.grower import Grower, step
from tools.networks.pointwise import bumped, smooth
from tools.networks.sizes import symbol

MS = "com.microsoft::"


@step(3, "tokens", "flat", "heads", "sequence", tag="fused")
def gelus(g: Grower, x: str) -> str:
    kind = g.pick("Gelu", "QuickGelu", "FastGelu", "BiasGelu")
    bias = kind == "BiasGelu" or (kind == "FastGelu" and g.chance(0.5))
    return g.like(g.op(MS + kind, x, *([g.weight(g.shape(x)[-1], fan=1)] if bias else [])), x)


@step(3, "map", tag="fused")
def convolutions(g: Grower, x: str) -> str:
    channels, activation = g.channels(x), g.pick("Relu", "Sigmoid", "LeakyRelu", "Tanh")
    groups = g.pick(1, g.divisor(channels, 1) or 1)
    out = channels if g.chance(0.5) else groups * g.pick(1, 2, 3)
    attrs: dict[str, Any] = {"activation_params": [0.1]} if activation == "LeakyRelu" else {}
    w, bias = g.weight(out, channels // groups, 1, 1), g.weight(out)
    added = g.fitting(lambda v: g.pairs(v) == (*g.pairs(x)[:1], (out, out), *g.pairs(x)[2:])) if g.chance(0.3) else None
    if added:
        attrs, activation = {}, "Relu"
    y = g.op(f"{MS}FusedConv", x, w, bias, *([added] if added else []), group=groups, activation=activation, **attrs)
    return g.like(y, x, a1=out)


@step(3, "tokens", tag="fused")
def products(g: Grower, x: str) -> str:
    """FusedMatMul with a weight, or of a value with itself."""
    c, trans = g.channels(x), g.random.randrange(2)
    if g.chance(0.6):
        out = g.width()
        w = g.weight(*((out, c) if trans else (c, out)), fan=c)
        kind = g.pick("FusedMatMul", "FusedMatMul", "TransposeMatMul")
        return g.like(g.op(MS + kind, x, w, transB=trans, alpha=0.5), x, a2=out)
    if g.chance(0.5):  # over the channels
        a, b = (bumped(g, x), bumped(g, x)) if g.chance(0.4) else (smooth(g, x), x)
        scores = g.op(f"{MS}FusedMatMul", a, b, transB=1, alpha=0.3)
        (n, s, _), weights = g.pairs(x), g.op(g.pick("Sigmoid", "Tanh"), scores)
        g.declare(scores, symbol(n), symbol(s), symbol(s))
        return g.like(g.op(f"{MS}FusedMatMul", weights, x), x)
    gram = g.op(f"{MS}FusedMatMul", x, g.op("Relu", x), transA=1, alpha=0.2)
    return g.like(g.op(f"{MS}FusedMatMul", x, g.op("Tanh", g.declare(gram, *square(g, x, c)))), x)


def square(g: Grower, x: str, c: int) -> list[int | str]:
    """[B, C, C], as it is declared."""
    return [symbol(g.pairs(x)[0]), c, c]


@step(3, "tokens", tag="fused")
def norms(g: Grower, x: str) -> str:
    """Norms with and without a sum before them; the sum itself may be read, too."""
    c = g.channels(x)
    if g.chance(0.2):
        return g.like(g.op("SimplifiedLayerNormalization", x, g.near_one(c), axis=-1, epsilon=0.1), x)
    kind = g.pick("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    skip = g.alike(x) or g.op("Tanh", x)
    rest: list[Operand] = [g.near_one(c)]
    if kind == "SkipLayerNormalization":
        rest.append(g.weight(c))
    if g.chance(0.4):
        rest.append(g.weight(c))
    if g.chance(0.5):
        return g.like(g.op(MS + kind, x, skip, *rest, epsilon=0.1), x)
    names = [f"norm{len(g.graph.node)}_{i}" for i in range(4)]
    g.ops(MS + kind, x, skip, *rest, outputs=[names[0], "", "", names[3]], epsilon=0.1)
    return g.op("Add", g.like(names[0], x), g.like(names[3], x))


def projections(g: Grower, x: str, *counts: int) -> list[str]:
    """A layer for each of several widths."""
    return [g.linear(x, count) for count in counts]


@step(4, "tokens", tag="fused")
def multi_head(g: Grower, x: str) -> str:
    heads, width = g.pick(1, 2, 3, 4), g.pick(2, 4, 8)
    wide = g.pick(width, width, 2) * heads
    q, k, v = projections(g, x, heads * width, heads * width, wide)
    rest: list[Operand] = [g.weight(2 * heads * width + wide) if g.chance(0.5) else None]
    if g.fixed(x) and g.chance(0.4):
        s = g.shape(x)[1]
        rest += [None, g.weight(1, g.pick(1, heads), s, s, fan=1)]
    if g.fixed(x) and width % 2 == 0 and g.chance(0.3):
        q, k = (turned(g, y, heads, width) for y in (q, k))
    y = g.like(g.op(f"{MS}MultiHeadAttention", q, k, v, *rest, num_heads=heads), x, a2=wide)
    return g.op("Add", x, g.linear(y, g.channels(x)))


def turned(g: Grower, x: str, heads: int, width: int) -> str:
    """com.microsoft's RotaryEmbedding on [B, S, H*D]."""
    angles = g.rng.uniform(0, 3, (g.shape(x)[1], width // 2)).astype(np.float32)
    start, cos, sin = g.const(np.zeros(1, dtype=np.int64)), g.const(np.cos(angles)), g.const(np.sin(angles))
    return g.like(g.op(f"{MS}RotaryEmbedding", x, start, cos, sin, num_heads=heads), x)


@step(2, "tokens", tag="fused")
def packed(g: Grower, x: str) -> str:
    """One weight for queries, keys and values."""
    heads, width, c = g.pick(1, 2, 4), g.pick(2, 4), g.channels(x)
    size = heads * width
    rest: list[Operand] = [g.weight(3 * size, fan=1)]
    if g.fixed(x) and g.chance(0.3):
        s = g.shape(x)[1]
        rest += [None, None, g.weight(g.shape(x)[0] if g.fixed(x, 0) else 1, heads, s, s, fan=1)]
        if not g.fixed(x, 0):
            rest = rest[:1]
    y = g.op(f"{MS}Attention", x, g.weight(c, 3 * size, fan=c), *rest, num_heads=heads)
    return g.op("Add", x, g.linear(g.like(y, x, a2=size), c))


@step(3, "tokens", tag="fused")
def grouped_queries(g: Grower, x: str) -> str | None:
    if not (g.fixed(x, 0) and g.fixed(x, 1)) or g.shape(x)[1] < 2:
        return None
    (b, s, c), width, keys = g.shape(x), 16, g.pick(1, 2)
    heads = keys * g.pick(1, 2, 3)
    if g.chance(0.5):
        parts: list[Operand] = [*projections(g, x, (heads + 2 * keys) * width), None, None]
    else:
        parts = [*projections(g, x, heads * width, keys * width, keys * width)]
    lengths = g.const(np.full(b, s - 1, dtype=np.int32))
    rest: list[Operand] = [None, None, lengths, np.array(s, dtype=np.int32)]
    attrs: dict[str, Any] = {"num_heads": heads, "kv_num_heads": keys}
    if g.chance(0.3):
        angles = g.rng.uniform(0, 3, (s, width // 2)).astype(np.float32)
        rest += [np.cos(angles), np.sin(angles)]
        attrs["do_rotary"] = 1
    y = g.op(f"{MS}GroupQueryAttention", *parts, *rest, **attrs)
    return g.op("Add", x, g.linear(g.like(y, x, a2=heads * width), c))


@step(5, "tokens", since=23)
def of_onnx(g: Grower, x: str) -> str:
    """ONNX's Attention on three or on four axes, perhaps behind its RotaryEmbedding."""
    keys, width = g.pick(1, 2, 3), g.pick(2, 4)
    heads, c, s = keys * g.pick(1, 2, 3), g.channels(x), g.shape(x)[1]
    parts = projections(g, x, heads * width, keys * width, keys * width)
    counts, rank = (heads, keys, keys), g.pick(3, 4)
    if rank == 4:
        parts = [g.split_heads(y, count) for y, count in zip(parts, counts, strict=True)]
    if g.fixed(x) and g.fixed(x, 0) and g.chance(0.4):
        angles = g.rng.uniform(0, 3, (g.shape(x)[0], s, width // 2)).astype(np.float32)
        table = g.const(np.cos(angles)), g.const(np.sin(angles))
        for i in (0, 1):
            said: dict[str, Any] = {"num_heads": counts[i]} if rank == 3 else {}
            parts[i] = g.op("RotaryEmbedding", parts[i], *table, **said)
    masks: list[list[Operand]] = [[]]
    if g.fixed(x):
        masks += [[g.weight(*shape, fan=1)] for shape in ((s, s), (heads, s, s), (1, heads, s, s))]
    attrs: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": keys} if rank == 3 else {}
    if g.chance(0.3):
        attrs["is_causal"] = 1
    y = g.op("Attention", *parts, *g.random.choice(masks), **attrs)
    y = g.like(y, x, a2=heads * width) if rank == 3 else g.merge_heads(y)
    return g.op("Add", x, g.linear(y, c))


@step(3, "tokens", "flat", tag="fused")
def four_bits(g: Grower, x: str) -> str:
    """A matrix of four bits an entry; the columns come in blocks."""
    out, blocks = g.width(), g.pick(1, 2)
    wide = 32 * blocks
    y = g.linear(x, wide)
    flat = g.chance(0.5)
    w = g.const(g.rng.integers(0, 256, (out, blocks, 16)).astype(np.uint8))
    scale = g.const(g.rng.uniform(0.01, 0.03, out * blocks if flat else (out, blocks)).astype(np.float32))
    size = (blocks + 1) // 2
    points = (
        [g.const(g.rng.integers(0, 256, out * size if flat else (out, size)).astype(np.uint8))] if g.chance(0.5) else []
    )
    y = g.op(f"{MS}MatMulNBits", y, w, scale, *points, K=wide, N=out, bits=4, block_size=32)
    return g.like(y, x, **{f"a{len(g.shape(x)) - 1}": out})


@step(3, "tokens", "flat", tag="fused")
def four_bits_in_a_row(g: Grower, x: str) -> str:
    """The same in one flat row of bytes, with a scale for each run of weights."""
    out, block = g.width(), g.pick(16, 32, 64)
    y = g.linear(x, 64)
    w = g.const(g.rng.integers(0, 256, out * 32).astype(np.uint8))
    scale = g.const(g.rng.uniform(0.2, 0.4, out * 64 // block).astype(np.float32))
    y = g.op(f"{MS}MatMulBnb4", y, w, scale, K=64, N=out, block_size=block, quant_type=g.pick(0, 1))
    return g.like(y, x, **{f"a{len(g.shape(x)) - 1}": out})


@step(3, "flat", tag="fused")
def fused_gemm(g: Grower, x: str) -> str:
    out, c, trans = g.width(), g.channels(x), g.random.randrange(2)
    w = g.weight(*((out, c) if trans else (c, out)), fan=c)
    activation = g.pick("Relu", "LeakyRelu", "Tanh", "Sigmoid")
    attrs: dict[str, Any] = {"activation_alpha": 0.1} if activation == "LeakyRelu" else {}
    return g.like(g.op(f"{MS}FusedGemm", x, w, g.weight(out), transB=trans, activation=activation, **attrs), x, a1=out)


@step(10, "tokens", "flat", tag="quant")
def integers_of_microsoft(g: Grower, x: str) -> str:
    """DynamicQuantizeMatMul and MatMulIntegerToFloat."""
    out, c = g.width(), g.channels(x)
    count = out if g.chance(0.5) else None
    w = g.const(g.rng.integers(-128, 128, (c, out)).astype(np.int8))
    scale = g.const(np.asarray(g.rng.uniform(0.004, 0.006, count), np.float32))
    points = g.const(np.asarray(g.rng.integers(-9, 9, count), np.int8))
    bias = [g.weight(out)] if g.chance(0.5) else []
    if g.chance(0.5):
        y = g.op(f"{MS}DynamicQuantizeMatMul", x, w, scale, points, *bias)
    elif g.opset >= 10:
        step_size, middle = np.float32(0.03), g.const(np.array(128, np.uint8))
        q = g.op("QuantizeLinear", x, step_size, middle)
        y = g.op(f"{MS}MatMulIntegerToFloat", q, w, step_size, scale, middle, points, *bias)
    else:
        return x
    return g.like(y, x, **{f"a{len(g.shape(x)) - 1}": out})
