"""Fused attention: whole heads go, with the rows and columns that belong to them in everything that they touch.

With grouped queries the unit is a key-value head and all query heads that read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.rules.base import (
    Constraint,
    Dim,
    Edit,
    Kept,
    Linear,
    Lock,
    NodeView,
    SetAttr,
    Tie,
    Unknown,
    fixup,
    linear,
    rule,
    size_of,
)

MS = "com.microsoft::"
SEQUENCE = "attention runs over the axis"
INSIDE = "whole heads are cut"


@dataclass(frozen=True)
class Heads:
    """Query heads along `hub`, `repeat` of them to a key-value head, each of some width."""

    hub: Dim
    size: int
    queries: int
    repeat: int

    def tie(self, dim: Dim, heads: int, size: int, start: int = 0) -> Tie:
        """Tie `size` indices of a dim that hold `heads` heads side by side, from index `start` on."""
        width = self.size // self.queries
        head = np.arange(size) // (size // heads) * (self.queries // heads)
        return Tie(dim, self.hub, start + np.arange(size), head // self.repeat * self.repeat * width)


def _heads(n: NodeView, hub: Dim, size: int, queries: int, keys: int) -> Heads:
    if not queries or not keys or queries % keys or size % queries:
        raise Unknown("the numbers of heads do not divide its sizes")
    return Heads(hub, size, queries, queries // keys)


def _last(n: NodeView, slot: int) -> int:
    return size_of(n.shape(slot)[-1], f"input {slot}")


def _outer(n: NodeView, slots: tuple[int, ...]) -> Iterator[Constraint]:
    """Batch and sequence axes."""
    for slot in slots:
        if n.has(slot):
            yield Tie(n.x(slot, 0), n.y(0))
            for dim in n.xs(slot)[1:-1]:
                yield Lock(dim, SEQUENCE)
    for dim in n.ys()[1:-1]:
        yield Lock(dim, SEQUENCE)


def _head_axis(n: NodeView, heads: Heads, dim: Dim, size: int | str | None, count: int) -> Iterator[Constraint]:
    """An axis with one index a head: a cache, or a bias per head."""
    if size == count:
        yield heads.tie(dim, count, count)


def _bias_heads(n: NodeView, heads: Heads, slot: int, count: int) -> Iterator[Constraint]:
    """A mask or bias that broadcasts against [B, heads, S, T]."""
    rank = len(n.shape(slot))
    if rank >= 3:
        yield from _head_axis(n, heads, n.x(slot, rank - 3), n.shape(slot)[rank - 3], count)


def _caches(
    n: NodeView, heads: Heads, keys: int, inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> Iterator[Constraint]:
    for slot in inputs:
        if n.has(slot) and len(n.shape(slot)) == 4:
            yield from _head_axis(n, heads, n.x(slot, 1), n.shape(slot)[1], keys)
    for slot in outputs:
        if slot < len(n.node.outputs) and n.node.outputs[slot] and len(n.out_shape(slot)) == 4:
            yield from _head_axis(n, heads, n.y(1, slot), n.out_shape(slot)[1], keys)


@rule(f"{MS}MultiHeadAttention")
def multi_head_attention(n: NodeView) -> Iterator[Constraint]:
    """Q [B, S, H*D], K [B, L, H*D], V [B, L, H*E] -> Y [B, S, H*E]; bias [2*H*D + H*E]."""
    if not (n.has(1) and n.has(2)) or any(len(n.shape(s)) != 3 for s in range(3)):
        raise Unknown("packed keys and values")
    if any(n.has(slot) for slot in range(8, len(n.node.inputs))):
        raise Unknown("decoding inputs that the rule does not know")
    count = n.attrs["num_heads"]
    heads = _heads(n, n.x(0, 2), _last(n, 0), count, count)
    yield from _outer(n, (0, 1, 2))
    for slot in range(3):
        yield heads.tie(n.x(slot, 2), count, _last(n, slot))
    yield heads.tie(n.y(2), count, _last(n, 2))
    if n.has(3):
        start = 0
        for slot in range(3):
            yield heads.tie(n.x(3, 0), count, _last(n, slot), start)
            start += _last(n, slot)
    if n.has(5):
        yield from _bias_heads(n, heads, 5, count)
    yield from _caches(n, heads, count, (6, 7), (1, 2))


@rule(f"{MS}GroupQueryAttention")
def group_query_attention(n: NodeView) -> Iterator[Constraint]:
    """Q [B, S, H*D], K and V [B, S, G*D] (or all in Q) -> Y [B, S, H*D], caches [B, G, T, D]."""
    if any(n.has(slot) for slot in range(9, len(n.node.inputs))):
        raise Unknown("inputs that the rule does not know")
    queries, keys = n.attrs["num_heads"], n.attrs["kv_num_heads"]
    size = size_of(n.out_shape()[-1], "the output")
    heads = _heads(n, n.y(2), size, queries, keys)
    yield from _outer(n, (0, 1, 2))
    yield heads.tie(n.y(2), queries, size)
    yield heads.tie(n.x(0, 2), queries, size)
    width = size // queries * keys
    for part in (1, 2):
        if n.has(part):
            yield heads.tie(n.x(part, 2), keys, width)
        else:
            yield heads.tie(n.x(0, 2), keys, width, size + (part - 1) * width)
    yield from _caches(n, heads, keys, (3, 4), (1, 2))


@rule(f"{MS}Attention")
def attention(n: NodeView) -> Iterator[Constraint]:
    """X [B, S, I], W [I, 3*H*D], bias [3*H*D] -> Y [B, S, H*D]."""
    if n.attrs.get("qkv_hidden_sizes") or n.has(4):
        raise Unknown("heads of different widths, or a packed cache")
    count, size = n.attrs["num_heads"], size_of(n.out_shape()[-1], "the output")
    heads = _heads(n, n.y(2), size, count, count)
    yield from _outer(n, (0,))
    yield Tie(n.x(0, 2), n.x(1, 0))
    yield heads.tie(n.y(2), count, size)
    for part in range(3):
        yield heads.tie(n.x(1, 1), count, size, part * size)
        if n.has(2):
            yield heads.tie(n.x(2, 0), count, size, part * size)
    if n.has(5):
        yield from _bias_heads(n, heads, 5, count)
    if 1 in n.outputs():  # keys and values [2, B, H, T, D]
        yield from _head_axis(n, heads, n.y(2, 1), n.out_shape(1)[2], count)


@linear(f"{MS}Attention")
def attention_linear(n: NodeView) -> Linear:
    """MACs of the projections."""
    rows = [s for s in n.shape(0)[:2] if isinstance(s, int)]
    return Linear(n.x(0, 2), n.x(1, 0), n.x(1, 1), n.y(2), (n.x(1, 0), n.x(1, 1)), float(np.prod(rows)), bias=None)


@fixup(f"{MS}MultiHeadAttention", f"{MS}GroupQueryAttention", f"{MS}Attention")
def heads_left(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The numbers of heads that remain."""
    before = size_of(n.out_shape()[-1], "the output")
    after = kept(n.y(2)).size
    for name in ("num_heads", "kv_num_heads"):
        if name in n.attrs and after != before:
            yield SetAttr(name, n.attrs[name] * after // before)


@rule("Attention")
def onnx_attention(n: NodeView) -> Iterator[Constraint]:
    """ONNX's own (opset 23): Q, K, V as [B, heads, S, D], or as [B, S, heads*D] with the numbers of heads."""
    if len(n.shape(0)) == 4:
        queries, keys = (size_of(n.shape(s)[1], "the heads") for s in (0, 1))
        heads = _heads(n, n.x(0, 1), queries, queries, keys)
        yield Tie(n.x(0, 0), n.y(0))
        for slot, count in ((0, queries), (1, keys), (2, keys)):
            yield heads.tie(n.x(slot, 1), count, count)
            yield Tie(n.x(slot, 0), n.y(0))
            yield Lock(n.x(slot, 2), SEQUENCE)
        for slot in (0, 1):
            yield Lock(n.x(slot, 3), INSIDE)
        yield heads.tie(n.y(1), queries, queries)
        yield Lock(n.y(2), SEQUENCE)
        yield Tie(n.x(2, 3), n.y(3))
        if n.has(5) or 2 in n.outputs():
            yield Lock(n.x(2, 3), "the cache of values has the same width")
    else:
        queries, keys = n.attrs["q_num_heads"], n.attrs["kv_num_heads"]
        heads = _heads(n, n.x(0, 2), _last(n, 0), queries, keys)
        yield from _outer(n, (0, 1, 2))
        for slot, count in ((0, queries), (1, keys), (2, keys)):
            yield heads.tie(n.x(slot, 2), count, _last(n, slot))
        yield heads.tie(n.y(2), queries, size_of(n.out_shape()[2], "the output"))
    if n.has(3):
        yield from _bias_heads(n, heads, 3, queries)
    yield from _caches(n, heads, keys, (4, 5), (1, 2))
    yield from _caches(n, heads, queries, (), (3,))


@fixup("Attention")
def onnx_heads_left(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The numbers of heads that remain, where they are attributes."""
    if len(n.shape(0)) == 4:
        return
    before, after = _last(n, 0), kept(n.x(0, 2)).size
    for name in ("q_num_heads", "kv_num_heads"):
        if after != before:
            yield SetAttr(name, n.attrs[name] * after // before)


@rule(f"{MS}RotaryEmbedding", "RotaryEmbedding")
def rotary(n: NodeView) -> Iterator[Constraint]:
    """Pairs inside a head are rotated: whole heads pass. X [B, heads, S, D] or [B, S, heads*D]."""
    x, y = n.xs(0), n.ys()
    for dim in (*(d for slot in range(1, len(n.node.inputs)) if n.has(slot) for d in n.xs(slot)),):
        yield Lock(dim, "positions and angles")
    yield Tie(x[0], y[0])
    if len(x) == 4:
        yield Tie(x[1], y[1])
        yield Tie(x[2], y[2])
        yield Lock(x[3], INSIDE)
        yield Lock(y[3], INSIDE)
        return
    count = n.attrs.get("num_heads", 0)
    size = _last(n, 0)
    if not count or size % count:
        raise Unknown("the number of heads is not said")
    heads = _heads(n, x[2], size, count, count)
    yield Tie(x[1], y[1])
    yield Tie(x[2], y[2])
    yield heads.tie(x[2], count, size)


@fixup(f"{MS}RotaryEmbedding", "RotaryEmbedding")
def rotary_heads(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The number of heads that remain."""
    if len(n.shape(0)) == 3 and (after := kept(n.x(0, 2)).size) != _last(n, 0):
        yield SetAttr("num_heads", n.attrs["num_heads"] * after // _last(n, 0))
