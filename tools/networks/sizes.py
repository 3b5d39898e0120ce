"""Sizes that are read off tensors, and the many ways in which exporters write them down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.shapes import shell_of
from onnxprune.testing import Builder
from onnxprune.testing.builder import Operand

VERSIONS = {"com.microsoft": 1, "ai.onnx.ml": 3}

Pair = tuple[int, int]  # the size of an axis under the first feed and under the second


class Extent(NamedTuple):
    """The size of an axis of a value."""

    value: str
    axis: int


@dataclass(frozen=True)
class Size:
    """A product of extents, times a number, divided by another."""

    of: tuple[Extent, ...]
    times: int = 1
    by: int = 1

    def __mul__(self, other: Size | int) -> Size:
        if isinstance(other, int):
            return replace(self, times=self.times * other)
        return Size(self.of + other.of, self.times * other.times, self.by * other.by)

    def __floordiv__(self, other: int) -> Size:
        return replace(self, by=self.by * other)


def symbol(pair: Pair) -> int | str:
    """A size as models declare it: one that differs between the two feeds is open, and its name says how."""
    return pair[0] if pair[0] == pair[1] else f"d_{pair[0]}_{pair[1]}"


def size_under(dim: Any, feed: int) -> int:
    """The size of a declared axis under the first or the second feed."""
    return int(dim.dim_param.split("_")[1 + feed]) if dim.dim_param.startswith("d_") else int(dim.dim_value)


class Sizes(Builder):
    """A builder that knows all sizes under two feeds, and writes them as constants, as 0 or -1, or computes them."""

    def __init__(self, random: Random, opset: int) -> None:
        super().__init__(opset, seed=random.randrange(2**31))
        self.random, self.opset = random, opset
        self.open = False
        self.computed = random.choice([0.0, 0.0, 0.15, 0.5])  # how many of the sizes are computed
        self._pairs: dict[str, tuple[Pair, ...]] = {}
        self._kinds: dict[str, int] = {}
        self.noted: dict[str, tuple[Pair, ...]] = {}  # what ONNX may not be able to infer
        self.declares = random.random() < 0.3  # whether models say it

    def ops(self, kind: str, *inputs: Operand, outputs: int | Sequence[str] = 1, **attrs: Any) -> list[str]:
        """As the builder's; a further operator set is imported where it is needed first."""
        domain = kind.rpartition("::")[0]
        if domain and all(entry.domain != domain for entry in self.imports):
            self.imports.append(helper.make_opsetid(domain, VERSIONS[domain]))
        return super().ops(kind, *inputs, outputs=outputs, **attrs)

    def pairs(self, value: str) -> tuple[Pair, ...]:
        """The sizes of a value under both feeds."""
        if value not in self._pairs:
            first, kinds = self._infer(0)
            second = self._infer(1)[0] if self.open else first
            self._kinds |= kinds
            self._pairs |= {v: tuple(zip(s, second[v], strict=True)) for v, s in first.items() if v in second}
        return self._pairs[value]

    def shape(self, value: str) -> tuple[int, ...]:
        """The sizes of a value under the first feed."""
        return tuple(first for first, _ in self.pairs(value))

    def forget(self, *values: str) -> None:
        """Values that are taken back: others will have their names."""
        for value in values:
            for table in (self._pairs, self._kinds, self.noted):
                table.pop(value, None)

    def fixed(self, value: str, *axes: int) -> bool:
        """Whether sizes (those of all axes but the first where none is named) are the same under both feeds."""
        pairs = self.pairs(value)
        return all(pairs[a][0] == pairs[a][1] for a in axes or range(1, len(pairs)))

    def _infer(self, feed: int) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
        proto = self._proto(self._whole())
        for info in (*proto.graph.input, *proto.graph.value_info):
            for dim in info.type.tensor_type.shape.dim:
                dim.dim_value = size_under(dim, feed)
        for value, pairs in self.noted.items():
            shape = [pair[feed] for pair in pairs]
            proto.graph.value_info.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, shape))
        graph = shell_of(proto, {}, "tiny").graph
        infos = [*graph.value_info, *graph.input]
        shapes = {t.name: tuple(t.dims) for t in graph.initializer}
        for info in infos:
            if info.type.tensor_type.HasField("shape"):
                shapes[info.name] = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
        return shapes, {i.name: i.type.tensor_type.elem_type for i in infos}

    def like(self, y: str, x: str, dtype: Any = np.float32, **changed: int) -> str:
        """Declare a value like another but for some axes (`a2=4`): of operators that ONNX does not know."""
        pairs = list(self.pairs(x))
        for axis, size in changed.items():
            pairs[int(axis[1:])] = (size, size)
        return self.declare(y, *(symbol(p) for p in pairs), dtype=dtype)

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The model with these outputs."""
        graph = self._whole()
        for name in outputs:
            shape = [symbol(p) for p in self.pairs(name)]
            graph.output.append(helper.make_tensor_value_info(name, self._kinds[name], shape))
        return self._proto(graph)

    def size(self, x: str, axis: int) -> Size:
        """The size of an axis."""
        return Size((Extent(x, axis % len(self.pairs(x))),))

    def sizes(self, x: str, *axes: int) -> list[Size]:
        """The sizes of some axes, or of all."""
        return [self.size(x, a) for a in axes or range(len(self.pairs(x)))]

    def number(self, size: Size | int) -> int | None:
        """A size as a number, or None where it is open."""
        if isinstance(size, int):
            return size
        values = {self._under(size, feed) for feed in (0, 1)}
        return values.pop() if len(values) == 1 else None

    def _under(self, size: Size, feed: int) -> int:
        product = size.times
        for value, axis in size.of:
            product *= self.pairs(value)[axis][feed]
        return product // size.by

    def _same(self, size: Size | int, pair: Pair) -> bool:
        return pair == ((size, size) if isinstance(size, int) else (self._under(size, 0), self._under(size, 1)))

    def vector(self, size: Size | int) -> str:
        """A size as the graph computes it: a vector of one element."""
        if isinstance(size, int):
            return self.const([size])
        product = self._extent(size.of[0])
        for extent in size.of[1:]:
            product = self.op("Mul", product, self._extent(extent))
        if size.times != 1:
            product = self.op("Mul", product, [size.times])
        return product if size.by == 1 else self.op("Div", product, [size.by])

    def _extent(self, extent: Extent) -> str:
        kind = self.random.choice(["gather", "scalar", "slice", "bounded"])
        if kind == "bounded" and self.opset >= 15:
            return self.op("Shape", extent.value, start=extent.axis, end=extent.axis + 1)
        shape = self.op("Shape", extent.value)
        if kind == "slice" and self.opset >= 10:
            return self.op("Slice", shape, [extent.axis], [extent.axis + 1], [0])
        if kind == "scalar" and self.opset >= 13:
            return self.op("Unsqueeze", self.op("Gather", shape, extent.axis), [0])
        return self.op("Gather", shape, [extent.axis])

    def written(self, x: str, target: Sequence[Size | int], zeros: bool = True, rest: bool = True) -> Operand:
        """A shape: numbers, computed sizes, and where allowed 0 (copied from `x`) and one -1 (what remains)."""
        entries: list[int | Size] = []
        for axis, size in enumerate(target):
            known, draw = self.number(size), self.random.random()
            copied = axis < len(self.pairs(x)) and self._same(size, self.pairs(x)[axis])
            if zeros and copied and draw < 0.4:
                entries.append(0)
            elif known is not None and draw >= self.computed:
                entries.append(known)
            elif zeros and copied and draw < 0.8:
                entries.append(0)
            else:
                entries.append(size)
        computed = [i for i, e in enumerate(entries) if isinstance(e, Size)]
        if rest and self.random.random() < 0.5:
            entries[self.random.choice(computed or range(len(entries)))] = -1
        numbers = [e for e in entries if isinstance(e, int)]
        if len(numbers) == len(entries):
            return numbers
        return self.op("Concat", *(self.vector(e) for e in entries), axis=0)

    def reshape(self, x: str, *target: Size | int) -> str:
        """A Reshape, its target written in one of many ways."""
        return self.note(self.op("Reshape", x, self.written(x, target)), target)

    def expand(self, x: str, *target: Size | int) -> str:
        """An Expand to no less than the sizes that there are, its target written in one of many ways."""
        own = self.pairs(x)
        kept = [len(own) == len(target) and self._same(s, own[a]) for a, s in enumerate(target)]
        short = [1 if k and self.random.random() < 0.3 else s for s, k in zip(target, kept, strict=True)]
        return self.note(self.op("Expand", x, self.written(x, short, zeros=False, rest=False)), target)

    def note(self, y: str, target: Sequence[Size | int]) -> str:
        """Remember what a computed target comes to."""
        self.noted[y] = tuple((s, s) if isinstance(s, int) else (self._under(s, 0), self._under(s, 1)) for s in target)
        return self.declare(y, *(symbol(p) for p in self.noted.pop(y))) if self.declares else y
