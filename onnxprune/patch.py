"""New values for weights and biases, and the model that has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.graph import Graph
from onnxprune.tensors import Store, bring, carry, declare, fill, frame, in_proto

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Patch:
    """What changes of a model: its nodes, names and shapes stay.

    Attributes:
        weights: constant -> its new value, of the same shape.
        inputs: (first output of a node, slot) -> a constant, in its type, that the node reads there from now on, alone.
    """

    weights: Mapping[str, Array] = field(default_factory=dict)
    inputs: Mapping[tuple[str, int], Array] = field(default_factory=dict)

    def __or__(self, other: Patch) -> Patch:
        """Both; the other has the last word."""
        return Patch({**self.weights, **other.weights}, {**self.inputs, **other.inputs})

    def put(self, target: TensorProto, graph: Graph, name: str, store: Store = in_proto) -> TensorProto:
        """Fill an empty tensor with a constant of the model, as the patch has it."""
        source = graph.constants[name]
        if name in self.weights:
            dtype = helper.tensor_dtype_to_np_dtype(source.data_type)
            fill(target, source, name, self.weights[name].astype(dtype, copy=False), store)
        elif name in graph.filled:
            fill(target, source, name, graph.array(name), store)
        else:
            carry(target, source, name, graph.folder, store)
        return target

    def rewire(self, nodes: Iterable[NodeProto]) -> list[TensorProto]:
        """Give nodes (copies, changed in place) the inputs of their own; returns the constants that they then read."""
        made, slots = [], dict[str, list[int]]()
        for output, slot in self.inputs:
            slots.setdefault(output, []).append(slot)
        for node in nodes:
            for slot in slots.get(node.output[0], ()) if node.output else ():
                while len(node.input) <= slot:
                    node.input.append("")
                name = f"{node.output[0]}_own_{slot}"
                made.append(numpy_helper.from_array(np.ascontiguousarray(self.inputs[node.output[0], slot]), name))
                node.input[slot] = name
        return made


NOTHING = Patch()


def patched(graph: Graph, patch: Patch, store: Store = in_proto) -> ModelProto:
    """The whole model with new values.

    Args:
        graph: the model.
        patch: what changes.
        store: where the weights go; by default into the new model.
    """
    model = frame(graph.proto)
    for tensor in graph.proto.graph.initializer:
        patch.put(model.graph.initializer.add(), graph, tensor.name, store)
    for node in model.graph.node:
        name = node.output[0] if node.output else ""
        if node.op_type == "Constant" and name in patch.weights:
            node.ClearField("attribute")
            node.attribute.append(helper.make_attribute("value", patch.put(TensorProto(), graph, name)))
        bring(node, graph.folder, store)
    model.graph.initializer.extend(patch.rewire(model.graph.node))
    declare(model)
    return model
