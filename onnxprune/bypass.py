"""Models without some of their blocks: what a block did on average stays, as a constant.

In place of the node that makes a block's exit y stands y = x + c, under the same names; c is the mean of y - x for each
channel. All nodes keep their places in the list, so that a model with a block and one without can go on from the same
values (see `parts.Place`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.blocks import SUMS, Block, alive
from onnxprune.folds import FLOATS
from onnxprune.graph import Graph, Node
from onnxprune.tensors import Store, bring, carry, declare, frame, in_proto

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Bypass:
    """A block that is left out.

    Attributes:
        block: the block.
        shift: [channels], what its exit is more than its entry instead.
    """

    block: Block
    shift: Floats

    def constant(self, graph: Graph) -> Array:
        """The shift, laid out to be added to the entry."""
        rank = len(graph.shapes[self.block.exit] or ())
        return self.shift.astype(_type(graph, self.block)).reshape(-1, *[1] * (rank - self.block.axis - 1))


def bypassed(graph: Graph, bypasses: Sequence[Bypass]) -> Graph:
    """A view of a model without some blocks: nodes and constants are those that it has then.

    It can be run in parts and written by `written`; `proto` stays that of the whole model.
    """
    nodes, constants = list(graph.nodes), dict(graph.constants)
    for bypass in bypasses:
        name = fresh(graph, f"{bypass.block.exit}_mean")
        constants[name] = numpy_helper.from_array(np.ascontiguousarray(bypass.constant(graph)), name)
        node = graph.producer[bypass.block.exit]
        nodes[node.index] = summed(node, bypass.block.entry, name if bypass.shift.any() else None)
    return view_of(graph, nodes, constants)


def written(graph: Graph, view: Graph, store: Store = in_proto) -> ModelProto:
    """The model that a view shows: nodes that are needed, and the constants that those read.

    Args:
        graph: the whole model.
        view: the same without some blocks.
        store: where the weights go; by default into the new model.
    """
    model = frame(graph.proto)
    kept = [view.nodes[index] for index in sorted(alive(view, {}))]
    read = {name for node in kept for name in (*node.inputs, *node.captures)} | set(graph.outputs)
    before = {name for node in graph.nodes for name in (*node.inputs, *node.captures)}
    del model.graph.node[:]
    for node in kept:
        proto = model.graph.node.add()
        proto.CopyFrom(node.proto)
        name = node.outputs[0] if node.outputs else ""
        if node.op == "Constant" and view.constants.get(name) is not graph.constants.get(name):
            proto.ClearField("attribute")
            value = proto.attribute.add(name="value", type=AttributeProto.TENSOR).t
            carry(value, view.constants[name], "", None, store)
        bring(proto, graph.folder, store)
    gone = set[str]()
    for tensor in graph.proto.graph.initializer:
        if tensor.name in read or tensor.name not in before:
            carry(model.graph.initializer.add(), view.constants[tensor.name], tensor.name, graph.folder, store)
        else:
            gone.add(tensor.name)
    for name in view.constants:
        if name in read and name not in graph.constants:
            carry(model.graph.initializer.add(), view.constants[name], name, None, store)
    made = {name for node in kept for name in node.outputs}
    gone |= {name for node in graph.nodes for name in node.outputs if name not in made}
    for infos in (model.graph.value_info, model.graph.input):
        left = [info for info in infos if info.name not in gone]
        del infos[:]
        infos.extend(left)
    declare(model)
    return model


def oracle(graph: Graph, bypasses: Sequence[Bypass], store: Store = in_proto) -> ModelProto:
    """The whole model, in which what blocks make counts nothing: y = x + c + 0 · y."""
    model = frame(graph.proto)
    for tensor in graph.proto.graph.initializer:
        carry(model.graph.initializer.add(), tensor, tensor.name, graph.folder, store)
    behind: dict[int, list[NodeProto]] = {}
    for bypass in bypasses:
        block, index = bypass.block, graph.producer[bypass.block.exit].index
        whole, nothing, mean, zero = (
            fresh(graph, f"{block.exit}_{part}") for part in ("whole", "none", "mean", "zero")
        )
        shift = bypass.constant(graph)
        for name, value in ((mean, shift), (zero, np.zeros((), shift.dtype))):
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        outputs = model.graph.node[index].output
        outputs[list(outputs).index(block.exit)] = whole
        behind[index] = [
            helper.make_node("Mul", [whole, zero], [nothing]),
            helper.make_node("Add", [block.entry, nothing], [f"{nothing}_more"]),
            helper.make_node("Add", [f"{nothing}_more", mean], [block.exit]),
        ]
    nodes = [node for i, proto in enumerate(model.graph.node) for node in (proto, *behind.get(i, ()))]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    for proto in model.graph.node:
        bring(proto, graph.folder, store)
    declare(model)
    return model


def summed(node: Node, entry: str, shift: str | None) -> Node:
    """A node that makes the same value of the entry alone, or of it and a constant."""
    if shift is None:
        return copy_of(node, [entry], "Identity")
    if node.op in SUMS and not node.domain and entry in node.inputs and len(node.inputs) == 2:
        return copy_of(node, [name if name == entry else shift for name in node.inputs])
    return copy_of(node, [entry, shift], "Add")


def copy_of(node: Node, inputs: Sequence[str], op: str | None = None) -> Node:
    """A node with other inputs, and another operator if that is asked for."""
    proto = NodeProto()
    proto.CopyFrom(node.proto)
    del proto.input[:]
    proto.input.extend(inputs)
    if op is not None:
        proto.op_type, proto.domain = op, ""
        proto.ClearField("attribute")
    captures = node.captures if op is None else ()
    return Node(node.index, proto, proto.op_type, "" if op else node.domain, tuple(inputs), node.outputs, captures)


def view_of(graph: Graph, nodes: list[Node], constants: Mapping[str, TensorProto]) -> Graph:
    """A model with other nodes and constants; `proto` stays as it is."""
    shapes = {**graph.shapes, **{name: tuple(t.dims) for name, t in constants.items()}}
    return replace(graph, nodes=nodes, constants=dict(constants), shapes=shapes, _small={})


def fresh(graph: Graph, name: str) -> str:
    """A name like this one that no value has."""
    taken = graph.producer.keys() | graph.constants.keys() | set(graph.inputs)
    while name in taken:
        name += "_"
    return name


def _type(graph: Graph, block: Block) -> np.dtype[Any]:
    """Of the values around a block; where the model does not say it, of the weights in it."""
    shell = graph.shell.graph
    infos = (i for i in (*shell.value_info, *shell.input, *shell.output) if i.name in (block.entry, block.exit))
    weights = (graph.constants.get(name) for index in sorted(block.weighted) for name in graph.nodes[index].inputs)
    kinds = (*(i.type.tensor_type.elem_type for i in infos), *(t.data_type for t in weights if t is not None))
    return np.dtype(
        helper.tensor_dtype_to_np_dtype(next((kind for kind in kinds if kind in FLOATS), TensorProto.FLOAT))
    )
