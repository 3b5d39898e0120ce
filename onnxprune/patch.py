"""New values for weights and biases, and the model that has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.graph import Graph
from onnxprune.tensors import Store, bring, carry, fill, frame, in_proto

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Patch:
    """What changes of a model: its nodes, names and shapes stay.

    Attributes:
        weights: constant -> its new value, of the same shape.
        inputs: (first output of a node, slot) -> a constant that the node reads there from now on, alone.
    """

    weights: Mapping[str, Array] = field(default_factory=dict)
    inputs: Mapping[tuple[str, int], Array] = field(default_factory=dict)

    def __or__(self, other: Patch) -> Patch:
        """Both; the other has the last word."""
        return Patch({**self.weights, **other.weights}, {**self.inputs, **other.inputs})

    def tensor(self, graph: Graph, name: str) -> TensorProto:
        """A constant of the model as the patch has it, with its value in the tensor."""
        made = TensorProto()
        if name in self.weights:
            fill(made, graph.constants[name], name, self.weights[name].astype(graph.array(name).dtype), in_proto)
        elif name in graph.filled:
            fill(made, graph.constants[name], name, graph.array(name), in_proto)
        else:
            carry(made, graph.constants[name], name, graph.folder, in_proto)
        return made

    def rewire(self, nodes: Iterable[NodeProto], graph: Graph) -> list[TensorProto]:
        """Give nodes (copies, changed in place) the inputs of their own; returns the constants that they then read."""
        made, slots = [], dict[str, list[int]]()
        for output, slot in self.inputs:
            slots.setdefault(output, []).append(slot)
        for node in nodes:
            for slot in slots.get(node.output[0], ()) if node.output else ():
                while len(node.input) <= slot:
                    node.input.append("")
                name = f"{node.output[0]}_own_{slot}"
                dtype = helper.tensor_dtype_to_np_dtype(element_type(graph, node.input[slot] or node.input[1]))
                value = np.ascontiguousarray(self.inputs[node.output[0], slot], dtype=dtype)
                made.append(numpy_helper.from_array(value, name))
                node.input[slot] = name
        return made


NOTHING = Patch()


def element_type(graph: Graph, name: str) -> int:
    """The ONNX type of a constant, or of what Cast, Transpose... make of one."""
    while name not in graph.constants:
        node = graph.producer[name]
        if node.op == "Cast":
            return int(node.attrs["to"])
        name = node.inputs[0]
    return int(graph.constants[name].data_type)


def patched(graph: Graph, patch: Patch, store: Store = in_proto) -> ModelProto:
    """The whole model with new values.

    Args:
        graph: the model.
        patch: what changes.
        store: where the weights go; by default into the new model.
    """
    model = frame(graph.proto)
    for tensor in graph.proto.graph.initializer:
        _put(model.graph.initializer.add(), graph, patch, tensor.name, store)
    for node in model.graph.node:
        name = node.output[0] if node.output else ""
        if node.op_type == "Constant" and name in patch.weights:
            node.ClearField("attribute")
            node.attribute.append(helper.make_attribute("value", patch.tensor(graph, name)))
        bring(node, graph.folder, store)
    fresh = patch.rewire(model.graph.node, graph)
    model.graph.initializer.extend(fresh)
    if model.ir_version < 4:  # every initializer is an input then, too
        model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in fresh)
    return model


def _put(target: TensorProto, graph: Graph, patch: Patch, name: str, store: Store) -> None:
    if name in patch.weights:
        value = patch.weights[name].astype(graph.array(name).dtype)
        fill(target, graph.constants[name], name, value, store)
    else:
        carry(target, graph.constants[name], name, graph.folder, store)
