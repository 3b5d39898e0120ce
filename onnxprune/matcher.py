"""Expressions that are looked for in a graph, written as nested tuples.

    ("Mul", "x", ("Sigmoid", "x"))

is any value times its own sigmoid. A tuple is an operator and its operands; a text is any value, the same one wherever
it stands; a number is a constant of one element that is it; a set of expressions is any of them; pairs of name and
value at the end are attributes. Operands of Add and Mul are found in either order. Bounds of Clip and axes of
ReduceMean count as operands, wherever the opset has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import onnx

from onnxprune.graph import Graph, Node

Pattern: TypeAlias = "tuple[Any, ...] | frozenset[Any] | str | float"

EITHER = frozenset({"Add", "Mul"})
# Operands that older opsets have as attributes.
_BOUNDS = {"Clip": ("min", "max"), "ReduceMean": ("axes",)}


@dataclass(frozen=True)
class Match:
    """What was found: the value of each text, and the nodes."""

    values: Mapping[str, str]
    nodes: frozenset[int] = frozenset()


def find(graph: Graph, node: Node, pattern: Pattern) -> Match | None:
    """The expression that ends in a node, if nothing else reads what is computed on the way."""
    value = node.outputs[0]
    return next((m for m in _matches(graph, value, pattern, Match({})) if _closed(graph, m, value)), None)


def _matches(graph: Graph, operand: Any, pattern: Pattern, found: Match) -> Iterator[Match]:
    """Every way in which an operand is the pattern, given what the texts stand for."""
    if isinstance(pattern, frozenset):
        for each in pattern:
            yield from _matches(graph, operand, each, found)
    elif isinstance(pattern, str):
        if isinstance(operand, str) and operand and found.values.get(pattern, operand) == operand:
            yield replace(found, values={**found.values, pattern: operand})
    elif isinstance(pattern, tuple):
        node = graph.producer.get(operand) if isinstance(operand, str) else None
        if node is not None:
            yield from _operator(graph, node, pattern, found)
    elif _is_number(graph, operand, pattern):
        yield found


def _operator(graph: Graph, node: Node, pattern: tuple[Any, ...], found: Match) -> Iterator[Match]:
    op, *wanted = pattern
    attrs = wanted.pop() if isinstance(wanted[-1], tuple) and isinstance(wanted[-1][0], tuple) else ()
    operands = _operands(graph, node)
    if node.op != op or node.domain or len(operands) != len(wanted) or any(node.outputs[1:]):
        return
    if not all(_same(_attribute(graph, node, name), value) for name, value in attrs):
        return
    inside = replace(found, nodes=found.nodes | {node.index})
    for order in (operands, operands[::-1]) if op in EITHER else (operands,):
        yield from _all(graph, order, wanted, inside)


def _all(graph: Graph, operands: list[Any], wanted: list[Any], found: Match) -> Iterator[Match]:
    if not wanted:
        yield found
        return
    for each in _matches(graph, operands[0], wanted[0], found):
        yield from _all(graph, operands[1:], wanted[1:], each)


def _operands(graph: Graph, node: Node) -> list[Any]:
    """Inputs, and the attributes that later became inputs."""
    names = _BOUNDS.get(node.op, ())
    inputs: list[Any] = [name for name in node.inputs if name]
    if len(inputs) > 1 or not names:
        return inputs
    return [*inputs, *(node.attrs[name] for name in names if name in node.attrs)]


def _is_number(graph: Graph, operand: Any, number: float) -> bool:
    """Whether a constant (or an attribute) of one element is a number, as nearly as its type can say it."""
    if isinstance(operand, str):
        if operand not in graph.constants or graph.size(operand) != 1:
            return False
        operand = graph.array(operand)
    value = np.asarray(operand)
    if value.size != 1 or value.ndim > 1 or value.dtype.kind not in "fiV":
        return False
    half = value.dtype.itemsize == 2
    return bool(np.isclose(float(value.reshape(())), number, rtol=1e-3 if half else 1e-6, atol=0))


def _attribute(graph: Graph, node: Node, name: str) -> Any:
    """What an attribute is, or what it is where it is left out."""
    schema = onnx.defs.get_schema(node.op, graph.opset, node.domain)
    default = schema.attributes[name].default_value
    return node.attrs.get(name, onnx.helper.get_attribute_value(default))


def _same(value: Any, wanted: Any) -> bool:
    return bool(np.isclose(value, wanted, rtol=1e-6, atol=0)) if isinstance(value, float) else bool(value == wanted)


def _closed(graph: Graph, match: Match, end: str) -> bool:
    """Whether only the expression itself reads what it computes on the way."""
    inner = {name for node in match.nodes for name in graph.nodes[node].outputs if name} - {end}
    read = {node.index for name in inner for node, _ in graph.consumers.get(name, ())}
    return read <= match.nodes and inner.isdisjoint(graph.outputs) and inner.isdisjoint(graph.captured)
