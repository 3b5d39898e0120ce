"""What is saved where some blocks of a model are left out: blocks, MACs, parameters, milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxprune.blocks import Block, needed
from onnxprune.cost import macs_by_node
from onnxprune.errors import OptionError
from onnxprune.feeds import Feed
from onnxprune.graph import Graph, is_big, is_external
from onnxprune.groups import Coupling
from onnxprune.latency.clock import PER_NODE, events
from onnxprune.latency.operators import Operators
from onnxprune.parts import Engine
from onnxprune.tensors import copied, in_proto

RUNS, SECONDS = 24, 2.0  # of a profile


@dataclass(frozen=True, eq=False)
class Savings:
    """A cost of a model.

    Attributes:
        before: of the whole model.
        left: what remains of it without some blocks.
    """

    before: float
    left: Callable[[Sequence[Block]], float]

    def __call__(self, gone: Sequence[Block]) -> float:
        """What is saved without some blocks."""
        return self.before - self.left(gone)


def by_count(blocks: Sequence[Block]) -> Savings:
    """A run counts as many as it has."""
    every = float(sum(block.parts == 1 for block in blocks))
    return Savings(every, lambda gone: every - sum(block.parts for block in gone))


def by_macs(coupling: Coupling) -> Savings:
    """Multiply-accumulates."""
    return _by_node(coupling.graph, macs_by_node(coupling))


def by_params(coupling: Coupling) -> Savings:
    """Elements of the parameters that some node still reads."""
    graph = coupling.graph
    sizes = {name: graph.size(name) for name in graph.parameters}

    def left(gone: Sequence[Block]) -> float:
        nodes = (graph.nodes[index] for index in needed(graph, gone))
        read = {name for node in nodes for name in (*node.inputs, *node.captures, *node.outputs)}
        return float(sum(size for name, size in sizes.items() if name in read))

    return Savings(left(()), left)


def by_time(coupling: Coupling, feed: Feed, engine: Engine) -> Savings:
    """Milliseconds of operators, as the profile of a run tells them.

    Raises:
        OptionError: the provider has no such profile, or the model does not fit one message.
    """
    graph = coupling.graph
    if engine.provider not in PER_NODE or is_big(graph):
        why = "this model is over 2 GB" if engine.provider in PER_NODE else f"{engine.provider} has none"
        raise OptionError(f"drop_blocks: time is saved by a profile of operators, and {why}; go by macs= instead")
    whole = copied(graph.proto, graph.folder, in_proto) if is_external(graph) else graph.proto
    spent = Operators(coupling).spent(events(whole, feed, engine.provider, engine.threads, RUNS, SECONDS))
    return _by_node(graph, {node: sum(times) for node, times in spent.items()})


def _by_node(graph: Graph, costs: Mapping[int, float]) -> Savings:
    def left(gone: Sequence[Block]) -> float:
        return sum(costs.get(index, 0.0) for index in needed(graph, gone))

    return Savings(left(()), left)
