"""Attention, written out in the ways of many models."""

from __future__ import annotations

import numpy as np

from onnxprune.testing.builder import Operand
from tools.networks.grower import Grower, step
from tools.networks.pointwise import bumped, smooth


def scored(g: Grower, q: str, k: str, places: int | None) -> str:
    """softmax(q kT), with a scale and perhaps a mask or a bias; q and k are [B, H, S, D]."""
    heads, width = g.shape(q)[1], g.shape(q)[3]
    way = g.pick("before", "after", "both", "divide")
    if way in ("before", "both"):
        q = g.op("Mul", q, g.pick(0.5, float(width**-0.5)))
    if way == "both":
        k = g.op("Mul", k, 0.5)
    y = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    if way in ("after", "divide"):
        y = g.op("Mul", y, float(width**-0.5)) if way == "after" else g.op("Div", y, float(width**0.5))
    if places and g.chance(0.5):
        s, t = g.shape(y)[2:]
        forms = [(heads, s, t), (1, heads, s, t), (1, 1, s, t), (s, t), (heads, 1, 1), (1, heads, 1, t)]
        form = g.random.choice(forms)
        bias = g.weight(*form, fan=1)
        if g.chance(0.3) and s == t and len(form) == 2:
            bias = g.const(np.where(np.tri(s), 0, -1e4).astype(np.float32))
        elif g.chance(0.3) and form == (heads, s, t):  # relative positions: a table, its rows chosen and turned round
            table = g.weight(2 * max(s, t), heads, fan=1)
            index = g.const(g.rng.integers(0, 2 * max(s, t), s * t).astype(np.int64))
            rows = g.op("Reshape", g.op("Gather", table, index, axis=0), [s, t, heads])
            bias = g.op("Transpose", rows, perm=[2, 0, 1])
        y = g.op("Add", y, bias)
    return g.op("Softmax", y, axis=g.pick(-1, 3) if g.opset >= 13 else 3)


def rotated(g: Grower, x: str) -> str:
    """Rotary positions over [B, H, S, D]: halves by Slice or Split, or neighbours by a reshape."""
    _, _, s, d = g.shape(x)
    cos, sin = (g.const(f(g.rng.uniform(0, 3, (s, d))).astype(np.float32)) for f in (np.cos, np.sin))
    way = g.pick("slice", "split", "pairs")
    if way == "slice":
        left, right = g.slice(x, 3, 0, d // 2), g.slice(x, 3, d // 2, 2**40)
        turned = g.op("Concat", g.op("Neg", right), left, axis=3)
    elif way == "split":
        left, right = g.split(x, 3, d // 2, d // 2)
        turned = g.op("Concat", g.op("Neg", right), left, axis=3)
    else:
        b, h, s_, _ = g.sizes(x)
        pairs = g.reshape(x, b, h, s_, d // 2, 2)
        left, right = g.slice(pairs, 4, 0, 1), g.slice(pairs, 4, 1, 2)
        turned = g.reshape(g.op("Concat", g.op("Neg", right), left, axis=4), b, h, s_, d)
    return g.op("Add", g.op("Mul", x, cos), g.op("Mul", turned, sin))


def repeated_heads(g: Grower, x: str, times: int) -> str:
    """Each of the heads of [B, G, S, D], `times` in a row, as grouped queries need it."""
    b, groups, s, d = g.sizes(x)
    number = g.shape(x)[1]
    way = g.pick("expand", "concat", "gather", "tile")
    if way == "gather":
        return g.op("Gather", x, g.const(np.repeat(np.arange(number), times)), axis=1)
    y = g.unsqueeze(x, 2)
    if way == "expand":
        y = g.expand(y, b, g.pick(number, groups), times, g.pick(s, s), g.pick(d, g.shape(x)[3]))
    elif way == "concat":
        y = g.op("Concat", *[y] * times, axis=2)
    else:
        y = g.op("Tile", y, [1, 1, times, 1, 1])
    return g.reshape(y, b, g.pick(number * times, groups * times), s, d)


def packed(g: Grower, x: str, heads: int, width: int) -> list[str]:
    """Queries, keys and values out of one layer, cut apart in one of several orders."""
    b, s, _ = g.sizes(x)
    y = g.linear(x, 3 * heads * width)
    way = g.pick("split", "first", "interleaved", "slices")
    if way == "split":
        return [g.split_heads(part, heads) for part in g.split(y, 2, *[heads * width] * 3)]
    if way == "slices":
        size = heads * width
        return [g.split_heads(g.slice(y, 2, i * size, (i + 1) * size), heads) for i in range(3)]
    if way == "first":
        y = g.op("Transpose", g.reshape(y, b, s, 3, heads, width), perm=[2, 0, 3, 1, 4])
        if g.chance(0.5):
            return [g.op("Gather", y, g.const(np.int64(i)), axis=0) for i in range(3)]
        return [g.squeeze(part, 0) for part in g.split(y, 0, 1, 1, 1)]
    y = g.op("Transpose", g.reshape(y, b, s, heads, 3 * width), perm=[0, 2, 1, 3])
    return g.split(y, 3, width, width, width)


def normalised(g: Grower, x: str) -> str:
    """Queries or keys over the length of each, or a norm inside each head."""
    kind = g.pick("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization", "")
    width = g.shape(x)[3]
    if kind == "LpNormalization":
        return g.op(kind, x, axis=3, p=2)
    if kind == "SimplifiedLayerNormalization" and "fused" in g.tags:
        return g.like(g.op(kind, x, g.near_one(width), axis=-1, epsilon=0.1), x)
    if kind and g.opset >= (23 if kind.startswith("RMS") else 17) and not kind.startswith("Simpl"):
        return g.op(kind, x, g.near_one(width), axis=-1, epsilon=0.1)
    return g.op("Div", x, g.op("Max", g.reduce("ReduceL2", x, [3]), 0.1))


@step(8, "tokens", since=11)
def attention(g: Grower, x: str) -> str:
    """Self or cross attention with heads packed or apart, grouped queries, rotary positions, norms of queries."""
    heads, width, repeat = g.pick(1, 2, 2, 3, 4, 4), g.pick(1, 2, 2, 4, 4), 1
    other = g.fitting(lambda v: g.pairs(v)[0] == g.pairs(x)[0], "tokens") if g.chance(0.2) else None
    if g.chance(0.4) and not other:
        q, k, v = packed(g, x, heads, width)
    else:
        source, repeat = other or x, g.pick(1, 1, 2, 3)
        q = g.split_heads(g.linear(x, heads * repeat * width), heads * repeat)
        k = g.split_heads(g.linear(source, heads * width), heads)
        v = g.split_heads(g.linear(source, heads * width) if g.chance(0.9) else g.linear(source, heads * 2), heads)
    places = g.fixed(x, 1) and g.fixed(k, 2)
    if places and width % 2 == 0 and g.chance(0.3):
        q, k = rotated(g, q), rotated(g, k)
    if g.chance(0.2):
        q, k = normalised(g, q), normalised(g, k)
    if repeat > 1:
        k, v = repeated_heads(g, k, repeat), repeated_heads(g, v, repeat)
    y = g.op("MatMul", scored(g, q, k, int(places)), v)
    if g.chance(0.1):  # a gate for each head
        y = g.op("Mul", y, g.near_one(heads * repeat, 1, 1))
    y = g.linear(g.merge_heads(y), g.channels(x))
    return g.op("Add", x, y) if g.chance(0.7) else y


@step(2, "tokens", since=12)
def attention_by_einsum(g: Grower, x: str) -> str:
    heads, width = g.pick(1, 2, 3, 4), g.pick(1, 2, 4)
    c = g.channels(x)
    b, s, _ = g.sizes(x)
    if g.chance(0.5):
        q, k, v = (g.reshape(g.linear(x, heads * width), b, s, heads, width) for _ in range(3))
    else:
        w = [g.weight(c, heads, width, fan=c) for _ in range(3)]
        q, k, v = (g.op("Einsum", x, m, equation="bsc,chd->bshd") for m in w)
    y = g.op("Einsum", q, k, equation="bqhd,bkhd->bhqk")
    y = g.op("Softmax", g.op("Mul", y, 0.4), axis=3)
    y = g.op("Einsum", y, v, equation=g.pick("bhqk,bkhd->bqhd", "bhqk, bkhd -> bqhd"))
    if g.chance(0.5):
        return g.op("Add", x, g.op("Einsum", y, g.weight(heads, width, c, fan=heads * width), equation="bqhd,hdc->bqc"))
    return g.op("Add", x, g.linear(g.reshape(y, b, s, heads * width), c))


@step(2, "tokens", since=11)
def linear_attention(g: Grower, x: str) -> str:
    """q (kT v): keys and values are multiplied first, over the positions."""
    heads, width = g.pick(1, 2, 4), g.pick(1, 2, 4)
    q, k, v = (g.split_heads(g.linear(x, heads * width), heads) for _ in range(3))
    feature = g.pick("Relu", "Sigmoid", "Elu", "Softmax")
    q, k = (g.op(feature, y) for y in (q, k))
    if feature == "Elu" and g.chance(0.7):
        q, k = (g.op("Add", y, 1.0) for y in (q, k))
    y = g.op("MatMul", q, g.op("Mul", g.op("MatMul", g.op("Transpose", k, perm=[0, 1, 3, 2]), v), 0.2))
    return g.op("Add", x, g.linear(g.merge_heads(y), g.channels(x)))


@step(2, "map", since=11)
def attention_over_places(g: Grower, x: str) -> str:
    """Heads cut from the channels of a map."""
    n, _, h, w = g.sizes(x)
    heads, width = g.pick(1, 2, 3), g.pick(1, 2, 4)

    def project() -> str:
        return g.reshape(g.conv(x, heads * width, 1), n, heads, width, h * w)

    q, k, v = project(), project(), project()
    scores = g.op("MatMul", g.op("Transpose", q, perm=[0, 1, 3, 2]), k)
    scores = g.op("Softmax", g.op("Mul", scores, 0.3), axis=3)
    y = g.op("MatMul", v, g.op("Transpose", scores, perm=[0, 1, 3, 2]) if g.chance(0.7) else scores)
    return g.op("Add", x, g.conv(g.reshape(y, n, heads * width, h, w), g.channels(x), 1))


@step(2, "map", "line", "tokens", since=12)
def contraction(g: Grower, x: str) -> str | None:
    """Of two computed tensors, over the channels or over the places."""
    y = x
    if g.kind == "map":
        n, c, h, w = g.sizes(x)
        y = g.reshape(x, n, c, h * w)
    elif g.kind == "tokens":
        y = g.op("Transpose", x, perm=[0, 2, 1])
    a, b = (smooth(g, y) if g.chance(share) else y for share in (0.7, 0.3))
    if g.chance(0.25):
        a, b = bumped(g, y), bumped(g, y)
    way = g.pick("channels", "einsum", "places", "weights")
    turned: Operand = g.op("Transpose", a, perm=[0, 2, 1])
    if way == "places":  # the channels come out twice
        z = g.op("MatMul", g.op("Tanh", g.op("Mul", g.op("MatMul", b, turned), 0.1)), b)
    elif way == "weights":
        z = g.op("Einsum", g.weight(g.shape(y)[1], g.shape(y)[1]), b, equation=g.pick("oc,ncp->nop", "co,ncp->nop"))
    else:
        scores = g.op("MatMul", turned, b) if way == "channels" else g.op("Einsum", a, b, equation="ncp,ncq->npq")
        scores = g.op("Mul", scores, 0.2)
        if g.chance(0.5):  # which does not see what is added to all of them
            scores = g.op("Softmax", scores, axis=g.pick(1, 2) if g.opset >= 13 else 2)
        else:
            scores = g.op(g.pick("Sigmoid", "Tanh"), scores)
        z = g.op("MatMul", b, scores)
    if g.kind == "tokens":
        z = g.op("Transpose", z, perm=[0, 2, 1])
    elif g.kind == "map":
        z = g.reshape(z, *g.sizes(x))
    return g.op("Add", x, g.op("Mul", z, 0.3))


@step(2, "heads", since=11)
def between_heads(g: Grower, x: str) -> str | None:
    """Heads attend to themselves as they are, or are mixed by a matrix."""
    if g.chance(0.4):
        heads = g.shape(x)[1]
        y = g.op("Transpose", x, perm=[0, 2, 3, 1])
        return g.op("Transpose", g.linear(y, heads), perm=[0, 3, 1, 2])
    other = g.alike(x) or x
    return g.op("MatMul", scored(g, x, other, int(g.fixed(x))), g.op("Tanh", other))
