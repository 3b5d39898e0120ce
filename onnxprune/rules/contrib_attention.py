"""ONNX Runtime's fused attention: whole heads go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.rules.base import (
    Constraint,
    Edit,
    Kept,
    Linear,
    Lock,
    NodeView,
    Unknown,
    fixup,
    keeps_zero,
    linear,
    rule,
    size_of,
)
from onnxprune.rules.heads import INSIDE, Heads, attends, caches, heads_of, last, remaining, same_batch, scores
from onnxprune.rules.matmul import contract

MS = "com.microsoft::"
PROJECTED = (f"{MS}Attention", f"{MS}QAttention")

# What is attended to is a sum of values: zero where they, the past ones and their bias are.
keeps_zero("all", f"{MS}MultiHeadAttention", slots=(2, 3, 7), when=lambda n: n.has(2))
keeps_zero("all", f"{MS}DecoderMaskedMultiHeadAttention", slots=(2, 6, 10), when=lambda n: n.has(2))
keeps_zero("all", f"{MS}GroupQueryAttention", slots=(2, 4), when=lambda n: n.has(2))
keeps_zero("all", f"{MS}Attention", slots=(1, 2, 4))
keeps_zero("all", f"{MS}QAttention", slots=(1, 2, 8))


@rule(f"{MS}MultiHeadAttention")
@attends
def multi_head_attention(n: NodeView) -> Iterator[Constraint]:
    """Q [B, S, H*D], K [B, L, H*D], V [B, L, H*E] -> Y [B, S, H*E]; bias [2*H*D + H*E]; see `_operand`."""
    yield from _multi_head(n, bias=3, bias_of_scores=5, past=(6, 7))


@rule(f"{MS}DecoderMaskedMultiHeadAttention")
@attends
def decoder_attention(n: NodeView) -> Iterator[Constraint]:
    """As MultiHeadAttention, for one token, with a cache."""
    if not n.has(1) and len(n.shape(0)) == 3:
        raise Unknown("queries, keys and values in one, side by side")
    yield from _multi_head(n, bias=10, bias_of_scores=4, past=(5, 6))


def _multi_head(n: NodeView, bias: int, bias_of_scores: int, past: tuple[int, int]) -> Iterator[Constraint]:
    count, size = n.attrs["num_heads"], size_of(n.out_shape()[-1], "the output")
    heads = heads_of(n.y(2), size, count, count)
    yield heads.tie(n.y(2), count, size)
    for slot in range(3):
        if n.has(slot):
            yield from _operand(n, heads, slot)
    yield from same_batch(n, (0, 1, 2))
    if n.has(bias):
        inner = last(n, 0) if len(n.shape(0)) == 3 else size
        for start, part in ((0, inner), (inner, inner), (2 * inner, size)):
            yield heads.tie(n.x(bias, 0), count, part, start)
    yield from scores(n, heads, bias_of_scores, count)
    yield from caches(n, heads, count, past, (1, 2, 3))


def _operand(n: NodeView, heads: Heads, slot: int) -> Iterator[Constraint]:
    """[B, L, H*D]; keys and values of a cross-attention [B, H, L, D]; packed [B, L, H, 2 or 3, D]."""
    rank = len(n.shape(slot))
    if rank == 3:
        yield heads.tie(n.x(slot, 2), heads.queries, last(n, slot))
        return
    axis = {4: 1, 5: 2}[rank]
    if n.shape(slot)[axis] != heads.queries:
        raise Unknown("its operands do not have as many heads as it says")
    yield heads.tie(n.x(slot, axis), heads.queries, heads.queries)
    yield Lock(n.x(slot, -1), INSIDE)


@rule(f"{MS}GroupQueryAttention")
@attends
def group_query_attention(n: NodeView) -> Iterator[Constraint]:
    """Q [B, S, H*D], K and V [B, S, G*D] (or all in Q) -> Y [B, S, H*D], caches [B, G, T, D]."""
    if any(n.has(slot) and n.shape(slot) not in ((), (1,)) for slot in (12, 13)):
        raise Unknown("a quantised cache with a scale for each channel")
    queries, keys = n.attrs["num_heads"], n.attrs["kv_num_heads"]
    size = size_of(n.out_shape()[-1], "the output")
    heads = heads_of(n.y(2), size, queries, keys)
    yield heads.tie(n.y(2), queries, size)
    yield heads.tie(n.x(0, 2), queries, size)
    width = size // queries * keys
    for part in (1, 2):
        if n.has(part):
            yield heads.tie(n.x(part, 2), keys, width)
        else:
            yield heads.tie(n.x(0, 2), keys, width, size + (part - 1) * width)
    yield from caches(n, heads, keys, (3, 4), (1, 2))
    yield from caches(n, heads, queries, (), (3,))
    yield from scores(n, heads, 10, queries)
    if n.has(11):  # sinks
        yield heads.tie(n.x(11, 0), queries, queries)


@rule(f"{MS}Attention")
@attends
def attention(n: NodeView) -> Iterator[Constraint]:
    """X [B, S, I], W [I, 2*H*D + H*E], bias -> Y [B, S, H*E], caches [2, B, H, T, D]."""
    yield from _projected(n, vectors=(2,), past=4, bias_of_scores=5)


@rule(f"{MS}QAttention")
@attends
def quantised_attention(n: NodeView) -> Iterator[Constraint]:
    """As Attention, of integers; scales and zero points of W are one for all or one for each column."""
    yield from _projected(n, vectors=(2, 4, 7), past=8)


def _projected(
    n: NodeView, vectors: tuple[int, ...], past: int, bias_of_scores: int | None = None
) -> Iterator[Constraint]:
    count, size = n.attrs["num_heads"], size_of(n.out_shape()[-1], "the output")
    heads = heads_of(n.y(2), size, count, count)
    yield from contract(n, n.x(0, 2), n.x(1, 0))
    yield heads.tie(n.y(2), count, size)
    start = 0
    for part in n.attrs.get("qkv_hidden_sizes") or [last(n, 1) // 3] * 3:
        yield heads.tie(n.x(1, 1), count, part, start)
        for slot in vectors:
            if n.has(slot) and n.shape(slot) == (last(n, 1),):
                yield heads.tie(n.x(slot, 0), count, part, start)
        start += part
    yield from caches(n, heads, count, (past,), (1,), axis=2)
    if bias_of_scores is not None:
        yield from scores(n, heads, bias_of_scores, count)


@linear(*PROJECTED)
def attention_linear(n: NodeView) -> Linear:
    """MACs of the projections."""
    rows = [s for s in n.shape(0)[:2] if isinstance(s, int)]
    return Linear(n.x(0, 2), n.x(1, 0), n.x(1, 1), n.y(2), (n.x(1, 0), n.x(1, 1)), float(np.prod(rows)), bias=None)


@fixup(
    *PROJECTED,
    f"{MS}MultiHeadAttention",
    f"{MS}DecoderMaskedMultiHeadAttention",
    f"{MS}GroupQueryAttention",
)
def heads_left(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The numbers of heads that remain."""
    yield from remaining(n, kept, "num_heads", "kv_num_heads", "qkv_hidden_sizes")
