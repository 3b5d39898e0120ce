"""Where the numbers in shape arithmetic come from.

Exporters compute the target of a Reshape or the bounds of a Slice from `Shape`, `Gather`, `Div`, `Concat` and
constants. Each number of such a small tensor is traced to its source, so that a cut knows which constant to rewrite,
which number follows by itself because it is read off a tensor that is cut too, and which sizes must not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, helper

from onnxprune.graph import Graph, Node
from onnxprune.sizes import Instance, Size, applied, canonical, factor, parse, product, quotient, total

LONGEST = 64  # elements; longer tensors are data, not shapes
NUMERIC = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL})


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
    """One element: its value where it is known, its source (None: computed), and the sizes that it depends on.

    A value that is open and has a leaf for its source is that leaf times something that no cut changes.
    `symbol` is the canonical text of a value that is open (see `sizes`), None where nothing is known of it.
    """

    value: int | float | None
    source: Leaf | SizeOf | None = None
    sizes: frozenset[SizeOf] = frozenset()
    symbol: str | None = None

    @property
    def size(self) -> Size | None:
        """The value as a size, known or open."""
        if self.value is None:
            return self.symbol
        return int(self.value) if math.isfinite(self.value) and self.value == int(self.value) else None


@dataclass(frozen=True)
class Used:
    """A size that `node` computes with: it must not change."""

    size: SizeOf
    node: Node


# (op, input slot) where a number that follows or can be rewritten is understood by the op's rule.
SINKS = frozenset(
    {("Reshape", 1), ("Expand", 1), ("Resize", 3), ("Slice", 1), ("Slice", 2), ("Split", 1), ("Tile", 1), ("Pad", 1)}
    | {("ConstantOfShape", 0)}
)
# Of these, the ones whose numbers need not be known: the rule says of each how it follows.
FOLLOWS = frozenset({("Reshape", 1), ("Expand", 1), ("Resize", 3), ("ConstantOfShape", 0)})

Numbers = tuple[Number, ...]


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
        return self._read(node, slot)

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

    def visit(self, node: Node) -> None:
        """Trace one node, all of whose inputs have been traced."""
        if node.op == "Shape" and not node.domain:
            self._traced[node.outputs[0]] = self._sizes(node)
            return
        step = _STEPS.get(node.op) if not node.domain else None
        result = step(self, node) if step else None
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
        made = _run(node, self._graph.opset, feeds)
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
        return tuple(
            Number(size, read, frozenset({read}))
            if isinstance(size, int)
            else Number(None, read, frozenset({read}), size)
            for size, read in ((shape[a], SizeOf(name, a)) for a in axes)
        )


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


def _written_by(source: Leaf | SizeOf | None, maker: Node) -> bool:
    return isinstance(source, Leaf) and source.node == maker.index


Step = Callable[[ShapeFlow, Node], Numbers | None]


def _same(flow: ShapeFlow, node: Node) -> Numbers | None:
    return flow._read(node, 0)


def _cast(flow: ShapeFlow, node: Node) -> Numbers | None:
    if node.attrs["to"] in (TensorProto.INT64, TensorProto.INT32):
        return _each(int, partial(_rounded, "floor"), keep=True)(flow, node)
    return _each(float, lambda size: size)(flow, node)


def _each(function: Callable[[Any], int | float], open_: Callable[[Size], Size], keep: bool = False) -> Step:
    """Element by element; `keep`: an integer that stays what it is keeps its source."""

    def step(flow: ShapeFlow, node: Node) -> Numbers | None:
        data = flow._read(node, 0)
        if data is None:
            return None
        return tuple(
            n
            if keep and not isinstance(n.value, float) and "ratio(" not in (n.symbol or "")
            else Number(_finite(function, n.value), None, n.sizes)
            if n.value is not None
            else _number(n.sizes, None if n.symbol is None else open_(n.symbol))
            for n in data
        )

    return step


def _arithmetic(function: Callable[[Any, Any], Any], open_: Callable[[Size, Size], Size | None]) -> Step:
    def step(flow: ShapeFlow, node: Node) -> Numbers | None:
        a, b = flow._read(node, 0), flow._read(node, 1)
        if a is None or b is None or (len(a) != len(b) and 1 not in (len(a), len(b))):
            return None
        length = max(len(a), len(b))
        pairs = zip(a * (length // len(a)), b * (length // len(b)), strict=True)
        return tuple(
            Number(_finite(function, p.value, q.value), None, p.sizes | q.sizes)
            if p.value is not None and q.value is not None
            else _number(
                p.sizes | q.sizes, open_(p.size, q.size) if p.size is not None and q.size is not None else None
            )
            for p, q in pairs
        )

    return step


def _multiplied(flow: ShapeFlow, node: Node) -> Numbers | None:
    """A constant times something open can be rewritten as well as what it is written for."""
    plain = _arithmetic(lambda a, b: a * b, lambda a, b: product([a, b]))(flow, node)
    factors = [flow._read(node, slot) or () for slot in (0, 1)]
    if plain is None or len(plain) != 1 or plain[0].symbol is None:
        return plain
    leaves = [p[0].source for p in factors if p[0].value is not None and isinstance(p[0].source, Leaf)]
    return (replace(plain[0], source=leaves[0]),) if len(leaves) == 1 else plain


def _finite(function: Callable[..., Any], *values: int | float) -> int | float | None:
    """A function's value; None where it, or one of its arguments, is no finite number."""
    try:
        result: int | float | None = function(*values)
    except (OverflowError, ValueError):
        return None
    return None if result is None or not math.isfinite(result) else result


def _number(depends: frozenset[SizeOf], size: Size | None) -> Number:
    """A computed number, of which something may be known all the same (x - x, say)."""
    return Number(size, None, depends) if isinstance(size, int) else Number(None, None, depends, size)


def _divide(a: int | float, b: int | float) -> int | float | None:
    if b == 0:
        return None
    return int(a / b) if isinstance(a, int) and isinstance(b, int) else a / b


def _divided(flow: ShapeFlow, node: Node) -> Numbers | None:
    """Integers are divided without a rest; what is left of floats is rounded later, or not at all."""
    parts = [flow._read(node, slot) or () for slot in (0, 1)]
    name = "ratio" if any(isinstance(n.value, float) or "ratio(" in (n.symbol or "") for p in parts for n in p) else ""
    known = flow.types.get(node.inputs[0])
    name = name or ("ratio" if known in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16) else "floor")

    def open_(a: Size, b: Size) -> Size | None:
        exact = quotient(a, b)
        return exact if exact is not None else None if b == 0 else applied(name, a, b)

    return _arithmetic(_divide, open_)(flow, node)


def _rounded(name: str, size: Size) -> Size:
    """A ratio rounded; anything else is whole already."""
    if not isinstance(size, str) or "ratio(" not in size:
        return size
    found = parse(size)
    simple = found.factor == 1 and len(found.atoms) == 1 and found.atoms[0].startswith("ratio(")
    return canonical(size.replace("ratio(", f"{name}(", 1)) if simple else applied(name, size)


def _remainder(a: Size, b: Size) -> Size:
    return 0 if quotient(a, b) is not None else applied("mod", a, b)


def _order_free(name: str) -> Callable[[Size, Size], Size]:
    return lambda a, b: applied(name, *sorted((a, b), key=str)) if a != b else a


def _equal(flow: ShapeFlow, node: Node) -> Numbers | None:
    """Whether a size is -1 is how exporters ask if it is to stay; no open size is."""

    def open_(a: Size, b: Size) -> Size | None:
        if a == b:
            return 1
        least = min((s for s in (a, b) if isinstance(s, int)), default=0)
        return 0 if least < 0 and parse(b if isinstance(a, int) else a).factor > 0 else None

    return _arithmetic(lambda a, b: int(a == b), open_)(flow, node)


def _where(flow: ShapeFlow, node: Node) -> Numbers | None:
    parts = [flow._read(node, slot) for slot in range(3)]
    length = max((len(p) for p in parts if p is not None), default=0)
    if any(p is None or len(p) not in (1, length) for p in parts):
        return None
    condition, yes, no = (p * (length // len(p)) for p in parts if p is not None)
    return tuple(
        Number(None, None, c.sizes | a.sizes | b.sizes) if c.value is None else (a if c.value else b)
        for c, a, b in zip(condition, yes, no, strict=True)
    )


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
    "Reshape": _same,
    "Equal": _equal,
    "Where": _where,
    "Squeeze": _same,
    "Unsqueeze": _same,
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Add": _arithmetic(lambda a, b: a + b, total),
    "Sub": _arithmetic(lambda a, b: a - b, lambda a, b: total(a, b, -1)),
    "Mul": _multiplied,
    "Div": _divided,
    "Min": _arithmetic(min, _order_free("min")),
    "Max": _arithmetic(max, _order_free("max")),
    "Mod": _arithmetic(lambda a, b: a % b if b else None, _remainder),
    "Neg": _each(lambda v: -v, lambda size: product([-1, size])),
    "Floor": _each(lambda v: float(math.floor(v)), partial(_rounded, "floor")),
    "Ceil": _each(lambda v: float(math.ceil(v)), partial(_rounded, "ceil")),
}
