"""Shapes that ONNX's inference over the whole model does not find, with the help of the traced numbers.

One pass in the order of the nodes. Where a shape has an axis of which nothing is known, the node is inferred again by
itself from what is known by then of its inputs: sizes that are computed, and multiples of open sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import Graph, Node
from onnxprune.shapeflow import ShapeFlow
from onnxprune.shapes import Shape, infer, shapes_of
from onnxprune.sizes import Size, bound, canonical, clamped, declared, parse, product, quotient, summed, total
from onnxprune.symbolic import infer_symbolically

# Names that ONNX's inference gives to sizes that it does not know.
GIVEN = "unk__"
MANY = 8  # open sizes whose sum nothing is equal to, or divides


def resolve(graph: Graph) -> tuple[Graph, ShapeFlow]:
    """The graph with all shapes that can be known, and the numbers traced through its shape arithmetic."""
    shell = infer(infer_symbolically(graph.shell)) if _needs_symbolic(graph) else graph.shell
    shapes = {**graph.shapes, **{n: s for n, s in shapes_of(shell).items() if n not in graph.constants}}
    graph = replace(graph, shell=shell, shapes={n: _canonical(s, declared) for n, s in shapes.items()})
    pass_ = _Pass(graph)
    for node in graph.nodes:
        pass_.visit(node)
    pass_.flow.finish()
    return graph, pass_.flow


class _Pass:
    """The state of the one pass: what ONNX's names for unknown sizes turn out to be."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._shapes: dict[str, Shape] = graph.shapes  # type: ignore[assignment]  # made by `resolve`, for this
        infos = (*graph.shell.graph.value_info, *graph.shell.graph.input, *graph.shell.graph.output)
        self._types = {i.name: i.type.tensor_type.elem_type for i in infos if i.type.tensor_type.elem_type}
        self._types |= {n: t.data_type for n, t in graph.constants.items()}
        self._found: dict[str, Size] = {}
        self._atoms = {a for n in graph.inputs for s in graph.shapes.get(n) or () if s for a in parse(s).atoms}
        self._imports = list(graph.proto.opset_import)
        self._versions = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in self._imports}
        self.flow = ShapeFlow(graph, self._types)

    def visit(self, node: Node) -> None:
        for name in node.outputs:
            if name and (shape := self._shapes.get(name)) is not None:
                self._shapes[name] = tuple(self._found.get(s, s) if isinstance(s, str) else s for s in shape)
        if any(name and self._vague(self._shapes.get(name)) for name in node.outputs):
            self._infer(node)
        for name in node.outputs:
            if name and (shape := self._shapes.get(name)) is not None and self._vague(shape):
                self._shapes[name] = tuple(f"{name}[{axis}]" if s is None else s for axis, s in enumerate(shape))
                self._found |= {s: s for s in shape if isinstance(s, str) and s.startswith(GIVEN)}
        self.flow.visit(node)

    def _vague(self, shape: Shape) -> bool:
        """Whether nothing is known of some axis: no name, or one that is not made of the inputs' names."""
        return shape is None or any(
            s is None or (isinstance(s, str) and s not in self._found and not self._named(s)) for s in shape
        )

    def _named(self, size: str) -> bool:
        return self._atoms.issuperset(parse(size).atoms)

    def _infer(self, node: Node) -> None:
        for name, shape in zip(node.outputs, self._node(node), strict=False):
            before = self._shapes.get(name) if name else None
            if not name or shape is None or (before is not None and len(before) != len(shape)):
                continue
            sizes = [
                known if isinstance(known, int) or size is None else size
                for known, size in zip(before or [None] * len(shape), shape, strict=True)
            ]
            for known, size in zip(before or (), sizes, strict=False):
                if isinstance(known, str) and known.startswith(GIVEN) and size is not None:
                    self._found[known] = size
            self._shapes[name] = tuple(sizes)

    def _node(self, node: Node) -> Sequence[Shape]:
        own = _OWN.get(node.op) if not node.domain else None
        try:
            shape = None if own is None else own(self, node)
        except (IndexError, KeyError, ValueError, TypeError, ZeroDivisionError):
            return []  # not as its schema says
        if shape is not None:
            return [shape]
        version = self._versions.get(node.domain)
        if version is None or not onnx.defs.has(node.op, version, node.domain):
            return []
        names = [n for n in node.inputs if n]
        if any(self._shapes.get(n) is None for n in names):
            return []
        types = {
            n: helper.make_tensor_type_proto(self._types.get(n, TensorProto.FLOAT), self._shapes[n]) for n in names
        }
        data = {n: t for slot, n in enumerate(node.inputs) if n and (t := self._data(node, slot)) is not None}
        schema = onnx.defs.get_schema(node.op, version, node.domain)
        try:
            made = onnx.shape_inference.infer_node_outputs(
                schema, node.proto, types, data, opset_imports=self._imports, ir_version=self._graph.proto.ir_version
            )
        except (
            onnx.shape_inference.InferenceError,
            onnx.checker.ValidationError,
            RuntimeError,
            ValueError,
            TypeError,
        ):
            return []  # what stays without a shape is locked
        for name, kind in made.items():
            self._types.setdefault(name, kind.tensor_type.elem_type)
        return [_canonical(_inferred(made[n])) if n in made else None for n in node.outputs]

    def _data(self, node: Node, slot: int) -> TensorProto | None:
        """A small input whose values are all known."""
        found = self.flow.original(node, slot)
        if found is None or any(n.value is None for n in found):
            return None
        name = node.inputs[slot]
        if name in self._graph.constants:
            return self._graph.constants[name]
        dtype = helper.tensor_dtype_to_np_dtype(self._types.get(name, TensorProto.INT64))
        values = np.array([n.value for n in found], dtype=dtype)
        shape = self._shapes.get(name)
        return numpy_helper.from_array(values.reshape(() if shape == () else -1))

    def sizes(self, node: Node, slot: int) -> list[Size | None] | None:
        """The numbers of a shape input as sizes."""
        found = self.flow.original(node, slot)
        return None if found is None else [n.size for n in found]

    def shape(self, node: Node, slot: int) -> Shape:
        """The shape of an input, where no axis of it is unknown."""
        found = self._shapes.get(node.inputs[slot])
        return None if found is None or None in found else found


def _inferred(kind: onnx.TypeProto) -> Shape:
    """An inferred shape. Unlike in what a model declares, a size of 0 is one."""
    if not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims)


def _canonical(shape: Shape, name: Callable[[str], Size] = canonical) -> Shape:
    if shape is None or all(isinstance(s, int) for s in shape):
        return shape
    return tuple(name(s) if isinstance(s, str) and not s.startswith(GIVEN) else s for s in shape)


def _reshape(now: _Pass, node: Node) -> Shape:
    source, target = now._shapes.get(node.inputs[0]), now.sizes(node, 1)
    if target is None:
        return None
    sizes: list[Size | None] = list(target)
    if not node.attrs.get("allowzero", 0):
        sizes = [source[a] if s == 0 and source and a < len(source) else s for a, s in enumerate(sizes)]
    if sizes.count(-1) == 1:
        rest = sizes.index(-1)
        others = [s for i, s in enumerate(sizes) if i != rest]
        sizes[rest] = None
        if source is not None and None not in source and None not in others:
            sizes[rest] = quotient(*(product(s for s in side if s is not None) for side in (source, others)))
    return tuple(sizes)


def _expand(now: _Pass, node: Node) -> Shape:
    source, target = now.shape(node, 0), now.sizes(node, 1)
    if source is None or target is None or any(s is None for s in target):
        return None
    length = max(len(source), len(target))
    pairs = zip([1] * (length - len(source)) + list(source), [1] * (length - len(target)) + target, strict=True)
    # An open size in the target may also be 1 where the source has more: only a 1 in the source tells.
    return tuple(t if s == 1 else s if t in (1, s) else None for s, t in pairs)


def _filled(now: _Pass, node: Node) -> Shape:
    found = now.sizes(node, 0)
    return None if found is None else tuple(found)


def _range(now: _Pass, node: Node) -> Shape:
    parts = [now.sizes(node, slot) for slot in range(3)]
    if any(p is None or len(p) != 1 or p[0] is None for p in parts):
        return None
    start, end, step = (p[0] for p in parts if p is not None)
    return (total(end, start, -1),) if step == 1 and start is not None and end is not None else None


def _slice(now: _Pass, node: Node) -> Shape:
    source = now.shape(node, 0)
    if source is None or "starts" in node.attrs or len(node.inputs) < 3:
        return None
    starts, ends = now.sizes(node, 1), now.sizes(node, 2)
    axes = now.sizes(node, 3) if len(node.inputs) > 3 and node.inputs[3] else list(range(len(starts or ())))
    steps = now.sizes(node, 4) if len(node.inputs) > 4 and node.inputs[4] else [1] * len(starts or ())
    if starts is None or ends is None or axes is None or steps is None:
        return None
    sizes: list[Size | None] = list(source)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
        if not isinstance(axis, int):
            return None
        sizes[axis] = _kept(source[axis], start, end, step)
    return tuple(sizes)


def _kept(size: Size | None, start: Size | None, end: Size | None, step: Size | None) -> Size | None:
    """How many indices a slice keeps, where that does not depend on how an open size compares with a bound."""
    if size is None or start is None or end is None or step != 1:
        return None
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(size)[start:end])
    whole = end == size or (isinstance(end, int) and end >= 2**31 - 1)
    if whole and isinstance(start, int):
        return total(size, start, -1) if start >= 0 else None
    if isinstance(end, int) and end < 0 and start == 0:
        return total(size, end)
    return clamped(size, start, end) if isinstance(end, str) and (start == 0 or isinstance(start, str)) else None


def _tile(now: _Pass, node: Node) -> Shape:
    source, repeats = now.shape(node, 0), now.sizes(node, 1)
    if source is None or repeats is None:
        return None
    return tuple(None if s is None or r is None else product([s, r]) for s, r in zip(source, repeats, strict=True))


def _concat(now: _Pass, node: Node) -> Shape:
    parts = [now.shape(node, slot) for slot in range(len(node.inputs))]
    if any(p is None for p in parts):
        return None
    known = [p for p in parts if p is not None]
    axis = node.attrs["axis"] % len(known[0])
    parts_of = [s for p in known if (s := p[axis]) is not None]
    joined = summed(parts_of) if sum(isinstance(s, str) for s in parts_of) <= MANY else None
    # Elsewhere the parts agree: what one of them knows holds for all.
    others = [next((p[a] for p in known if isinstance(p[a], int)), known[0][a]) for a in range(len(known[0]))]
    return tuple(joined if a == axis else s for a, s in enumerate(others))


def _flatten(now: _Pass, node: Node) -> Shape:
    source = now.shape(node, 0)
    if source is None:
        return None
    axis = node.attrs.get("axis", 1)
    sizes = [s for s in source if s is not None]
    return (product(sizes[:axis]), product(sizes[axis:]))


def _resize(now: _Pass, node: Node) -> Shape:
    source, target = now.shape(node, 0), now.sizes(node, 3)
    return tuple(target) if source is not None and target is not None and len(source) == len(target) else None


def _broadcast(now: _Pass, node: Node) -> Shape:
    """Sizes that agree, or are one. What a slice keeps at most of a size is that size, or one, where they meet."""
    parts = [now.shape(node, slot) for slot in range(len(node.inputs))]
    if any(p is None for p in parts):
        return None
    rank = max(len(p) for p in parts if p is not None)
    columns = zip(*((1,) * (rank - len(p)) + p for p in parts if p is not None), strict=True)
    return tuple(_joint({s for s in column if s != 1 and s is not None}) for column in columns)


def _joint(sizes: set[Size]) -> Size | None:
    known = [s for s in sizes if isinstance(s, int)]
    whole = {s for s in sizes if bound(s) not in sizes}
    return 1 if not sizes else known[0] if known else whole.pop() if len(whole) == 1 else None


_OWN = {
    **dict.fromkeys(["Add", "Sub", "Mul", "Div", "Where", "And", "Or", "Equal", "Less", "Greater", "Pow"], _broadcast),
    "Concat": _concat,
    "Flatten": _flatten,
    "Resize": _resize,
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _filled,
    "Range": _range,
    "Slice": _slice,
    "Tile": _tile,
}


def _needs_symbolic(graph: Graph) -> bool:
    """Whether ONNX Runtime's own operators hide shapes that ONNX's inference cannot know."""
    known = graph.shapes
    return any(n.domain == "com.microsoft" and known.get(o) is None for n in graph.nodes for o in n.outputs if o)
