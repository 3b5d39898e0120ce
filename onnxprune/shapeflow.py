"""Where the numbers in shape arithmetic come from.

Exporters compute the target of a Reshape or the bounds of a Slice from `Shape`, `Gather`, `Div`, `Concat` and
constants. Each number of such a small tensor is traced to its source, so that a cut knows which constant to rewrite,
which number follows by itself because it is read off a tensor that is cut too, and which sizes must not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, helper

from onnxprune.graph import Graph, Node

LONGEST = 64  # elements; longer tensors are data, not shapes
NUMERIC = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.DOUBLE})


class Leaf(NamedTuple):
    """Element `place` of the constant that `node` reads at input `slot`."""

    node: int
    slot: int
    place: int


class SizeOf(NamedTuple):
    """The size of a tensor's axis, read off by a `Shape` node."""

    value: str
    axis: int


@dataclass(frozen=True)
class Number:
    """One element: its value where it is known, its source (None: computed), and the sizes that it depends on."""

    value: int | float | None
    source: Leaf | SizeOf | None = None
    sizes: frozenset[SizeOf] = frozenset()


@dataclass(frozen=True)
class Used:
    """A size that `node` computes with: it must not change."""

    size: SizeOf
    node: Node


# (op, input slot) where a number that follows or can be rewritten is understood by the op's rule.
SINKS = frozenset(
    {("Reshape", 1), ("Expand", 1), ("Resize", 3), ("Slice", 1), ("Slice", 2), ("Split", 1), ("Tile", 1), ("Pad", 1)}
)
# Of these, the ones whose numbers need not be known: the rule says of each how it follows.
FOLLOWS = frozenset({("Reshape", 1), ("Expand", 1), ("Resize", 3)})

Numbers = tuple[Number, ...]


class ShapeFlow:
    """The traced numbers of a graph: `numbers(node, slot)`, and the sizes `used` by anything else."""

    def __init__(self, graph: Graph, memo: dict[Any, Any] | None = None) -> None:
        """Trace once, in the order of the nodes. `memo` carries evaluated steps from one tracing to the next."""
        self._graph = graph
        self._memo = {} if memo is None else memo
        self._traced: dict[str, Numbers] = {}
        self.used: list[Used] = []
        self.pinned: dict[Leaf, Node] = {}
        for node in graph.nodes:
            self._visit(node)
        for name in (*graph.outputs, *graph.captured):
            if name in self._traced:
                self._use(self._traced[name], graph.producer[name])

    def numbers(self, node: Node, slot: int) -> Numbers | None:
        """The numbers that reach an input slot, or None where they cannot be traced.

        Where all are known, each can be rewritten: the input becomes a constant of this node.
        """
        found = self._read(node, slot)
        if found is not None and all(n.value is not None for n in found):
            return tuple(replace(n, source=Leaf(node.index, slot, i)) for i, n in enumerate(found))
        return found

    def computed(self) -> list[tuple[Node, int, Numbers]]:
        """Shape inputs that are computed, but known: what a constant could stand for."""
        return [
            (node, slot, found)
            for node in self._graph.nodes
            for slot, name in enumerate(node.inputs)
            if (node.op, slot) in SINKS
            and name in self._traced
            and (found := self._traced[name])
            and all(n.value is not None for n in found)
        ]

    def _read(self, node: Node, slot: int) -> Numbers | None:
        if slot >= len(node.inputs) or not node.inputs[slot]:
            return None
        name = node.inputs[slot]
        tensor = self._graph.constants.get(name)
        if tensor is None:
            return self._traced.get(name)
        if tensor.data_type not in NUMERIC or self._graph.size(name) > LONGEST:
            return None
        flat = self._graph.array(name).reshape(-1).tolist()
        return tuple(Number(v, Leaf(node.index, slot, i)) for i, v in enumerate(flat))

    def _visit(self, node: Node) -> None:
        if node.op == "Shape" and not node.domain:
            self._traced[node.outputs[0]] = self._sizes(node)
            return
        step = _STEPS.get(node.op) if not node.domain else None
        result = (step(self, node) if step else None) or self._evaluate(node)
        if result is not None and len(result) <= LONGEST:
            self._traced[node.outputs[0]] = result
            if any(n.source is None for n in result):
                self._pin(node)
            return
        for slot, name in enumerate(node.inputs):
            numbers = self._traced.get(name, ())
            known = all(n.value is not None for n in numbers)
            if (node.op, slot) not in SINKS:
                self._use(numbers, node)
            elif not known:
                follows = (node.op, slot) in FOLLOWS
                self._use([n for n in numbers if not (follows and n.source is not None)], node)

    def _evaluate(self, node: Node) -> Numbers | None:
        """What any other op makes of small tensors that are all known (the pads that exporters compute, say)."""
        if node.domain or node.captures or len(node.outputs) != 1 or not node.inputs or self._read(node, 0) is None:
            return None
        feeds: dict[str, np.ndarray[Any, Any]] = {}
        sizes: frozenset[SizeOf] = frozenset()
        for slot, name in enumerate(node.inputs):
            numbers, shape = self._read(node, slot), self._graph.shapes.get(name)
            if not name:
                continue
            if numbers is None or shape is None or any(n.value is None for n in numbers):
                return None
            known = [s for s in shape if isinstance(s, int)]
            if len(known) != len(shape) or int(np.prod(known)) != len(numbers):
                return None
            is_float = any(isinstance(n.value, float) for n in numbers)
            feeds[name] = np.array([n.value for n in numbers], np.float32 if is_float else np.int64).reshape(known)
            sizes = sizes.union(*(n.sizes for n in numbers))
        key = (node.index, *(a.tobytes() for a in feeds.values()))
        if key not in self._memo:
            self._memo[key] = _run(node, self._graph.opset, feeds)
        made = self._memo[key]
        if made is None or made.dtype.kind not in "iufb" or made.size > LONGEST:
            return None
        return tuple(Number(v, None, sizes) for v in made.reshape(-1).tolist())

    def _pin(self, node: Node) -> None:
        """Constants that something computes with must not be rewritten: the result would move with them."""
        for name in node.inputs:
            for number in self._traced.get(name, ()):
                if isinstance(number.source, Leaf):
                    self.pinned.setdefault(number.source, node)

    def _use(self, numbers: Sequence[Number], node: Node) -> None:
        self.used += [Used(size, node) for n in numbers for size in n.sizes]

    def _sizes(self, node: Node) -> Numbers:
        name = node.inputs[0]
        shape = self._graph.shapes.get(name) or ()
        axes = range(len(shape))[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
        known = [size if isinstance(size, int) else None for size in shape]
        return tuple(Number(known[a], SizeOf(name, a), frozenset({SizeOf(name, a)})) for a in axes)


def _run(node: Node, opset: int, feeds: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any] | None:
    from onnx.reference import ReferenceEvaluator

    inputs = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in dict.fromkeys(node.inputs) if n]
    outputs = [helper.make_tensor_value_info(node.outputs[0], TensorProto.UNDEFINED, None)]
    model = helper.make_model(
        helper.make_graph([node.proto], "step", inputs, outputs), opset_imports=[helper.make_opsetid("", opset)]
    )
    try:
        found: Any = ReferenceEvaluator(model).run(None, {**feeds})
        return np.asarray(found[0])
    except Exception:
        return None


Step = Callable[[ShapeFlow, Node], Numbers | None]


def _same(flow: ShapeFlow, node: Node) -> Numbers | None:
    return flow._read(node, 0)


def _cast(flow: ShapeFlow, node: Node) -> Numbers | None:
    whole = node.attrs["to"] in (TensorProto.INT64, TensorProto.INT32)
    return (_each(int, keep=True) if whole else _each(float))(flow, node)


def _each(function: Callable[[Any], int | float], keep: bool = False) -> Step:
    """Element by element; `keep`: an integer that stays what it is keeps its source."""

    def step(flow: ShapeFlow, node: Node) -> Numbers | None:
        data = flow._read(node, 0)
        if data is None:
            return None
        return tuple(
            n
            if keep and not isinstance(n.value, float)
            else Number(None if n.value is None else function(n.value), None, n.sizes)
            for n in data
        )

    return step


def _arithmetic(function: Callable[[Any, Any], Any]) -> Step:
    def step(flow: ShapeFlow, node: Node) -> Numbers | None:
        a, b = flow._read(node, 0), flow._read(node, 1)
        if a is None or b is None or (len(a) != len(b) and 1 not in (len(a), len(b))):
            return None
        length = max(len(a), len(b))
        pairs = zip(a * (length // len(a)), b * (length // len(b)), strict=True)
        return tuple(
            Number(None if p.value is None or q.value is None else function(p.value, q.value), None, p.sizes | q.sizes)
            for p, q in pairs
        )

    return step


def _divide(a: int | float, b: int | float) -> int | float | None:
    if b == 0:
        return None
    return int(a / b) if isinstance(a, int) and isinstance(b, int) else a / b


def _concat(flow: ShapeFlow, node: Node) -> Numbers | None:
    parts = [_rewritable(node, slot, flow._read(node, slot)) for slot in range(len(node.inputs))]
    return None if any(p is None for p in parts) else tuple(n for p in parts if p is not None for n in p)


def _rewritable(node: Node, slot: int, part: Numbers | None) -> Numbers | None:
    """A part that is computed, but known, can become a constant of the Concat, whatever is open beside it."""
    if part is None or any(n.value is None for n in part) or all(n.source is not None for n in part):
        return part
    return tuple(replace(n, source=Leaf(node.index, slot, i)) for i, n in enumerate(part))


def _gather(flow: ShapeFlow, node: Node) -> Numbers | None:
    data, indices = flow._read(node, 0), flow._read(node, 1)
    if data is None or indices is None or any(i.value is None for i in indices):
        return None
    picked = [int(i.value) for i in indices if i.value is not None]
    return tuple(data[i] for i in picked) if all(-len(data) <= i < len(data) for i in picked) else None


def _slice(flow: ShapeFlow, node: Node) -> Numbers | None:
    data = flow._read(node, 0)
    rank = len(flow._graph.shapes.get(node.inputs[0]) or (0, 0))
    bounds: Sequence[Any]
    if "starts" in node.attrs:
        bounds = (node.attrs["starts"], node.attrs["ends"], [1])
    else:
        traced = [flow._read(node, slot) for slot in (1, 2, 4)]
        bounds = [[n.value for n in t] if t else [1] for t in traced]
    if data is None or rank > 1 or any(len(b) != 1 or b[0] is None for b in bounds):
        return None
    return data[slice(*(int(np.clip(b[0], -LONGEST - 1, LONGEST)) for b in bounds))]


_STEPS: dict[str, Step] = {
    "Identity": _same,
    "Squeeze": _same,
    "Unsqueeze": _same,
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Add": _arithmetic(lambda a, b: a + b),
    "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b),
    "Div": _arithmetic(_divide),
    "Min": _arithmetic(min),
    "Max": _arithmetic(max),
    "Mod": _arithmetic(lambda a, b: a % b if b else None),
    "Neg": _each(lambda v: -v),
    "Floor": _each(lambda v: float(math.floor(v))),
    "Ceil": _each(lambda v: float(math.ceil(v))),
}
