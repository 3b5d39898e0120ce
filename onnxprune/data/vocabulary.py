"""How many entries the tables have that a model looks its integer inputs up in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

from onnxprune.feeds import read_header

PASSING = {"Cast", "Identity", "DequantizeLinear"}  # what may lie between a table or an input and its look-up
FUSED = "EmbedLayerNormalization"  # ids, segments, table of words, of positions, of segments


def vocabularies(model: Any) -> dict[str, int]:
    """Input name -> size of the smallest table that it is an index into; inputs that are none are left out.

    Args:
        model: a path, a `ModelProto` or its bytes; of a session nothing is known.
    """
    if hasattr(model, "get_inputs"):
        return {}
    graph = read_header(model).graph
    before = {n.output[0]: n.input[0] for n in graph.node if n.op_type in PASSING and n.input and n.output}
    entries = {t.name: t.dims[0] for t in graph.initializer if t.dims}
    entries |= {n.output[0]: t.dims[0] for n in graph.node for t in _constants(n) if t.dims}
    inputs = {i.name for i in graph.input}
    sizes: dict[str, int] = {}
    for node in graph.node:
        for table, index in _lookups(node):
            size, name = entries.get(_origin(table, before), 0), _origin(index, before)
            if size and name in inputs:
                sizes[name] = min(size, sizes.get(name, size))
    return sizes


def _lookups(node: onnx.NodeProto) -> Iterator[tuple[str, str]]:
    """Tables and the indices into their first axis."""
    if node.op_type == "Gather" and all(a.i == 0 for a in node.attribute if a.name == "axis"):
        yield node.input[0], node.input[1]
    if node.op_type == FUSED and len(node.input) > 4:
        yield from ((node.input[2], node.input[0]), (node.input[4], node.input[1]))


def _constants(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    if node.op_type == "Constant":
        yield from (a.t for a in node.attribute if a.name == "value")


def _origin(name: str, before: dict[str, str]) -> str:
    while name in before:
        name = before[name]
    return name
