"""Nodes and constants that a model can do without, and the change that leaves them out."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Set
from functools import partial

from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.folding import NEVER, Made, evaluate, made_of
from onnxprune.graph import Graph, Node
from onnxprune.noops import same_as, shortcut, undone
from onnxprune.rewrite import Fresh, Rewrite
from onnxprune.tensors import FLOATS, payload

GROWTH = 1024  # elements of a result that may be larger than what it is made of


def tidied(graph: Graph, largest: int, weights: bool) -> Rewrite:
    """What to leave out.

    Args:
        graph: the model.
        largest: bytes of a result that is computed beforehand, and of what is computed on the way.
        weights: whether equal weights become one, too.
    """
    values = _computed(graph, largest)
    constants = {name: Fresh(t.data_type, partial(numpy_helper.to_array, t)) for name, t in values.items()}
    names = _twins(graph, weights)
    nodes, ends = _spared(graph, names, {*values, *names})
    _rename_ends(graph, names, nodes, ends, values.keys())
    return Rewrite(nodes, constants, {name: _last(names, name) for name in names})


def _spared(graph: Graph, names: dict[str, str], known: set[str]) -> tuple[dict[int, list[NodeProto]], dict[str, Node]]:
    """What stands in place of nodes, and the nodes that do nothing but name an output.

    Args:
        graph: the model.
        names: value -> the one that is read instead; added to.
        known: values that need no node.
    """
    fixed = {*graph.outputs, *graph.captured}
    nodes: dict[int, list[NodeProto]] = {}
    ends: dict[str, Node] = {}
    seen: dict[Hashable, Node] = {}
    for node in graph.nodes:
        outputs = [name for name in node.outputs if name]
        if outputs and known.issuperset(outputs):
            nodes[node.index] = []
            continue
        same = same_as(graph, node) or undone(graph, node, names)
        if same is not None:
            if node.outputs[0] in fixed:
                ends[node.outputs[0]] = node
            else:
                names[node.outputs[0]] = names.get(same, same)
                nodes[node.index] = []
            continue
        key = _key(node, names)
        twin = seen.setdefault(key, node) if key is not None else node
        if twin is not node and fixed.isdisjoint(outputs):
            names |= {b: a for a, b in zip(twin.outputs, node.outputs, strict=True) if b}
            nodes[node.index] = []
        elif (nearer := shortcut(graph, node, names)) is not None:
            proto = NodeProto()
            proto.CopyFrom(node.proto)
            proto.input[0] = nearer
            nodes[node.index] = [proto]
    return nodes, ends


def _rename_ends(
    graph: Graph,
    names: dict[str, str],
    nodes: dict[int, list[NodeProto]],
    ends: Mapping[str, Node],
    values: Set[str],
) -> None:
    """Let the node before take an output's name, where it has no name to keep."""
    fixed = {*graph.outputs, *graph.captured, *graph.inputs, *graph.constants, *values}
    for output, node in ends.items():
        same = same_as(graph, node) or undone(graph, node, names)
        source = _last(names, same) if same is not None else output
        if source not in fixed and output not in graph.captured and source in graph.producer:
            names[source] = output
            nodes[node.index] = []


def _last(names: Mapping[str, str], name: str) -> str:
    while name in names:
        name = names[name]
    return name


def _key(node: Node, names: Mapping[str, str]) -> Hashable | None:
    """Nodes of one key compute the same; None: this one is like no other."""
    if node.domain or node.op in NEVER or node.op == "Constant" or node.captures or not node.outputs:
        return None
    if any(a.HasField("g") or a.graphs for a in node.proto.attribute):
        return None
    attrs = tuple(sorted((a.name, a.SerializeToString(deterministic=True)) for a in node.proto.attribute))
    return node.op, attrs, tuple(_last(names, name) for name in node.inputs), tuple(map(bool, node.outputs))


def _twins(graph: Graph, weights: bool) -> dict[str, str]:
    """Constant -> an equal one before it."""
    fixed = {*graph.outputs, *graph.captured, *graph.filled}
    alike: dict[Hashable, list[str]] = defaultdict(list)
    for name, tensor in graph.constants.items():
        whole = weights or tensor.data_type not in FLOATS or not tensor.dims
        if whole and name not in fixed and name in graph.consumers and tensor.data_type != TensorProto.STRING:
            alike[tensor.data_type, tuple(tensor.dims)].append(name)
    found: dict[str, str] = {}
    for group in alike.values():
        first: dict[bytes, str] = {}
        for name in group if len(group) > 1 else ():
            digest = hashlib.sha256(payload(graph.array(name), graph.constants[name].data_type)).digest()
            if first.setdefault(digest, name) != name:
                found[name] = first[digest]
    return found


def _computed(graph: Graph, largest: int) -> dict[str, TensorProto]:
    """Values that are made of constants alone, read by nodes that are not, and small enough."""
    constants = {name: t for name, t in graph.constants.items() if name not in graph.filled}
    made = made_of([node.proto for node in graph.nodes], constants.keys())
    inside = {graph.producer[name].index for name in made}
    readers = {name: {node.index for node, _ in uses} for name, uses in graph.consumers.items()}
    wanted = [
        name
        for name in made
        if (not readers.get(name, set()) <= inside or name in graph.captured)
        and name not in graph.outputs
        and same_as(graph, graph.producer[name]) is None
        and _fits(graph, name, made[name], largest, readers)
    ]
    values = evaluate(graph.proto, wanted, made, constants, graph.folder)
    whole = {o for node in graph.nodes if values.keys() >= {*filter(None, node.outputs)} for o in node.outputs}
    return {name: t for name, t in values.items() if name in whole}


def _fits(graph: Graph, name: str, made: Made, largest: int, readers: Mapping[str, set[int]]) -> bool:
    """Whether a value, and all on the way to it, is small; a large one must not be larger than what then goes."""
    way = [_bytes(graph, value) for index in made.nodes for value in graph.nodes[index].outputs if value]
    size = _size(graph, name)
    if size is None or any(each is None or each > largest for each in way):
        return False
    freed = [constant for constant in made.constants if readers[constant] <= made.nodes]
    return size <= max(GROWTH, sum(map(graph.size, freed)))


def _size(graph: Graph, value: str) -> int | None:
    """Elements of a value, where they are known."""
    shape = graph.shapes.get(value)
    sizes = [size for size in shape or () if isinstance(size, int)]
    return None if shape is None or len(sizes) < len(shape) else math.prod(sizes)


def _bytes(graph: Graph, value: str) -> int | None:
    """Bytes of a value, where its size and its type are known."""
    size, kind = _size(graph, value), graph.types.get(value)
    return None if size is None or kind is None else size * int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
