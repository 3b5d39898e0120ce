"""Steps out of the four axes and back: reshapes, attention, contractions of computed tensors, computed weights."""

from __future__ import annotations

from tools.networks.grower import SMOOTH, Grower, step


@step(3)
def reshaped(g: Grower, x: str) -> str | None:
    """Out of the four axes and back, with something in between."""
    _, c, h, w = g.shape(x)
    kind = g.random.choice(["tokens", "merge", "maxout", "rows", "squeeze"])
    if kind == "tokens":  # attention-like: mix positions with a matrix
        y = g.op("MatMul", g.op("Reshape", x, [0, c, -1]), g.weight(h * w, h * w))
        return g.op("Reshape", g.op("Tanh", y), [0, c, h, w])
    if kind == "merge":  # through a matrix: channels and positions together
        y = g.op("Tanh", g.op("Flatten", x))
        return g.op("Reshape", y, [-1, c, h, w])
    if kind == "maxout":
        pieces = g.divisor(c)
        if not pieces:
            return None
        inner = g.random.random() < 0.5
        split = [0, c // pieces, pieces, h, w] if inner else [0, pieces, c // pieces, h, w]
        return g.reduce("ReduceMax", g.op("Reshape", x, split), [2 if inner else 1], keepdims=0)
    if kind == "rows":  # channels and rows become one axis
        y = g.op("LeakyRelu", g.op("Reshape", x, [0, c * h, w]))
        return g.op("Reshape", y, [0, c, h, w])
    y = g.op("Unsqueeze", g.op("Squeeze", g.op("GlobalMaxPool", x), [2, 3]), [-1, -2])
    return g.op("Mul", x, g.op("Sigmoid", y))


@step(2)
def attention(g: Grower, x: str) -> str | None:
    """Several heads over the positions."""
    _, c, h, w = g.shape(x)
    heads = g.divisor(c, 1)
    if not heads or h * w > 64:
        return None

    def project() -> str:
        return g.op("Reshape", g.conv(x, c, 1), [0, heads, c // heads, h * w])

    q, k, v = project(), project(), project()
    scores = g.op("MatMul", g.op("Transpose", q, perm=[0, 1, 3, 2]), k)
    y = g.op("MatMul", v, g.op("Softmax", g.op("Mul", scores, 0.3), axis=-1))
    return g.op("Add", x, g.conv(g.op("Reshape", y, [0, c, h, w]), c, 1))


@step(2)
def contraction(g: Grower, x: str) -> str | None:
    """Of two computed tensors, over the channels: exact only where zeros arrive."""
    _, c, h, w = g.shape(x)
    if h * w > 64:
        return None
    y = g.op("Reshape", g.op(g.random.choice(SMOOTH), x), [0, c, h * w])
    kind = g.random.choice(["MatMul", "Einsum", "gram"])
    if kind == "gram":  # over the positions: the channels come out twice
        z = g.op("MatMul", y, g.op("Transpose", y, perm=[0, 2, 1]))
        z = g.op("Reshape", g.op("MatMul", g.op("Tanh", z), y), [0, c, h, w])
    else:
        other = g.op("Reshape", x, [0, c, h * w])
        if kind == "MatMul":
            scores = g.op("MatMul", g.op("Transpose", y, perm=[0, 2, 1]), other)
        else:
            scores = g.op("Einsum", y, other, equation="ncp,ncq->npq")
        z = g.op("MatMul", other, g.op("Softmax", g.op("Mul", scores, 0.2), axis=1))
        z = g.op("Reshape", z, [0, c, h, w])
    return g.op("Add", x, g.conv(z, c, 1))


@step(1)
def normalised(g: Grower, x: str) -> str:
    """Divided by the length of the vector of channels, or by their sum."""
    kind = g.random.choice(["ReduceL2", "ReduceL1"])
    y = g.op(g.random.choice(["Relu", "Tanh", "Sigmoid"]), x) if g.random.random() < 0.5 else x
    return g.op("Div", y, g.op("Max", g.reduce(kind, y, [1]), 0.1))


@step(1)
def dynamic_filter(g: Grower, x: str) -> str:
    """A convolution whose filters are made from other weights."""
    c, out = g.shape(x)[1], g.width()
    w = g.op(g.random.choice(["Tanh", "Exp", "Softplus"]), g.op("Mul", g.weight(out, c, 1, 1), 0.5))
    if g.random.random() < 0.5:
        w = g.op("Mul", w, g.near_one(*g.random.choice([(out, 1, 1, 1), (1, c, 1, 1)])))
    return g.op("Mul", g.op("Conv", x, w), 0.3)


@step(1)
def recurrent(g: Grower, x: str) -> str | None:
    """Rows as a sequence, channels as features."""
    _, c, h, w = g.shape(x)
    if h * w > 36 or not g.shape(x)[0]:
        return None
    kind, hidden = g.random.choice([("GRU", 3), ("LSTM", 4), ("RNN", 1)]), g.random.choice([2, 3, 4])
    way = g.random.choice(["forward", "bidirectional"])
    ways = 1 if way == "forward" else 2
    y = g.op("Transpose", g.op("Reshape", x, [0, c, h * w]), perm=[2, 0, 1])  # [S, N, C]
    weights = g.weight(ways, kind[1] * hidden, c, fan=c), g.weight(ways, kind[1] * hidden, hidden, fan=hidden)
    y = g.ops(kind[0], y, *weights, hidden_size=hidden, direction=way, outputs=2)[0]  # [S, D, N, H]
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, -1])
    return g.op("Reshape", g.op("Transpose", y, perm=[1, 2, 0]), [0, ways * hidden, h, w])
