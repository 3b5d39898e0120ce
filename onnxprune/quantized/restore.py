"""What is the user's as the user had it: names, notes, inputs and outputs, after tools that change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import ModelProto, ValueInfoProto

from onnxprune.formats import every_node
from onnxprune.graph import Graph
from onnxprune.tensors import copy_field, declare

# Fields that tools may change for good: all others of a model and its graph are the user's.
OF_TOOLS = frozenset({"ir_version", "opset_import", "graph", "functions"})
OF_TOOLS_IN_GRAPH = frozenset({"node", "initializer", "input", "output", "value_info"})


def restore(made: ModelProto, graph: Graph, names: Mapping[str, str]) -> ModelProto:
    """Give a model that was made of a graph back what is the user's; it is changed in place.

    Args:
        made: the model.
        graph: what it was made of.
        names: names of nodes in the working copy -> the user's.
    """
    source = graph.proto
    _put_back(made, source, OF_TOOLS)
    _put_back(made.graph, source.graph, OF_TOOLS_IN_GRAPH)
    notes = {n.output[0]: n for n in source.graph.node if n.output}
    for node in made.graph.node:
        old = notes.get(node.output[0]) if node.output else None
        if old is not None and old.op_type == node.op_type:
            _put_back(node, old, frozenset({"input", "output", "name", "op_type", "domain", "attribute"}))
        node.name = names.get(node.name, node.name)
    used = {_domain(node.domain) for node in every_node(made)} | {_domain(o.domain) for o in source.opset_import}
    imports = [o for o in made.opset_import if _domain(o.domain) in used]
    _replace(made.opset_import, imports)
    constants = {t.name for t in made.graph.initializer}
    for ours, theirs in ((made.graph.input, source.graph.input), (made.graph.output, source.graph.output)):
        kinds = {v.name: v.type.tensor_type.elem_type for v in ours}
        _replace(ours, [_typed(v, kinds[v.name]) for v in theirs if v.name in kinds and v.name not in constants])
    known = constants | {name for node in made.graph.node for name in node.output}
    _replace(made.graph.value_info, [v for v in made.graph.value_info if v.name in known])
    declare(made)
    return made


def _put_back(made: Any, source: Any, theirs: frozenset[str]) -> None:
    """All fields of a message but `theirs` from another."""
    for field, _ in list(made.ListFields()):
        if field.name not in theirs:
            made.ClearField(field.name)
    for field, value in source.ListFields():
        if field.name not in theirs:
            copy_field(made, field, value)


def _replace(field: Any, values: list[Any]) -> None:
    kept = [type(v)() for v in values]
    for copy, value in zip(kept, values, strict=True):
        copy.CopyFrom(value)
    del field[:]
    field.extend(kept)


def _typed(info: ValueInfoProto, kind: int) -> ValueInfoProto:
    """What the user says of an input or output, with the element type that it has now."""
    made = ValueInfoProto()
    made.CopyFrom(info)
    if made.type.HasField("tensor_type"):
        made.type.tensor_type.elem_type = kind
    return made


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
