"""Random growth: a builder that draws, the registry of steps, and the networks that they make."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import onnx

from onnxprune.testing import Builder

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
