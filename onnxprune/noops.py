"""Nodes that change nothing, and detours that a node may leave out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxprune.graph import SMALL, Graph, Node
from onnxprune.shapes import Shape

END = 2**31 - 1  # what exporters write for the end of an axis, at least


def same_as(graph: Graph, node: Node) -> str | None:
    """The input that the first output of a node equals, whatever the data; None if it may differ."""
    rule = _RULES.get(node.op)
    if rule is None or node.domain or not node.inputs or any(node.outputs[1:]):
        return None
    return rule(graph, node)


def shortcut(graph: Graph, node: Node, names: Mapping[str, str]) -> str | None:
    """What a Reshape may read instead of the result of another one.

    Args:
        graph: the model.
        node: any node.
        names: value -> the value that is read instead.
    """
    if node.op != "Reshape" or node.domain or len(node.inputs) < 2 or node.inputs[1] not in graph.constants:
        return None
    before = graph.producer.get(names.get(node.inputs[0], node.inputs[0]))
    if before is None or before.domain or before.op not in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return None
    copies = (graph.array(node.inputs[1]) == 0).any()  # sizes of what it reads
    return None if copies else names.get(before.inputs[0], before.inputs[0])


def undone(graph: Graph, node: Node, names: Mapping[str, str]) -> str | None:
    """The value that a Transpose brings back: what another Transpose read."""
    if node.op != "Transpose" or node.domain:
        return None
    before = graph.producer.get(names.get(node.inputs[0], node.inputs[0]))
    if before is None or before.op != "Transpose" or before.domain:
        return None
    first, second = before.attrs.get("perm"), node.attrs.get("perm")
    if first is None or second is None:
        back = first is second
    else:
        back = [first[axis] for axis in second] == list(range(len(first)))
    return names.get(before.inputs[0], before.inputs[0]) if back else None


def _identity(graph: Graph, node: Node) -> str | None:
    return node.inputs[0]


def _dropout(graph: Graph, node: Node) -> str | None:
    """Its mask is known to be unread: it has one output."""
    if graph.opset < 7 and not node.attrs.get("is_test", 0):
        return None
    mode = node.inputs[2] if len(node.inputs) > 2 else ""
    if mode and (mode not in graph.constants or graph.array(mode).any()):
        return None
    return node.inputs[0]


def _cast(graph: Graph, node: Node) -> str | None:
    return node.inputs[0] if graph.types.get(node.inputs[0]) == node.attrs["to"] else None


def _transpose(graph: Graph, node: Node) -> str | None:
    order = node.attrs.get("perm")
    return node.inputs[0] if order is not None and order == sorted(order) else None


def _same_shape(graph: Graph, node: Node) -> str | None:
    """Reshape and its kin keep the order: the same sizes, all but one of them known, say that nothing moves."""
    x, y = graph.shapes.get(node.inputs[0]), graph.shapes.get(node.outputs[0])
    if x is None or y is None or len(x) != len(y):
        return None
    known = [isinstance(a, int) and a > 0 and a == b for a, b in zip(x, y, strict=True)]
    return node.inputs[0] if known.count(False) <= (0 if node.op == "Expand" else 1) else None


def _slice(graph: Graph, node: Node) -> str | None:
    """All of every axis."""
    parts = [graph.array(n) if n in graph.constants else None for n in node.inputs[1:]]
    if graph.opset < 10:
        parts = [np.array(node.attrs[name]) for name in ("starts", "ends")]
    if len(parts) < 2 or parts[0] is None or parts[1] is None:
        return None
    if len(parts) > 3 and node.inputs[4] and (parts[3] is None or (parts[3] != 1).any()):
        return None
    whole = (parts[0] == 0).all() and (parts[1] >= END).all()
    same = _all_known(graph.shapes.get(node.inputs[0]), graph.shapes.get(node.outputs[0]))
    return node.inputs[0] if whole or same else None


def _all_known(x: Shape, y: Shape) -> bool:
    """Whether two shapes are the same without doubt."""
    return x is not None and x == y and all(isinstance(size, int) for size in x)


def _single(graph: Graph, node: Node) -> str | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _neutral(graph: Graph, node: Node) -> str | None:
    """Plus 0, times 1."""
    number = 0 if node.op in ("Add", "Sub") else 1
    for slot in (1, 0) if node.op in ("Add", "Mul") else (1,):
        name, x = node.inputs[slot], node.inputs[1 - slot]
        if graph.opset < 7 or name not in graph.constants or graph.size(name) > SMALL:
            continue
        shape, out = graph.shapes.get(x), graph.shapes.get(node.outputs[0])
        if shape is None or out is None or len(shape) != len(out) or len(graph.constants[name].dims) > len(shape):
            continue
        kept = graph.size(name) == 1 or _all_known(shape, out)  # it may make x larger
        if kept and (graph.array(name) == number).all():
            return x
    return None


def _pad(graph: Graph, node: Node) -> str | None:
    if "pads" in node.attrs:
        return None if any(node.attrs["pads"]) else node.inputs[0]
    constant = len(node.inputs) > 1 and node.inputs[1] in graph.constants
    return node.inputs[0] if constant and not graph.array(node.inputs[1]).any() else None


_RULES: dict[str, Callable[[Graph, Node], str | None]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Slice": _slice,
    "Pad": _pad,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"), _same_shape),
    **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), _single),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _neutral),
}
