"""What changes at a node besides the tensors: its attributes, and inputs that become constants of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx import GraphProto, NodeProto, helper, numpy_helper

from onnxprune.graph import Node
from onnxprune.rules.base import Edit, SetAttr, SetInput

ADDED = "_chosen"


def apply_edits(graph: GraphProto, nodes: Iterable[Node], edits: Mapping[int, Iterable[Edit]]) -> None:
    """Apply the edits (by node index) to a copy of the graph that these nodes come from."""
    before: dict[int, list[NodeProto]] = {}
    for node in nodes:
        for edit in edits.get(node.index, ()):
            if isinstance(edit, SetAttr):
                _set_attribute(graph.node[node.index], edit)
            elif (choice := _set_input(graph, graph.node[node.index], node, edit)) is not None:
                before.setdefault(node.index, []).append(choice)
    for index in sorted(before, reverse=True):
        for proto in before[index]:
            graph.node.insert(index, proto)


def is_added(proto: NodeProto) -> bool:
    """Whether a node is not one of the original's: it puts constants into a target that is open in part."""
    return proto.op_type == "Where" and proto.output[0].endswith(ADDED)


def _set_attribute(proto: NodeProto, edit: SetAttr) -> None:
    kept = [a for a in proto.attribute if a.name != edit.name]
    if edit.value is None:
        del proto.attribute[:]
        proto.attribute.extend(kept)
        return
    found = next((a for a in proto.attribute if a.name == edit.name), None)
    new = helper.make_attribute(edit.name, edit.value)
    if found is None:
        proto.attribute.append(new)
    else:
        found.CopyFrom(new)


def _set_input(graph: GraphProto, proto: NodeProto, node: Node, edit: SetInput) -> NodeProto | None:
    """Give the node its own constant; where a part of it stays computed, the node that chooses between the two."""
    while len(proto.input) <= edit.slot:
        proto.input.append("")
    old = proto.input[edit.slot]
    name = f"{old or node.label}_cut{node.index}_{edit.slot}"
    graph.initializer.append(numpy_helper.from_array(edit.value, name))
    proto.input[edit.slot] = name
    if edit.computed is None:
        return None
    graph.initializer.append(numpy_helper.from_array(edit.computed, f"{name}_computed"))
    proto.input[edit.slot] = name + ADDED
    return helper.make_node("Where", [f"{name}_computed", old, name], [name + ADDED], f"{node.label}_cut{edit.slot}")
