"""ONNX's own Attention and RotaryEmbedding (opset 23 on): whole heads go."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import (
    Constraint,
    Edit,
    Kept,
    Lock,
    NodeView,
    SetAttr,
    Tie,
    Unknown,
    fixup,
    keeps_zero,
    rule,
    size_of,
)
from onnxprune.rules.heads import INSIDE, Heads, attends, caches, heads_of, last, remaining, same_batch, scores

MS = "com.microsoft::"

# What is attended to is a sum of values: zero where they are.
keeps_zero("all", "Attention", slots=(2, 5))
keeps_zero("all", "RotaryEmbedding", f"{MS}RotaryEmbedding", slots=(0,))


@rule("Attention")
@attends
def attention(n: NodeView) -> Iterator[Constraint]:
    """Q, K, V as [B, heads, S, D], or as [B, S, heads*D] with the numbers of heads; caches [B, heads, S, D]."""
    if len(n.shape(0)) == 4:
        queries, keys = (size_of(n.shape(s)[1], "the heads") for s in (0, 1))
        heads = heads_of(n.y(1), queries, queries, keys)
        yield from _apart(n, queries, keys)
        yield from _values(n)
    else:
        queries, keys = n.attrs["q_num_heads"], n.attrs["kv_num_heads"]
        size = size_of(n.out_shape()[2], "the output")
        heads = heads_of(n.y(2), size, queries, keys)
        yield heads.tie(n.y(2), queries, size)
        for slot, count in ((0, queries), (1, keys), (2, keys)):
            yield heads.tie(n.x(slot, 2), count, last(n, slot))
    yield from same_batch(n, (0, 1, 2))
    yield from scores(n, heads, 3, queries)
    yield from caches(n, heads, keys, (4, 5), (1, 2))
    yield from caches(n, heads, queries, (), (3,))


def _apart(n: NodeView, queries: int, keys: int) -> Iterator[Constraint]:
    """Heads along an axis of their own."""
    heads = heads_of(n.y(1), queries, queries, keys)
    yield heads.tie(n.y(1), queries, queries)
    for slot, count in ((0, queries), (1, keys), (2, keys)):
        yield heads.tie(n.x(slot, 1), count, count)
    for slot in (0, 1):
        yield Lock(n.x(slot, 3), INSIDE)


def _values(n: NodeView) -> Iterator[Constraint]:
    """What a value holds passes, through the cache too."""
    yield Tie(n.x(2, 3), n.y(3))
    if n.has(5):
        yield Tie(n.x(2, 3), n.x(5, 3))
    if 2 in n.outputs():
        yield Tie(n.x(2, 3), n.y(3, 2))


@fixup("Attention")
def attention_heads(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The numbers of heads that remain, where they are attributes."""
    if len(n.shape(0)) == 3:
        yield from remaining(n, kept, "q_num_heads", "kv_num_heads")


@rule(f"{MS}RotaryEmbedding", "RotaryEmbedding")
def rotary(n: NodeView) -> Iterator[Constraint]:
    """Pairs inside a head are rotated: whole heads pass. X [B, heads, S, D] or [B, S, heads*D]."""
    x, y = n.xs(0), n.ys()
    for dim in (d for slot in range(1, len(n.node.inputs)) if n.has(slot) for d in n.xs(slot)):
        yield Lock(dim, "positions and angles")
    if len(x) == 4:
        yield Tie(x[1], y[1])
        yield Lock(x[3], INSIDE)
        yield Lock(y[3], INSIDE)
    else:
        size = last(n, 0)
        heads = Heads(x[2], size, _count(n, size), 1)
        yield Tie(x[2], y[2])
        yield heads.tie(x[2], heads.queries, size)
    for axis in (0, 2) if len(x) == 4 else (0, 1):  # positions may have these axes, too
        yield Lock(x[axis], "the axis has positions")
        yield Lock(y[axis], "the axis has positions")


def _count(n: NodeView, size: int) -> int:
    """The number of heads; ONNX Runtime reads it off the angles where the node does not say it."""
    count = int(n.attrs.get("num_heads", 0))
    if not count and n.node.domain and not n.attrs.get("rotary_embedding_dim", 0):
        count = size // (2 * last(n, 2))
    if not count or size % count:
        raise Unknown("the number of heads is not said")
    return count


@fixup(f"{MS}RotaryEmbedding", "RotaryEmbedding")
def rotary_heads(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The number of heads that remain."""
    before = n.attrs.get("num_heads", 0)
    if len(n.shape(0)) == 3 and before and (after := kept(n.x(0, 2)).size) != last(n, 0):
        yield SetAttr("num_heads", before * after // last(n, 0))
