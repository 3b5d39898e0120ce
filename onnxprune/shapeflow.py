"""Where the numbers in shape arithmetic come from.

Exporters compute the target of a Reshape or the bounds of a Slice from `Shape`, `Gather`, `Div`, `Concat` and
constants. Each number of such a small tensor is traced to its source, so that a cut knows which constant to rewrite,
which number follows by itself because it is read off a tensor that is cut too, and which sizes must not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnxprune.arithmetic import LONGEST, STEPS, evaluate
from onnxprune.graph import Graph, Node
from onnxprune.number import Leaf, Number, Numbers, SizeOf, Used
from onnxprune.shapes import Shape
from onnxprune.sizes import Instance, factor

NUMERIC = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL})


# (op, input slot) where a number that follows or can be rewritten is understood by the op's rule.
SINKS = frozenset(
    {("Reshape", 1), ("Expand", 1), ("Resize", 3), ("Slice", 1), ("Slice", 2), ("Split", 1), ("Tile", 1), ("Pad", 1)}
    | {("ConstantOfShape", 0)}
)
# Of these, the ones whose numbers need not be known: the rule says of each how it follows.
FOLLOWS = frozenset({("Reshape", 1), ("Expand", 1), ("Resize", 3), ("ConstantOfShape", 0)})


class ShapeFlow:
    """The traced numbers of a graph: `numbers(node, slot)`, and the sizes `used` by anything else."""

    def __init__(self, graph: Graph, types: Mapping[str, int] | None = None) -> None:
        """Nothing is traced yet: `visit` the nodes in their order, then `finish`. `types`: value -> element type."""
        self._graph = graph
        self.types = types or {}
        self._traced: dict[str, Numbers] = {}
        self.used: list[Used] = []
        self.pinned: dict[Leaf, Node] = {}

    @cached_property
    def instance(self) -> Instance:
        """Stand-ins for the open sizes of this graph."""
        return Instance(s for shape in self._graph.shapes.values() for s in shape or () if isinstance(s, int))

    def shape(self, name: str) -> Shape:
        """The shape of a value, as far as it is known by now."""
        return self._graph.shapes.get(name)

    def finish(self) -> None:
        """What leaves the graph, or is read inside a subgraph, is used."""
        for name in (*self._graph.outputs, *self._graph.captured):
            if name in self._traced:
                self._use(self._traced[name], self._graph.producer[name])
                self._hold(self._traced[name], self._graph.producer[name])

    def numbers(self, node: Node, slot: int) -> Numbers | None:
        """The numbers that reach an input slot, or None where they cannot be traced.

        A computed input can be given constants, for this node alone, in the place of what is known of it: such numbers
        are leaves of the node. What is open stays computed.
        """
        found = self.original(node, slot)
        if found is None or node.inputs[slot] in self._graph.constants or self._may_stay(node, slot, found):
            return found
        return tuple(
            n if v is None else replace(n, value=v, source=Leaf(node.index, slot, i), symbol=None)
            for i, (n, v) in enumerate(zip(found, self._constants(node, slot, found), strict=True))
        )

    def dtype(self, node: Node, slot: int) -> np.dtype[Any]:
        """What a constant for an input slot holds: integers, of the kind that the input has now."""
        return helper.tensor_dtype_to_np_dtype(self.types.get(node.inputs[slot], TensorProto.INT64))

    def rewritable(self) -> list[tuple[Node, int, Numbers, Numbers]]:
        """Computed shape inputs that can be given constants: as they are, and with those."""
        return [
            (node, slot, found, numbers)
            for node in self._graph.nodes
            for slot, name in enumerate(node.inputs)
            if (node.op, slot) in SINKS
            and (found := self._traced.get(name))
            and (numbers := self.numbers(node, slot))
            and any(n.source == Leaf(node.index, slot, i) for i, n in enumerate(numbers))
        ]

    def _may_stay(self, node: Node, slot: int, found: Numbers) -> bool:
        """Whether what is open follows by itself, and what is written is written for this node alone."""
        name = node.inputs[slot]
        maker = self._graph.producer.get(name)
        if maker is None or all(n.value is not None for n in found) or len(self._graph.consumers[name]) > 1:
            return False
        return all(
            n.value in (0, -1) or (isinstance(n.source, SizeOf) if n.value is None else _written_by(n.source, maker))
            for n in found
        )

    def _constants(self, node: Node, slot: int, found: Numbers) -> list[Any]:
        """Constants for a shape input, None where it stays computed: a Reshape's target has 0 for what is copied and -1
        for what is the rest then, an Expand's 1 for what is not stretched."""
        values = [n.value for n in found]
        nothing: list[Any] = [None] * len(found)
        if None not in values:
            return values
        if (node.op, slot) not in FOLLOWS or node.domain or self._graph.opset < 9:  # Where came with opset 9
            return nothing
        source, target = (self._graph.shapes.get(v) for v in (node.inputs[0], node.outputs[0]))
        if source is None or target is None or len(target) != len(found) or 0 in target:
            return nothing
        if node.op in ("Resize", "ConstantOfShape"):
            return values
        if node.op == "Expand":
            kept = ([1] * (len(target) - len(source)) + list(source))[-len(target) :]
            return [1 if k == t and isinstance(t, str) else v for k, t, v in zip(kept, target, values, strict=True)]
        if any(v not in (0, -1, None) and v != t for v, t in zip(values, target, strict=True)):
            return nothing
        made: list[Any] = [
            t if isinstance(t, int) else 0 if axis < len(source) and source[axis] == t else None
            for axis, t in enumerate(target)
        ]
        # The rest is one that does not follow by itself, if any.
        rest = [a for a, m in enumerate(made) if m is None]
        rest = [
            a for a in rest if len(rest) == 1 or values[a] == -1 or factor(target[a]) != 1 or self._may_move(found[a])
        ]
        if len(rest) > 1:
            return nothing
        return [-1 if axis in rest else m for axis, m in enumerate(made)]

    def _may_move(self, number: Number) -> bool:
        """Whether a number is computed from sizes of which some part can be cut."""
        if number.source is not None:
            return False
        sizes = [(self._graph.shapes.get(size.value) or {size.axis: None})[size.axis] for size in number.sizes]
        return any(isinstance(s, int) or factor(s) != 1 for s in sizes)

    def original(self, node: Node, slot: int) -> Numbers | None:
        """The numbers as the graph computes them."""
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

    def visit(self, node: Node) -> None:
        """Trace one node, all of whose inputs have been traced."""
        if node.op == "Shape" and not node.domain:
            if self._graph.shapes.get(node.inputs[0]) is not None:
                self._traced[node.outputs[0]] = self._sizes(node)
            return
        step = STEPS.get(node.op) if not node.domain else None
        try:
            result = step(self, node) if step else None
        except (IndexError, KeyError, ValueError, TypeError, ZeroDivisionError):
            result = None  # nothing in it, or not as its schema says
        result = self._evaluate(node) if result is None else result
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
                self._hold(numbers, node)
            elif not known:
                follows = (node.op, slot) in FOLLOWS
                left = self.numbers(node, slot) or ()
                self._use([n for n in left if not (follows and n.source is not None)], node)

    def _evaluate(self, node: Node) -> Numbers | None:
        """What any other op makes of small tensors that are all known (the pads that exporters compute, say)."""
        if node.domain or node.captures or len(node.outputs) != 1 or not node.inputs or self.original(node, 0) is None:
            return None
        feeds: dict[str, np.ndarray[Any, Any]] = {}
        sizes: frozenset[SizeOf] = frozenset()
        for slot, name in enumerate(node.inputs):
            numbers, shape = self.original(node, slot), self._graph.shapes.get(name)
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
        made = evaluate(node, self._graph.opset, feeds)
        if made is None or made.dtype.kind not in "iufb" or made.size > LONGEST:
            return None
        return tuple(Number(v, None, sizes) for v in made.reshape(-1).tolist())

    def _pin(self, node: Node) -> None:
        """Constants that something computes with must not be rewritten: the result would move with them."""
        for name in node.inputs:
            self._hold(self._traced.get(name, ()), node)

    def _hold(self, numbers: Numbers, node: Node) -> None:
        for number in numbers:
            if isinstance(number.source, Leaf):
                self.pinned.setdefault(number.source, node)

    def _use(self, numbers: Sequence[Number], node: Node) -> None:
        self.used += [Used(size, node) for n in numbers for size in n.sizes]

    def _sizes(self, node: Node) -> Numbers:
        name = node.inputs[0]
        shape = self._graph.shapes.get(name) or ()
        axes = range(len(shape))[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
        if name in self._traced:  # how many numbers there are: none is ever cut
            return tuple(Number(size) for a in axes if isinstance(size := shape[a], int))
        return tuple(
            Number(size, read, frozenset({read}))
            if isinstance(size, int)
            else Number(None, read, frozenset({read}), size)
            for size, read in ((shape[a], SizeOf(name, a)) for a in axes)
        )


def _written_by(source: Leaf | SizeOf | None, maker: Node) -> bool:
    return isinstance(source, Leaf) and source.node == maker.index
