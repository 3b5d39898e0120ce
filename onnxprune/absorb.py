"""Scales and shifts that a model applies to channels, taken into the contractions before or after them.

Those after a contraction go into it, whatever it is; those before contractions go into all that read them, where no
zero padding lies between a shift and a window.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.affine import CONTRACTIONS, NOTHING, Affine, Taker, affine_of, taker_of, trains
from onnxprune.folds import exclusive
from onnxprune.fusions import parts_of
from onnxprune.graph import Graph, Node
from onnxprune.rewrite import Fresh, Rewrite, names_of, unique

Array = NDArray[Any]

# ONNX Runtime puts these together itself: their scales and shifts are free, and without them it finds nothing.
WHOLE = frozenset({"Gelu", "LayerNormalization"})


@dataclass(frozen=True)
class Left:
    """A normalisation that stays, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True, eq=False)
class Taking:
    """A contraction with what it takes in.

    Attributes:
        taker: the contraction.
        x: the value that it now reads.
        y: the value that it now makes.
        before, after: what it takes in.
        nodes: the nodes after it that go.
        ahead: whether nodes before it go.
    """

    taker: Taker
    x: str
    y: str
    before: Affine = NOTHING
    after: Affine = NOTHING
    nodes: tuple[Node, ...] = ()
    ahead: bool = False

    @property
    def adds(self) -> bool:
        """Whether an Add has to follow: MatMul has no bias."""
        return self.taker.node.op == "MatMul" and bool(self.taker.shifted(self.before, self.after).any())

    @property
    def idle(self) -> bool:
        """Whether nothing would change: a MatMul with its bias."""
        plain = len(self.nodes) == 1 and bool((self.after.scale == 1).all())
        return not self.ahead and (not self.nodes or (plain and self.adds))

    @property
    def fits(self) -> bool:
        """Whether half precision can hold the new weights."""
        if self.taker.data_type != TensorProto.FLOAT16:
            return True
        bias = self.taker.shifted(self.before, self.after)
        scaled = self.taker.scaled(self.before, self.after)
        return bool(np.isfinite(scaled).all() and (np.abs(bias) <= np.finfo(np.float16).max).all())


@dataclass(frozen=True, eq=False)
class Absorbed:
    """What goes, what stays and why, and the change that does it."""

    rewrite: Rewrite
    gone: Counter[str]
    into: Counter[str]
    left: tuple[Left, ...]


def absorb(graph: Graph, ops: frozenset[str]) -> Absorbed:
    """Take nodes of some operators (BatchNormalization, Add, Sub, Mul, Div, Neg) into contractions.

    What is part of an operator that runtimes put together stays there.
    """
    found = {n.index: taker_of(graph, n) for n in graph.nodes if n.op in CONTRACTIONS and not n.domain}
    search = _Search(graph, ops, {i: taker for i, taker in found.items() if isinstance(taker, Taker)})
    search.behind()
    search.ahead()
    takings = [t for t in search.takings.values() if not t.idle]
    gone = [node for t in takings for node in t.nodes] + search.dropped
    stay = [n for n in graph.nodes if n.op == "BatchNormalization" and not n.domain and n not in gone]
    left = tuple(Left(n.label, n.op, _reason(graph, n, found)) for n in stay)
    return Absorbed(
        _rewrite(graph, takings, search.dropped),
        Counter(node.op for node in gone) - Counter(Add=sum(t.adds for t in takings)),
        Counter(t.taker.node.op for t in takings),
        left,
    )


class _Search:
    """Which contraction takes in what; `readers` follow what was decided."""

    def __init__(self, graph: Graph, ops: frozenset[str], takers: dict[int, Taker]) -> None:
        self.graph, self.ops, self.whole = graph, ops, parts_of(graph, WHOLE)
        self.fixed = {*graph.outputs, *graph.captured}
        self.takings = {i: Taking(t, t.node.inputs[0], t.node.outputs[0]) for i, t in takers.items()}
        self.dropped: list[Node] = []
        self.readers: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for value, uses in graph.consumers.items():
            self.readers[value] = [(node.index, slot) for node, slot in uses]

    def behind(self) -> None:
        """What follows a contraction, where nothing else reads what is between them."""
        made = {taking.y: index for index, taking in self.takings.items()}
        for node in self._candidates(self.graph.nodes):
            for name in {name for name in node.inputs if name in made and self._alone(name)}:
                taking = self.takings[made[name]]
                found = affine_of(self.graph, node, taking.taker.made)
                if found is None or found[0] != name:
                    continue
                after, nodes = taking.after.then(found[1]), (*taking.nodes, node)
                wider = replace(taking, y=node.outputs[0], after=after, nodes=nodes)
                if wider.fits:
                    self.takings[made[name]] = wider
                    made[wider.y] = made.pop(name)

    def ahead(self) -> None:
        """What only contractions read, the last first."""
        owners = {node.index: index for index, taking in self.takings.items() for node in taking.nodes}
        for node in self._candidates(reversed(self.graph.nodes)):
            owner = self.takings.get(owners.get(node.index, -1))
            uses = self.readers[node.outputs[0]]
            if not uses or node.outputs[0] in self.fixed or (owner is not None and not owner.idle):
                continue
            wider = [taking for index, slot in uses if (taking := self._before(index, slot, node)) is not None]
            if len(wider) < len(uses):
                continue
            self.takings |= {taking.taker.node.index: taking for taking in wider}
            if owner is not None:  # a MatMul's bias, which the next contraction takes
                self.takings[owner.taker.node.index] = Taking(owner.taker, owner.x, owner.taker.node.outputs[0])
            x = wider[0].x
            self.readers[x] = [use for use in self.readers[x] if use[0] != node.index] + uses
            self.dropped.append(node)

    def _candidates(self, nodes: Iterable[Node]) -> Iterable[Node]:
        return (n for n in nodes if n.op in self.ops and not n.domain and n.outputs and n.index not in self.whole)

    def _alone(self, value: str) -> bool:
        return len(self.readers[value]) == 1 and value not in self.fixed

    def _before(self, index: int, slot: int, node: Node) -> Taking | None:
        """The contraction with a node before it taken in, if it can be."""
        taking = self.takings.get(index)
        if taking is None or slot:
            return None
        axis = taking.taker.read
        found = affine_of(self.graph, node, axis)
        if found is None:
            return None
        shape = self.graph.shapes.get(found[0])
        if shape is None or len(shape) != axis.rank or shape[axis.place] != axis.size:  # it may grow in the node
            return None
        adds = taking.taker.node.op != "MatMul" or taking.after.shift.any()  # without an Add after it, one would follow
        if found[1].shift.any() and not (taking.taker.exposed and adds):
            return None
        wider = replace(taking, x=found[0], before=found[1].then(taking.before), ahead=True)
        return wider if wider.fits else None


def _reason(graph: Graph, node: Node, takers: Mapping[int, Taker | str]) -> str:
    """Why a normalisation stays."""
    x = node.inputs[0]
    producer = graph.producer.get(x)
    taker = None if producer is None else takers.get(producer.index)
    if trains(graph, node):
        return "it takes its statistics from the batch"
    if any(name not in graph.fixed for name in node.inputs[1:5]):
        return "its parameters are computed"
    if producer is None or taker is None:
        before = "an input" if producer is None else producer.op
        return f"{before} comes before it, and not all that read it are contractions that can take it in"
    if isinstance(taker, str):
        return f"{producer.op} comes before it, but {taker}"
    if len(graph.consumers[x]) > 1 or x in graph.outputs or x in graph.captured:
        return f"the result of the {producer.op} before it is read elsewhere, too"
    return f"the {producer.op} before it cannot hold what it makes of its weights"


def _rewrite(graph: Graph, takings: list[Taking], dropped: list[Node]) -> Rewrite:
    """The change of the model."""
    nodes: dict[int, list[NodeProto]] = {node.index: [] for node in dropped}
    constants: dict[str, Fresh] = {}
    taken = names_of(graph)
    for taking in takings:
        nodes |= {node.index: [] for node in taking.nodes}
        taker, node = taking.taker, taking.taker.node
        proto = NodeProto()
        proto.CopyFrom(node.proto)
        proto.input[0], proto.output[0] = taking.x, taking.y
        proto.input[1] = _own(graph, node, 1, taker.shape, f"{taking.y}_weight", taken)
        constants[proto.input[1]] = Fresh(taker.data_type, partial(taker.scaled, taking.before, taking.after))
        nodes[node.index] = [proto]
        shift = partial(_bias, taking)
        if taking.adds:
            name = unique(f"{taking.y}_bias", taken)
            constants[name] = Fresh(taker.data_type, shift)
            proto.output[0] = unique(f"{taking.y}_product", taken)
            nodes[node.index].append(helper.make_node("Add", [proto.output[0], name], [taking.y], f"{node.label}_bias"))
        elif node.op != "MatMul" and (taker.bias is not None or taker.shifted(taking.before, taking.after).any()):
            name = _own(graph, node, 2, (taker.made.size,), f"{taking.y}_bias", taken)
            proto.input[:] = [*proto.input[:2], name]
            constants[name] = Fresh(taker.data_type, shift)
    return Rewrite(nodes, constants)


def _bias(taking: Taking) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(taking.taker.data_type)
    return np.asarray(taking.taker.shifted(taking.before, taking.after).astype(dtype))


def _own(graph: Graph, node: Node, slot: int, shape: tuple[int, ...], wanted: str, taken: set[str]) -> str:
    """The name of a constant that this input alone reads: the one it has, where that is so already."""
    name = node.inputs[slot] if slot < len(node.inputs) else ""
    alone = name in graph.constants and name not in graph.filled and exclusive(graph, name)
    if alone and tuple(graph.constants[name].dims) == shape:
        return name
    return unique(wanted, taken)
