"""Nodes taken out, put in and wired anew; what nothing reads any more goes with them.

A name keeps its meaning: every value that is still there is what it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxprune.graph import Graph
from onnxprune.tensors import Store, bring, carry, declare, fill, frame, in_proto, nodes_of

Array = NDArray[Any]


class Fresh(NamedTuple):
    """A constant that is made when it is written: its type, and what returns its value in that type."""

    data_type: int
    make: Callable[[], Array]

    def put(self, name: str, store: Store, target: TensorProto | None = None) -> TensorProto:
        """Fill an empty tensor."""
        target = TensorProto() if target is None else target
        fill(target, TensorProto(data_type=self.data_type), name, self.make(), store)
        return target


@dataclass(frozen=True, eq=False)
class Rewrite:
    """What changes of a model's main graph.

    Attributes:
        nodes: index of a node -> the nodes that stand in its place.
        constants: name -> its new value; names that the model does not have become initializers.
        names: value -> the name under which it is made and read from now on. Not for what subgraphs read.
    """

    nodes: Mapping[int, Sequence[NodeProto]] = field(default_factory=dict)
    constants: Mapping[str, Fresh] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nothing changes."""
        return not (self.nodes or self.constants or self.names)


class _Placed(NamedTuple):
    """A node of the new model and the outer values that its subgraphs read."""

    proto: NodeProto
    captures: tuple[str, ...]


def rewritten(graph: Graph, rewrite: Rewrite, store: Store = in_proto, sweep: bool = False) -> ModelProto:
    """The whole model with the changes.

    Args:
        graph: the model.
        rewrite: what changes.
        store: where the weights go; by default into the new model.
        sweep: leave out what nothing read before, too.
    """
    before = [_Placed(node.proto, node.captures) for node in graph.nodes]
    after = [
        _Placed(_renamed(proto, rewrite.names), node.captures)
        for node in graph.nodes
        for proto in rewrite.nodes.get(node.index, (node.proto,))
    ]
    outputs = [o.name for o in graph.proto.graph.output]
    needed, was = _needed(after, outputs), _needed(before, outputs)
    gone = {*graph.constants, *graph.producer} - needed
    gone = gone if sweep else gone & was
    model = frame(graph.proto)
    for tensor in graph.proto.graph.initializer:
        if tensor.name in rewrite.constants:
            rewrite.constants[tensor.name].put(tensor.name, store, model.graph.initializer.add())
        elif tensor.name not in gone:
            carry(model.graph.initializer.add(), tensor, tensor.name, graph.folder, store)
    model.graph.ClearField("node")
    for proto, _ in after:
        made = [name for name in proto.output if name]
        if made and gone.issuperset(made):
            continue
        node = model.graph.node.add()
        node.CopyFrom(proto)
        if node.op_type == "Constant" and node.output[0] in rewrite.constants:
            tensor = rewrite.constants[node.output[0]].put(node.output[0], in_proto)
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("value", tensor))
        bring(node, graph.folder, store)
    there = {name for node in model.graph.node for name in node.output} | {t.name for t in model.graph.initializer}
    for name, fresh in rewrite.constants.items():
        if name not in there:
            fresh.put(name, store, model.graph.initializer.add())
    _describe(model, graph, there)
    if sweep:
        _forget(model)
    declare(model)
    return model


def unique(wanted: str, taken: set[str]) -> str:
    """A name that is not taken yet; it then is."""
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    taken.add(name)
    return name


def names_of(graph: Graph) -> set[str]:
    """All names of values, those inside of subgraphs included."""
    found = {*graph.shapes, *graph.constants, *graph.producer, *graph.consumers}
    return found | {name for node in graph.nodes for name in _inner(node.proto)}


def _inner(node: NodeProto) -> Iterable[str]:
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from (value.name for value in (*body.input, *body.initializer))
            for child in body.node:
                yield from child.output
                yield from _inner(child)


def _renamed(proto: NodeProto, names: Mapping[str, str]) -> NodeProto:
    if not any(name in names for name in (*proto.input, *proto.output)):
        return proto
    made = NodeProto()
    made.CopyFrom(proto)
    made.input[:] = [names.get(name, name) for name in proto.input]
    made.output[:] = [names.get(name, name) for name in proto.output]
    return made


def _needed(nodes: Sequence[_Placed], outputs: Iterable[str]) -> set[str]:
    """The values that the outputs of the model depend on."""
    needed = set(outputs)
    for proto, captures in reversed(nodes):
        if not any(proto.output) or not needed.isdisjoint(proto.output):
            needed.update(proto.input, captures)
            needed.update(proto.output)
    needed.discard("")
    return needed


def _forget(model: ModelProto) -> None:
    """Functions that nothing calls go."""
    bodies = {(f.domain, f.name): f for f in model.functions}
    called: set[tuple[str, str]] = set()
    todo: list[GraphProto | FunctionProto] = [model.graph]
    while todo:
        fresh = {(node.domain, node.op_type) for node in nodes_of(todo.pop())} - called
        called |= fresh
        todo += [bodies[key] for key in fresh if key in bodies]
    kept = [function for function in model.functions if (function.domain, function.name) in called]
    del model.functions[:]
    model.functions.extend(kept)


def _describe(model: ModelProto, graph: Graph, there: set[str]) -> None:
    """Types and inputs of what is not there any more go."""
    lost = {*graph.producer, *graph.constants} - there
    for infos in (model.graph.value_info, model.graph.input):
        kept = [info for info in infos if info.name not in lost]
        if len(kept) < len(infos):
            del infos[:]
            infos.extend(kept)


def operators(model: ModelProto) -> Counter[str]:
    """How often each operator stands in the main graph; constants are no work."""
    return Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")


def counted(ops: Mapping[str, int]) -> str:
    """How often each operator, in words: the most frequent first."""
    return ", ".join(f"{count} {op}" for op, count in sorted(ops.items(), key=lambda each: (-each[1], each[0])))
