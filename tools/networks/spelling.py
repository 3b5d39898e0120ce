"""Operators as the opset wants them written, weights as exporters store them, and first and last layers."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from onnxprune.testing.builder import Operand
from tools.networks.sizes import Pair, Sizes, symbol


class Speller(Sizes):
    """A builder that writes one operator in the way of its opset, and one weight in many ways."""

    def __init__(self, random: Random, opset: int) -> None:
        super().__init__(random, opset)
        self.as_nodes = random.choice([0.0, 0.0, 0.3, 1.0])  # constants that are nodes
        self.hidden = random.choice([0.0, 0.0, 0.2])  # weights that stand behind other operators
        self.tied = random.choice([0.0, 0.0, 0.0, 0.3])  # weights that are read a second time
        self._weights: dict[tuple[int, ...], list[str]] = {}

    def const(self, value: ArrayLike, name: str | None = None) -> str:
        """An initializer or a Constant node."""
        if self.random.random() >= self.as_nodes or name:
            return super().const(value, name)
        made = super().const(value)
        tensor = self.graph.initializer.pop()
        assert tensor.name == made
        return self.op("Constant", value=numpy_helper.from_array(numpy_helper.to_array(tensor)))

    def weight(self, *shape: int, name: str | None = None, fan: int | None = None) -> str:
        """A random weight: new, hidden behind an operator, or an old one once more."""
        known = self._weights.setdefault(shape, [])
        if known and not name and self.random.random() < self.tied:
            return self.random.choice(known)
        made = super().weight(*shape, name=name, fan=fan)
        if not name and shape and self.random.random() < self.hidden:
            made = self.hide(made, shape)
        known.append(made)
        return made

    def hide(self, w: str, shape: Sequence[int]) -> str:
        """The same weight behind an operator that a constant may stand behind."""
        kind = self.random.choice(["Identity", "Cast", "Transpose", "Reshape", "Concat", "Slice", "Quantized", "Mul"])
        if kind == "Identity":
            return self.op("Identity", w)
        if kind == "Cast":
            return self.op("Cast", self.op("Cast", w, to=TensorProto.DOUBLE), to=TensorProto.FLOAT)
        if kind == "Transpose":
            return self.op("Transpose", self.op("Transpose", w))
        if kind == "Reshape":
            flat = Sizes.weight(self, int(np.prod(shape)), fan=int(np.prod(shape[1:])))
            return self.op("Reshape", flat, list(shape))
        if kind == "Concat":
            axis = self.random.randrange(len(shape))
            other = list(shape)
            other[axis] = self.random.randint(1, 2)
            glued = self.op("Concat", Sizes.weight(self, *other), w, axis=axis)
            return self.slice(glued, axis, other[axis], other[axis] + shape[axis])
        if kind == "Slice":
            larger = [s + self.random.randint(0, 2) for s in shape]
            axis = self.random.randrange(len(shape))
            wide = Sizes.weight(self, *(s if a != axis else larger[a] for a, s in enumerate(shape)))
            return self.slice(wide, axis, 0, shape[axis])
        if kind == "Quantized" and self.opset >= 13:
            return self.dequantized(shape)
        return self.op("Mul", w, self.near_one(*(s if self.random.random() < 0.5 else 1 for s in shape)))

    def dequantized(self, shape: Sequence[int], axis: int | None = None) -> str:
        """An integer weight with its scale, for the whole or for each index of an axis."""
        count = None if axis is None and self.random.random() < 0.5 else shape[axis or 0]
        values = self.const(self.rng.integers(-99, 99, shape).astype(np.int8))
        scale = self.const(np.asarray(self.rng.uniform(0.004, 0.01, count), np.float32))
        points = (
            [self.const(np.asarray(self.rng.integers(-9, 9, count), np.int8))] if self.random.random() < 0.7 else []
        )
        return self.op("DequantizeLinear", values, scale, *points, axis=axis or 0)

    def reduce(self, kind: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        """A reduction, its axes where the opset has them."""
        if self.opset >= 18 or (kind == "ReduceSum" and self.opset >= 13):
            return self.op(kind, x, list(axes), keepdims=keepdims)
        return self.op(kind, x, axes=list(axes), keepdims=keepdims)

    def squeeze(self, x: str, *axes: int) -> str:
        """A Squeeze."""
        return self.op("Squeeze", x, list(axes)) if self.opset >= 13 else self.op("Squeeze", x, axes=list(axes))

    def unsqueeze(self, x: str, *axes: int) -> str:
        """An Unsqueeze; negative axes count in the output."""
        if self.opset >= 13:
            return self.op("Unsqueeze", x, list(axes))
        rank = len(self.shape(x)) + len(axes)
        return self.op("Unsqueeze", x, axes=sorted(a % rank for a in axes))

    def slice(self, x: str, axis: int, start: int | str, end: int | str, step: int = 1) -> str:
        """A Slice of one axis; bounds may be computed."""
        if self.opset < 10:
            return self.op("Slice", x, starts=[start], ends=[end], axes=[axis])
        bounds: list[Operand] = [b if isinstance(b, str) else [b] for b in (start, end)]
        return self.op("Slice", x, *bounds, [axis], *([[step]] if step != 1 or self.random.random() < 0.2 else []))

    def split(self, x: str, axis: int, *sizes: int) -> list[str]:
        """A Split; equal parts may stay unsaid."""
        if len(set(sizes)) == 1 and self.random.random() < 0.5:
            attrs = {"num_outputs": len(sizes)} if self.opset >= 18 else {}
            return self.ops("Split", x, axis=axis, outputs=len(sizes), **attrs)
        if self.opset < 13:
            return self.ops("Split", x, axis=axis, outputs=len(sizes), split=list(sizes))
        return self.ops("Split", x, list(sizes), axis=axis, outputs=len(sizes))

    def pad(self, x: str, pads: Sequence[int], value: float = 0.0, mode: str = "constant") -> str:
        """A Pad over all axes."""
        if self.opset < 11:
            return self.op("Pad", x, pads=list(pads), mode=mode, value=value)
        return self.op("Pad", x, list(pads), *([np.float32(value)] if value else []), mode=mode)

    def clip(self, x: str, low: float, high: float) -> str:
        """A Clip."""
        return self.op("Clip", x, low, high) if self.opset >= 11 else self.op("Clip", x, min=low, max=high)

    def linear(self, x: str, out: int, bias: bool | None = None) -> str:
        """A layer over the last axis: a product and a sum, or a Gemm where the input is a matrix."""
        wide = self.shape(x)[-1]
        bias = self.random.random() < 0.6 if bias is None else bias
        if len(self.shape(x)) == 2 and self.random.random() < 0.6:
            trans = self.random.randrange(2)
            w = self.weight(*((out, wide) if trans else (wide, out)), fan=wide)
            if self.opset < 11 and not bias:
                return self.op("Gemm", x, w, self.const(np.zeros(1, np.float32)), transB=trans)
            return self.op("Gemm", x, w, *([self.weight(out)] if bias else []), transB=trans)
        y = self.op("MatMul", x, self.weight(wide, out, fan=wide))
        if not bias:
            return y
        operands = [y, self.weight(out)]
        self.random.shuffle(operands)
        return self.op("Add", *operands)

    def stem(self, name: str, kind: str, batch: int | Pair, opened: bool) -> str:
        """An input of a kind, and the layer that reads it."""
        width, few = self.random.choice([3, 4, 4, 6, 8, 8, 12]), self.random.choice([1, 2, 3, 4])

        def side() -> Pair:
            size = self.random.choice([1, 2, 4, 4, 6])
            return self.random.choice([(4, 8), (8, 4), (4, 6)]) if opened else (size, size)

        pairs: dict[str, list[Pair]] = {
            "map": [(few, few), side(), side()],
            "line": [(few, few), side()],
            "tokens": [side(), (few, few)],
            "flat": [(few, few)],
        }
        n = (batch, batch) if isinstance(batch, int) else batch
        x = self.input(name, *(symbol(p) for p in (n, *pairs[kind])))
        return self.conv(x, width, self.random.choice([1, 3])) if kind in ("map", "line") else self.linear(x, width)

    def head(self, kind: str, x: str) -> str:
        """One or two last layers over the channels of a value."""
        if self.random.random() < 0.25:
            x = self.hidden_layer(kind, x)
        if kind in ("map", "line"):
            axes = [2, 3] if kind == "map" else [2]
            way = self.random.choice(["conv", "pool", "flat"])
            if way == "conv" or (way == "flat" and not self.fixed(x)):
                return self.conv(x, 3, self.random.choice([1, 3]))
            if way == "pool":
                return self.linear(self.pooled(x, axes), 3)
            return self.linear(self.op("Flatten", x), 3)
        if kind == "heads":
            x = self.merge_heads(x)
        elif kind == "tokens" and self.random.random() < 0.3:
            x = self.reduce("ReduceMean", x, [1], keepdims=0)
        return self.linear(x, 3)

    def hidden_layer(self, kind: str, x: str) -> str:
        """A layer that more layers follow."""
        if kind == "heads":
            return self.op("Tanh", x)
        width = self.random.choice([4, 6, 8])
        return self.op("Tanh", self.conv(x, width, 1) if kind in ("map", "line") else self.linear(x, width))

    def pooled(self, x: str, axes: Sequence[int]) -> str:
        """[N, C, ...] -> [N, C]."""
        if self.random.random() < 0.5:
            return self.reduce("ReduceMean", x, axes, keepdims=0)
        y = self.op("GlobalAveragePool", x)
        return self.op("Flatten", y) if self.random.random() < 0.5 else self.squeeze(y, *axes)

    def merge_heads(self, x: str) -> str:
        """[B, H, S, D] -> [B, S, H*D]."""
        y = self.op("Transpose", x, perm=[0, 2, 1, 3])
        b, s, h, d = self.sizes(y)
        return self.reshape(y, b, s, h * d)

    def split_heads(self, x: str, heads: int) -> str:
        """[B, S, H*D] -> [B, H, S, D]."""
        b, s, c = self.sizes(x)
        return self.op("Transpose", self.reshape(x, b, s, heads, c // heads), perm=[0, 2, 1, 3])

    def cast(self, x: str, kind: int) -> str:
        """A Cast."""
        return self.op("Cast", x, to=kind)

    def subgraph(self, name: str, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """The body of an If or a Loop."""
        return helper.make_graph(list(nodes), name, list(inputs), list(outputs))
