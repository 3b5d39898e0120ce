"""What subgraphs (of If, Loop, Scan) read from outside, which tools forget, and nodes in an order that heeds it."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from onnx import AttributeProto, GraphProto, NodeProto


class Place(NamedTuple):
    """An input of a node inside: its inputs, and which one."""

    inputs: Any
    slot: int

    @property
    def value(self) -> str:
        """What is read."""
        return str(self.inputs[self.slot])


def captured(node: NodeProto) -> set[str]:
    """The outer values that a node's subgraphs read."""
    return {place.value for body in bodies(node) for place in _outer(body)}


def rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Let a node's subgraphs read other outer values, in place."""
    for place in [place for body in bodies(node) for place in _outer(body)]:
        place.inputs[place.slot] = names.get(place.value, place.value)


def bodies(node: NodeProto) -> list[GraphProto]:
    """A node's subgraphs."""
    owners = [[a.g] if a.type == AttributeProto.GRAPH else list(a.graphs) for a in node.attribute]
    return [graph for graphs in owners for graph in graphs]


def in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Each node after what it and its subgraphs read; what need not move stays where it is."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    waiting: list[int] = []
    readers: dict[int, list[int]] = defaultdict(list)
    for index, node in enumerate(nodes):
        before = {makers[name] for name in {*node.input, *captured(node)} if name in makers}
        waiting.append(len(before))
        for maker in before:
            readers[maker].append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    found: list[NodeProto] = []
    while ready:
        index = heapq.heappop(ready)
        found.append(nodes[index])
        for reader in readers[index]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    return found


def _outer(graph: GraphProto) -> Iterator[Place]:
    """Where a subgraph, and those inside it, read what is not its own."""
    own = {v.name for v in (*graph.input, *graph.initializer)} | {name for node in graph.node for name in node.output}
    for node in graph.node:
        inner = [place for body in bodies(node) for place in _outer(body)]
        places = (*(Place(node.input, slot) for slot in range(len(node.input))), *inner)
        yield from (place for place in places if place.value and place.value not in own)
