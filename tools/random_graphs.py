"""Grow random networks over every kind of operator that has a rule, and prove each cut with the oracle.

Usage: python tools/random_graphs.py [--count 5000] [--seed 0] [--jobs 2]
       python tools/random_graphs.py --seed 17 --show

Failures are printed with their seed; `--show` prints the smallest prefix of that network that fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from onnxprune.errors import OnnxPruneError
from onnxprune.rules.base import Options
from onnxprune.testing import Builder, OracleError, VacuousError, oracle

SMOOTH = ["LeakyRelu", "Tanh", "Sigmoid", "Softplus", "Elu", "Softsign", "Erf", "Relu", "Abs", "Sin", "Neg"]
POINTWISE = ["Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum"]

Step = Callable[["Grower", str], str | None]
STEPS: list[tuple[Step, int]] = []


def step(weight: int = 2) -> Callable[[Step], Step]:
    """Register a way to grow; it may return None where it does not fit."""

    def add(function: Step) -> Step:
        STEPS.append((function, weight))
        return function

    return add


class Grower(Builder):
    """A builder that draws."""

    def __init__(self, random: Random) -> None:
        super().__init__(random.choice([13, 17, 18, 21]))
        self.random = random
        self.opset = self.imports[0].version
        self.live: list[str] = []
        self.stored: list[str] = []  # weights that a later layer may share

    def divisor(self, n: int, least: int = 2) -> int | None:
        """A divisor of n, from `least` on."""
        found = [d for d in range(least, n + 1) if n % d == 0]
        return self.random.choice(found) if found else None

    def pick(self, *choices: Any) -> Any:
        """One of several operands, whatever they are."""
        return self.random.choice(choices)

    def width(self) -> int:
        """A number of channels; those with many divisors come more often."""
        return self.random.choice([1, 2, 3, 4, 4, 5, 6, 6, 8, 8, 8, 12, 12, 16])

    def fitting(self, fits: Callable[[tuple[int, ...]], bool]) -> str | None:
        """A live value whose shape fits."""
        found = [v for v in self.live if fits(self.shape(v))]
        return self.random.choice(found) if found else None

    def reduce(self, kind: str, x: str, axes: list[int], keepdims: int = 1) -> str:
        """A reduction, its axes where the opset has them."""
        if self.opset >= 18 or (kind == "ReduceSum" and self.opset >= 13):
            return self.op(kind, x, axes, keepdims=keepdims)
        return self.op(kind, x, axes=axes, keepdims=keepdims)

    def halves(self, x: str) -> list[str]:
        """An equal split of the channels."""
        attrs = {"num_outputs": 2} if self.opset >= 18 else {}
        return self.ops("Split", x, axis=1, outputs=2, **attrs)

    def sizes(self, x: str) -> list[str]:
        """The sizes of a value, as the graph computes them; each a vector of one element."""
        shape = self.op("Shape", x)
        return [self.op("Gather", shape, [i]) for i in range(len(self.shape(x)))]


def grow(random: Random, steps: int | None = None, size: int = 12) -> onnx.ModelProto:
    """A random network of at most `size` steps; `steps` cuts its growth short."""
    g = Grower(random)
    batch: Any = random.choice([2, 2, "N"])
    g.live.append(g.conv(g.input("x", batch, random.choice([1, 3]), 6, 6), g.width()))
    if random.random() < 0.3:
        g.live.append(g.conv(g.input("z", batch, 2, 6, 6), g.width()))
    weights = [weight for _, weight in STEPS]
    for _ in range(min(random.randint(2, size), steps if steps is not None else 99)):
        x = random.choice(g.live[-3:])
        made = random.choices(STEPS, weights)[0][0](g, x)
        if made is not None and len(g.shape(made)) == 4 and all(0 < size <= 64 for size in g.shape(made)[1:]):
            g.live.append(made)
    return g.model(*tails(g))


def tails(g: Grower) -> list[str]:
    """Outputs: a convolution, a pooled or a flattened classifier, from the last value and perhaps another."""
    outputs = []
    for x in {g.live[-1], *g.random.sample(g.live, 1)}:
        kind = g.random.choice(["conv", "pool", "flat"])
        if kind == "conv":
            outputs.append(g.conv(x, g.random.choice([1, 3]), 1))
        else:
            y = g.op("GlobalAveragePool", x) if kind == "pool" else x
            y = (
                g.op("Flatten", y)
                if g.random.random() < 0.7
                else g.op("Reshape", y, [-1, int(np.prod(g.shape(y)[1:]))])
            )
            if g.random.random() < 0.5:
                y = g.op("LeakyRelu", g.gemm(y, g.width()))
            outputs.append(g.gemm(y, 3))
    return sorted(outputs)


# Layers


@step(8)
def dense(g: Grower, x: str) -> str:
    kernel = g.random.choice([1, 3])
    strides = [2, 2] if g.random.random() < 0.1 else [1, 1]
    return g.conv(x, g.width(), kernel, bias=g.random.random() < 0.7, strides=strides)


@step(4)
def grouped(g: Grower, x: str) -> str | None:
    groups = g.divisor(g.shape(x)[1])
    return None if not groups else g.conv(x, groups * g.random.choice([1, 2, 3]), group=groups)


@step(3)
def depthwise(g: Grower, x: str) -> str:
    channels = g.shape(x)[1]
    return g.conv(x, channels * g.random.choice([1, 1, 2]), group=channels)


@step(2)
def transposed(g: Grower, x: str) -> str | None:
    channels = g.shape(x)[1]
    groups = g.random.choice([1, g.divisor(channels, 1), channels])
    if not groups or g.shape(x)[2] > 8:
        return None
    narrow = g.random.choice([1, 2, 4])
    return g.op("ConvTranspose", x, g.weight(channels, narrow, 2, 2, fan=channels), group=groups, strides=[2, 2])


@step(3)
def shared(g: Grower, x: str) -> str | None:
    """One weight in two places, or one bias under two layers."""
    channels = g.shape(x)[1]
    if g.random.random() < 0.5:
        w = g.weight(channels, channels, 1, 1)
        return g.op("Conv", g.op("Tanh", g.op("Conv", x, w)), w)
    bias = g.weight(channels)
    y = g.op("Conv", x, g.weight(channels, channels, 1, 1), bias)
    return g.op("Conv", g.op("Tanh", y), g.weight(channels, channels, 1, 1), bias)


@step(2)
def channels_last(g: Grower, x: str) -> str:
    """A linear layer, sometimes a norm, between transposes."""
    y = g.op("Transpose", x, perm=[0, 2, 3, 1])
    if g.opset >= 17 and g.random.random() < 0.3:
        y = g.op("LayerNormalization", y, g.near_one(g.shape(x)[1]), epsilon=0.1)
    y = g.op("MatMul", y, g.weight(g.shape(x)[1], g.width(), fan=g.shape(x)[1]))
    return g.op("Transpose", y, perm=[0, 3, 1, 2])


@step(2)
def stored(g: Grower, x: str) -> str:
    """A weight behind Transpose, Identity, Reshape or DequantizeLinear."""
    out, channels = g.width(), g.shape(x)[1]
    kind = g.random.choice(["Transpose", "Identity", "Reshape", "DequantizeLinear", "Split"])
    if kind == "Transpose":
        w = g.op(kind, g.weight(1, 1, channels, out, fan=channels), perm=[3, 2, 0, 1])
    elif kind == "Reshape":
        w = g.op(kind, g.weight(out, channels), [out, channels, 1, 1])
    elif kind == "DequantizeLinear":
        values = g.const(g.rng.integers(-99, 99, (out, channels, 1, 1)).astype(np.int8))
        points = g.const(g.rng.integers(-9, 9, out).astype(np.int8))
        w = g.op(kind, values, g.const(g.rng.uniform(0.004, 0.01, out).astype(np.float32)), points, axis=0)
    elif kind == "Split":
        w, _ = g.ops(kind, g.weight(out + 2, channels, 1, 1), [out, 2], axis=0, outputs=2)
    else:
        w = g.op(kind, g.weight(out, channels, 1, 1))
    return g.op("Conv", x, w)


# Element by element


@step(6)
def unary(g: Grower, x: str) -> str:
    return g.op(g.random.choice(SMOOTH), x)


@step(3)
def constant(g: Grower, x: str) -> str:
    c, h, w = g.shape(x)[1:]
    form = g.random.choice([(c, 1, 1), (1, c, 1, 1), (), (1,), (h, w), (c, h, w), (1, 1, w)])
    operands = [x, g.near_one(*form)]
    g.random.shuffle(operands)
    return g.op(g.random.choice(["Add", "Sub", "Mul", "Max", "Min"]), *operands)


@step(6)
def pointwise(g: Grower, x: str) -> str | None:
    """With another value of the same shape, or one that broadcasts."""
    shape = g.shape(x)
    broadcasts = lambda s: s[0] == shape[0] and all(a in (1, b) for a, b in zip(s[1:], shape[1:], strict=True))  # noqa: E731
    other = g.fitting(broadcasts)
    return other and g.op(g.random.choice(POINTWISE), x, other)


@step(5)
def residual(g: Grower, x: str) -> str:
    branch = g.conv(x, g.shape(x)[1], g.random.choice([1, 3]))
    return g.op("Add", x, g.op("Tanh", branch))


@step(3)
def gate(g: Grower, x: str) -> str:
    """Squeeze and excite."""
    channels = g.shape(x)[1]
    pooled = g.op("GlobalAveragePool", x) if g.random.random() < 0.5 else g.reduce("ReduceMean", x, [2, 3])
    hidden = g.op("Relu", g.conv(pooled, g.width(), 1))
    return g.op("Mul", x, g.op("Sigmoid", g.conv(hidden, channels, 1)))


@step(1)
def where(g: Grower, x: str) -> str:
    channels = g.shape(x)[1]
    mask = g.const(g.rng.random((channels, 1, 1)) < 0.5)
    return g.op("Where", mask, x, g.pick(g.op("Tanh", x), 0.5, g.weight(channels, 1, 1)))


@step(1)
def prelu(g: Grower, x: str) -> str:
    return g.op("PRelu", x, g.near_one(*g.random.choice([(g.shape(x)[1], 1, 1), (1,)])))


@step(1)
def clip(g: Grower, x: str) -> str:
    return g.op("Clip", x, g.random.choice([-0.5, 0.1]), 1.5)


# Norms and reductions


@step(3)
def norm(g: Grower, x: str) -> str | None:
    c, h, w = g.shape(x)[1:]
    kind = g.random.choice(["batch", "instance", "group", "decomposed", "lrn"])
    if kind == "batch" or h * w < 9:
        return g.batch_norm(x)
    if kind == "instance":
        return g.op("InstanceNormalization", x, g.near_one(c), g.weight(c), epsilon=0.1)
    if kind == "lrn":
        return g.op("LRN", x, size=3) if g.random.random() < 0.3 else None
    groups = g.divisor(c, 1) or 1
    if kind == "group" and g.opset >= 21:
        return g.op("GroupNormalization", x, g.near_one(c), g.weight(c), num_groups=groups, epsilon=0.1)
    y = g.op("Reshape", x, [0, groups, -1])
    y = g.op("InstanceNormalization", y, g.near_one(groups), g.weight(groups), epsilon=0.1)
    y = g.op("Reshape", y, g.pick([0, c, h, w], g.op("Shape", x)))
    return g.op("Mul", y, g.near_one(c, 1, 1))


@step(2)
def over_channels(g: Grower, x: str) -> str:
    """A map from all channels, as a gate or beside them."""
    kind = g.random.choice(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL1", "Softmax"])
    if kind == "Softmax":
        return g.op("Softmax", x, axis=g.random.choice([1, -1]))
    y = g.reduce(kind, x, [1])
    if g.random.random() < 0.5:
        return g.op("Mul", x, g.op("Tanh", y))
    return g.op("Concat", x, y, axis=1)


@step(3)
def pool(g: Grower, x: str) -> str | None:
    if min(g.shape(x)[2:]) < 2:
        return None
    kind = g.random.choice(["MaxPool", "AveragePool"])
    strides = g.random.choice([[1, 1], [2, 2]])
    return g.op(kind, x, kernel_shape=[2, 2], strides=strides, pads=g.random.choice([[0] * 4, [0, 0, 1, 1]]))


@step(2)
def resize(g: Grower, x: str) -> str | None:
    n, c, h, w = g.shape(x)
    if h > 8:
        return None
    if g.random.random() < 0.4 or not n:
        return g.op("Resize", x, None, [1.0, 1.0, 2.0, 2.0])
    if g.random.random() < 0.5:
        return g.op("Resize", x, None, None, [n, c, h + 1, w], mode="linear")
    first, second, *_ = g.sizes(x)
    return g.op("Resize", x, None, None, g.op("Concat", first, second, [h, w + 2], axis=0))


# Along the channels


@step(5)
def concat(g: Grower, x: str) -> str | None:
    shape = g.shape(x)
    other = g.fitting(lambda s: (s[0], *s[2:]) == (shape[0], *shape[2:]))
    parts = [x, *([other] if other else []), *([x] if g.random.random() < 0.1 else [])]
    g.random.shuffle(parts)
    return g.op("Concat", *parts, axis=g.random.choice([1, -3])) if len(parts) > 1 else None


@step(5)
def split(g: Grower, x: str) -> str | None:
    """In halves or unevenly; the parts live on, meet again, or are glued the other way round."""
    channels = g.shape(x)[1]
    if channels < 2:
        return None
    if channels % 2 == 0 and g.random.random() < 0.6:
        parts = g.halves(x)
    else:
        first = g.random.randint(1, channels - 1)
        parts = g.ops("Split", x, [first, channels - first], axis=1, outputs=2)
    g.live += parts
    if g.shape(parts[0]) == g.shape(parts[1]) and g.random.random() < 0.4:
        return g.op("Mul", parts[0], g.op("Sigmoid", parts[1]))
    if g.random.random() < 0.5:
        return g.op("Concat", g.conv(parts[0], g.width()), parts[1], axis=1)
    return g.op("Concat", parts[1], parts[0], axis=1)


@step(2)
def slice_(g: Grower, x: str) -> str | None:
    channels = g.shape(x)[1]
    start = g.random.randint(0, channels - 1)
    end = g.random.randint(start + 1, channels)
    if g.random.random() < 0.2:
        return g.op("Slice", x, [0], [channels], [1], [2])
    starts = [start - channels if g.random.random() < 0.3 else start]
    return g.op("Slice", x, starts, [2**40 if end == channels else end], [g.random.choice([1, -3])])


@step(2)
def gather(g: Grower, x: str) -> str:
    channels = g.shape(x)[1]
    picked = [g.random.randrange(-channels, channels) for _ in range(g.random.randint(1, channels + 1))]
    order = g.random.choice([list(range(channels))[::-1], picked])
    return g.op("Gather", x, np.array(order, dtype=g.random.choice([np.int64, np.int32])), axis=1)


@step(2)
def pad(g: Grower, x: str) -> str:
    before, after = g.random.randint(0, 2), g.random.randint(0, 3)
    return g.op("Pad", x, [0, before, 0, 1, 0, after, 0, 0], g.random.choice([0.0, 0.5]))


@step(2)
def repeat(g: Grower, x: str) -> str:
    c = g.shape(x)[1]
    if c == 1 or g.random.random() < 0.3:
        one = x if c == 1 else g.conv(x, 1)
        target = g.random.choice([4, 6])
        if g.random.random() < 0.5:
            return g.op("Tile", one, [1, target, 1, 1])
        return g.op("Expand", one, [1, target, 1, 1])
    return g.op("Tile", x, [1, 2, 1, 1])


@step(5)
def shuffle(g: Grower, x: str) -> str | None:
    """A channel shuffle; its sizes are constants or computed."""
    n, c, h, w = g.shape(x)
    groups = g.divisor(c)
    if not groups:
        return None
    if g.random.random() < 0.3:
        batch, channels, rows, columns = g.sizes(x)
        per = g.op("Div", channels, [groups])
        target = g.op("Concat", batch, [groups], per, rows, columns, axis=0)
        back = g.op("Concat", batch, [-1], rows, columns, axis=0)
    else:
        target = g.const([0, groups, c // groups, h, w] if not n else [n, groups, c // groups, h, w])
        back = g.const(g.random.choice([[0, c, h, w], [0, -1, h, w]]))
    y = g.op("Transpose", g.op("Reshape", x, target), perm=[0, 2, 1, 3, 4])
    y = g.op("Reshape", y, back)
    return y if g.shape(y) else g.declare(y, "N", c, h, w)


@step(2)
def chunk(g: Grower, x: str) -> str | None:
    """Halves as torchscript writes them, by arithmetic on the shape."""
    if g.shape(x)[1] % 2 or not g.shape(x)[0]:
        return None
    channels = g.sizes(x)[1]
    half = g.op("Div", g.op("Add", channels, [1]), [2])
    left = g.op("Slice", x, [0], g.op("Mul", half, [1]), [1])
    right = g.op("Slice", x, g.op("Mul", half, [1]), g.op("Mul", half, [2]), [1])
    return g.op("Add", left, right) if g.random.random() < 0.3 else g.op("Concat", right, left, axis=1)


@step(2)
def blocks(g: Grower, x: str) -> str | None:
    """Pixel shuffle and unshuffle."""
    _, c, h, w = g.shape(x)
    if c % 4 == 0 and h <= 8 and g.random.random() < 0.6:
        return g.op("DepthToSpace", x, blocksize=2, mode=g.random.choice(["DCR", "CRD"]))
    return g.op("SpaceToDepth", x, blocksize=2) if h % 2 == w % 2 == 0 else None


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


# The tool


def options_of(seed: int) -> Options:
    """Options of the analysis, drawn with the network."""
    random = Random(-seed)
    return Options(align=random.choice([1, 1, 1, 2, 4]), head_dims=random.random() < 0.3)


def check(seed: int, steps: int | None = None, size: int = 12) -> str:
    """Grow one network and prove two cuts of it; the verdict in one line, empty if all is well."""
    model = grow(Random(seed), steps, size)
    try:
        for removed in (0.5, None):
            oracle(model, removed, seed, options=options_of(seed), both=removed is None)
    except VacuousError:
        return ""
    except (OracleError, OnnxPruneError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error} (a crash)"
    return ""


def shrink(seed: int, size: int) -> int:
    """The least number of steps with which a seed still fails."""
    return next((steps for steps in range(size + 1) if check(seed, steps, size)), size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="how many networks (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first")
    parser.add_argument("--size", type=int, default=12, help="steps at most (default 12)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--show", action="store_true", help="print the network of --seed and stop")
    args = parser.parse_args()
    if args.show:
        steps = shrink(args.seed, args.size)
        print(onnx.printer.to_text(grow(Random(args.seed), steps, args.size)))
        print(f"{steps} steps, {options_of(args.seed)}:", check(args.seed, steps, args.size) or "exact")
        return 0
    start, failed = time.perf_counter(), 0
    seeds = range(args.seed, args.seed + args.count)
    with ProcessPoolExecutor(args.jobs) as pool:
        verdicts = pool.map(partial(check, size=args.size), seeds, chunksize=16)
        for seed, verdict in zip(seeds, verdicts, strict=True):
            if verdict:
                failed += 1
                print(f"seed {seed}: {verdict}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{args.count} networks, {failed} failures, {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
