"""Models without some of their blocks: what a block did on average stays, as a constant.

In place of the node that makes a block's exit y stands y = x + c, under the same names; c is the mean of y - x for each
channel. All nodes keep their places in the list, so that a model with a block and one without can go on from the same
values (see `parts.Place`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.blocks import Block, adds, alive
from onnxprune.graph import Graph, Node
from onnxprune.rewrite import Fresh, Rewrite, names_of, rewritten, unique
from onnxprune.tensors import FLOATS, Store, in_proto

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
    taken = names_of(graph)
    for bypass in bypasses:
        name = unique(f"{bypass.block.exit}_mean", taken)
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
    living = [view.nodes[index] for index in alive(view, {})]
    read = {name for node in living for name in (*node.inputs, *node.captures, *node.outputs)}
    new = {name: t for name, t in view.constants.items() if name in read and graph.constants.get(name) is not t}
    constants = {name: Fresh(t.data_type, partial(numpy_helper.to_array, t)) for name, t in new.items()}
    nodes = {n.index: [n.proto] for n, old in zip(view.nodes, graph.nodes, strict=True) if n is not old}
    return rewritten(graph, Rewrite(nodes, constants), store)


def oracle(graph: Graph, bypasses: Sequence[Bypass], store: Store = in_proto) -> ModelProto:
    """The whole model, in which what blocks make counts nothing: y = x + c + 0 · y."""
    taken, nodes, constants = names_of(graph), dict[int, list[NodeProto]](), dict[str, Fresh]()
    for bypass in bypasses:
        block, node = bypass.block, graph.producer[bypass.block.exit]
        whole, none, more, mean, zero = (
            unique(f"{block.exit}_{part}", taken) for part in ("whole", "none", "more", "mean", "zero")
        )
        shift = bypass.constant(graph)
        kind = helper.np_dtype_to_tensor_dtype(shift.dtype)
        constants |= {mean: Fresh(kind, partial(np.ascontiguousarray, shift))}
        constants |= {zero: Fresh(kind, partial(np.zeros, (), shift.dtype))}
        before = copy_of(node, node.inputs).proto
        before.output[list(node.outputs).index(block.exit)] = whole
        nodes[node.index] = [
            before,
            helper.make_node("Mul", [whole, zero], [none]),
            helper.make_node("Add", [block.entry, none], [more]),
            helper.make_node("Add", [more, mean], [block.exit]),
        ]
    return rewritten(graph, Rewrite(nodes, constants), store)


def summed(node: Node, entry: str, shift: str | None) -> Node:
    """A node that makes the same value of the entry alone, or of it and a constant."""
    if shift is None:
        return copy_of(node, [entry], "Identity")
    if adds(node) and entry in node.inputs:
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


def _type(graph: Graph, block: Block) -> np.dtype[Any]:
    """Of the values around a block; where the model does not say it, of the weights in it."""
    shell = graph.shell.graph
    infos = (i for i in (*shell.value_info, *shell.input, *shell.output) if i.name in (block.entry, block.exit))
    weights = (graph.constants.get(name) for index in sorted(block.weighted) for name in graph.nodes[index].inputs)
    kinds = (*(i.type.tensor_type.elem_type for i in infos), *(t.data_type for t in weights if t is not None))
    return np.dtype(
        helper.tensor_dtype_to_np_dtype(next((kind for kind in kinds if kind in FLOATS), TensorProto.FLOAT))
    )
