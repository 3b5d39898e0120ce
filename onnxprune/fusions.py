"""Operators that exporters write as several, and what they are called in the opsets that have them."""

from __future__ import annotations

from collections.abc import Callable, Set
from math import pi, sqrt
from typing import Any, NamedTuple, TypeAlias

from onnx import NodeProto, helper

from onnxprune.graph import Graph, Node
from onnxprune.matcher import Match, Pattern, find
from onnxprune.tensors import FLOATS

Name: TypeAlias = Callable[[str], str]  # a new name for a value
Make: TypeAlias = "Callable[[Graph, Match, str, Name], list[NodeProto]]"  # nothing: it does not fit after all


class Fusion(NamedTuple):
    """An operator, the opsets (from, to) that it is for, the expression that it stands for, and its nodes."""

    op: str
    since: int
    until: int
    pattern: Pattern
    make: Make


class Fused(NamedTuple):
    """A fusion that was found: the nodes that stand for those in `gone`."""

    op: str
    node: Node
    gone: frozenset[int]
    made: list[NodeProto]


def fused(graph: Graph, node: Node, name: Name, skip: frozenset[str] = frozenset()) -> Fused | None:
    """What the expression that ends in a node is, if it is one of ours and not to be skipped."""
    if len(node.outputs) != 1 or graph.types.get(node.outputs[0]) not in FLOATS:
        return None
    for fusion in FUSIONS:
        if fusion.op in skip or not fusion.since <= graph.opset <= fusion.until:
            continue
        match = find(graph, node, fusion.pattern)
        if match is None or _rank(graph, match.values["x"]) != _rank(graph, node.outputs[0]):
            continue
        if made := fusion.make(graph, match, node.outputs[0], name):
            made[-1].name = node.proto.name
            return Fused(fusion.op, node, match.nodes, made)
    return None


def parts_of(graph: Graph, ops: Set[str]) -> set[int]:
    """The nodes of expressions that stand for some operators, whether or not the opset has them."""
    wanted = [fusion.pattern for fusion in FUSIONS if fusion.op in ops]
    matches = (find(graph, node, pattern) for node in graph.nodes for pattern in wanted if len(node.outputs) == 1)
    return {index for match in matches if match is not None for index in match.nodes}


def _rank(graph: Graph, value: str) -> int | None:
    shape = graph.shapes.get(value)
    return None if shape is None else len(shape)


def _unary(op: str, **attrs: Any) -> Make:
    def make(graph: Graph, match: Match, y: str, name: Name) -> list[NodeProto]:
        return [helper.make_node(op, [match.values["x"]], [y], **attrs)]

    return make


def _hard_gate(graph: Graph, match: Match, y: str, name: Name) -> list[NodeProto]:
    x, gate = match.values["x"], name(f"{y}_gate")
    return [*_hard_sigmoid(graph, match, gate, name), helper.make_node("Mul", [x, gate], [y])]


def _norm(graph: Graph, match: Match, y: str, name: Name) -> list[NodeProto]:
    """LayerNormalization over the last axis, where scale and bias are vectors along it."""
    values = match.values
    weights = [values[part] for part in ("scale", "bias") if part in values]
    width = (graph.shapes.get(values["x"]) or (None,))[-1:]
    epsilon = values["epsilon"]
    if any(graph.shapes.get(w) != width for w in weights) or epsilon not in graph.constants or graph.size(epsilon) != 1:
        return []
    number = float(graph.array(epsilon).reshape(()))
    return [helper.make_node("LayerNormalization", [values["x"], *weights], [y], axis=-1, epsilon=number)]


_hard_sigmoid = _unary("HardSigmoid", alpha=1 / 6, beta=0.5)
_NEVER = 10**9

_clip: Pattern = ("Clip", ("Add", "x", 3.0), 0.0, 6.0)
_gate: Pattern = frozenset({("Div", _clip, 6.0), ("Mul", _clip, 1 / 6)})
_gated: Pattern = ("Mul", "x", _clip)
_scaled: frozenset[Pattern] = frozenset({("Div", _gated, 6.0), ("Mul", _gated, 1 / 6)})
_hard: Pattern = ("HardSigmoid", "x", (("alpha", 1 / 6), ("beta", 0.5)))
_hard_swish: Pattern = _scaled | {("Mul", "x", _gate), ("Mul", "x", _hard)}

_erf: Pattern = ("Add", ("Erf", frozenset({("Div", "x", sqrt(2)), ("Mul", "x", sqrt(0.5))})), 1.0)
_cube: Pattern = frozenset({("Pow", "x", 3.0), ("Mul", "x", ("Mul", "x", "x"))})
_tanh: Pattern = ("Add", ("Tanh", ("Mul", ("Add", "x", ("Mul", _cube, 0.044715)), sqrt(2 / pi))), 1.0)


def _halved(part: Pattern) -> Pattern:
    """x * 0.5 * part, in every order."""
    return frozenset(
        {("Mul", ("Mul", "x", part), 0.5), ("Mul", ("Mul", "x", 0.5), part), ("Mul", "x", ("Mul", part, 0.5))}
    )


_mean = (("keepdims", 1),)
_off: Pattern = ("Sub", "x", ("ReduceMean", "x", -1.0, _mean))
_square: Pattern = frozenset({("Pow", _off, 2.0), ("Mul", _off, _off)})
_normal: Pattern = ("Div", _off, ("Sqrt", ("Add", ("ReduceMean", _square, -1.0, _mean), "epsilon")))

# The larger ones first.
FUSIONS = (
    Fusion("LayerNormalization", 17, _NEVER, ("Add", ("Mul", _normal, "scale"), "bias"), _norm),
    Fusion("LayerNormalization", 17, _NEVER, ("Mul", _normal, "scale"), _norm),
    Fusion("Gelu", 20, _NEVER, _halved(_erf), _unary("Gelu")),
    Fusion("Gelu", 20, _NEVER, _halved(_tanh), _unary("Gelu", approximate="tanh")),
    Fusion("HardSwish", 14, _NEVER, _hard_swish, _unary("HardSwish")),
    Fusion("HardSigmoid", 7, 13, _scaled, _hard_gate),
    Fusion("HardSigmoid", 7, _NEVER, _gate, _hard_sigmoid),
    Fusion("Swish", 24, _NEVER, ("Mul", "x", ("Sigmoid", "x")), _unary("Swish")),
)
