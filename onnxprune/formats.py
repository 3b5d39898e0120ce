"""The number formats that a model computes in."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod

import onnx

from onnxprune.feeds import read_header


def formats(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> set[int]:
    """Every element type that a model's weights, values and casts have, as `TensorProto.DataType`.

    Raises:
        ModelError: the model cannot be read.
    """
    proto = read_header(model)
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    found = {t.data_type for t in proto.graph.initializer} | {v.type.tensor_type.elem_type for v in values}
    for node in every_node(proto):
        found |= {a.i for a in node.attribute if node.op_type == "Cast" and a.name == "to"}
    return found


def is_half(proto: onnx.ModelProto) -> bool:
    """Whether most of a model's weights are float16."""
    sizes: Counter[int] = Counter()
    for tensor in proto.graph.initializer:
        sizes[tensor.data_type] += prod(tensor.dims)
    return 2 * sizes[onnx.TensorProto.FLOAT16] > sum(sizes.values())


def every_node(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a model, those of its subgraphs and functions, too."""
    yield from _inside([*proto.graph.node, *(n for function in proto.functions for n in function.node)])


def _inside(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _inside(attribute.g.node)
            yield from (inner for graph in attribute.graphs for inner in _inside(graph.node))
