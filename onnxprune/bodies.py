"""Parameters inside the bodies of If, Loop and Scan: the analysis does not enter them, but they count."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from onnxprune.graph import NOT_PARAMETERS, Graph, Node


@dataclass(frozen=True)
class Inner:
    """A parameter inside a body; `node` is the node of the main graph that the body belongs to."""

    name: str
    dims: tuple[int, ...]
    node: Node

    @property
    def params(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def reason(self) -> str:
        """Why it cannot be cut."""
        return f"inside the body of {self.node.op}"


def inner(graph: Graph) -> tuple[Inner, ...]:
    """All parameters inside bodies, under names of their own: the branches of an If may use one name twice."""
    found = [(path, part) for node in graph.nodes for path, part in _inside(node)]
    twice = Counter(part.name for _, part in found)
    return tuple(
        replace(part, name=f"{path}/{part.name}") if twice[part.name] > 1 or part.name in graph.constants else part
        for path, part in found
    )


def total(graph: Graph) -> int:
    """Number of parameters of a model, bodies included."""
    return sum(graph.size(name) for name in graph.parameters) + sum(part.params for part in inner(graph))


def _inside(node: Node) -> Iterator[tuple[str, Inner]]:
    for path, body in _bodies(node.proto, node.label):
        for tensor in _tensors(body):
            if tensor.data_type not in NOT_PARAMETERS:
                yield path, Inner(tensor.name, tuple(tensor.dims), node)


def _bodies(node: NodeProto, label: str) -> Iterator[tuple[str, GraphProto]]:
    """The bodies of a node, and theirs; each with the way to it."""
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
            path = f"{label}/{attribute.name}"
            yield path, body
            for child in body.node:
                yield from _bodies(child, f"{path}/{child.name or child.op_type}")


def _tensors(body: GraphProto) -> Iterator[TensorProto]:
    """Initializers, and what Constant nodes hold under the name of their output."""
    yield from body.initializer
    for node in body.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.type == AttributeProto.TENSOR:
                yield TensorProto(name=node.output[0], data_type=attribute.t.data_type, dims=attribute.t.dims)
