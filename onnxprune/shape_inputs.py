"""What shape inputs become after a cut: sizes that are written in the graph, or that it computes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.number import Leaf, Number, SizeOf
from onnxprune.rules.base import Dim, Edit, Index, SetAttr, SetInput
from onnxprune.shapeflow import ShapeFlow


class Cut(Protocol):
    """What a cut does to an axis."""

    def kept(self, dim: Dim) -> Index:
        """The indices that stay."""

    def touches(self, dim: Dim) -> bool:
        """Whether any index goes."""


Written = dict[tuple[int, int], dict[int, int]]  # (node, slot) -> place -> the size that is written there


def shape_inputs(coupling: Coupling, cut: Cut) -> dict[int, list[Edit]]:
    """Node index -> new values of the shape inputs that do not follow by themselves."""
    graph, flow = coupling.graph, coupling.views[0].flow
    written: Written = defaultdict(dict)
    scaled: dict[tuple[int, int], dict[int, Dim]] = defaultdict(dict)
    dims: dict[Leaf, Dim] = {}
    for _, sized in coupling.sized:
        source = sized.number.source
        if not isinstance(source, Leaf):
            continue
        dims[source] = sized.dim
        if sized.number.value in (0, -1):
            continue
        if sized.number.value is None and cut.touches(sized.dim):
            scaled[source.node, source.slot][source.place] = sized.dim
        elif cut.touches(sized.dim):
            written[source.node, source.slot][source.place] = cut.kept(sized.dim).size
        elif sized.number.value is not None and _moves(cut, sized.number):
            written[source.node, source.slot][source.place] = int(sized.number.value)
    changed: dict[tuple[int, int], SetInput] = {}
    for node, slot in dict.fromkeys((*written, *scaled)):
        value = _value(graph, flow, node, slot)
        if value is None:
            continue
        flat = value.reshape(-1)
        for index, size in written.get((node, slot), {}).items():
            flat[index] = size
        for index, dim in scaled.get((node, slot), {}).items():  # it is multiplied with something open
            flat[index] = flat[index] * cut.kept(dim).size // coupling.size(dim)
        changed[node, slot] = SetInput(slot, value)
    for target, slot, computed, constants in flow.rewritable():
        places = [
            (c, n, dims.get(Leaf(target.index, slot, i)))
            for i, (c, n) in enumerate(zip(computed, constants, strict=True))
        ]
        data = coupling.views[target.index].names[0]
        if not all(
            _copies(cut, n, dim, Dim(data, axis)) if c.value == 0 else _follows(cut, c, dim, written)
            for axis, (c, n, dim) in enumerate(places)
        ):
            value = np.array([_size(cut, n, dim) for _, n, dim in places], dtype=flow.dtype(target, slot))
            left = np.array([n.value is None for n in constants])
            changed[target.index, slot] = SetInput(slot, value, left if left.any() else None)
    edits: dict[int, list[Edit]] = defaultdict(list)
    for (node, _), edit in changed.items():
        edits[node].append(edit)
        if edit.computed is not None or 0 in edit.value:
            edits[node] += [SetAttr("allowzero", 0)] * bool(graph.nodes[node].attrs.get("allowzero"))
    return edits


def _value(graph: Graph, flow: ShapeFlow, node: int, slot: int) -> NDArray[Any] | None:
    """A constant that a node reads, or a computed part of a target that is open elsewhere, which can become one."""
    name = graph.nodes[node].inputs[slot]
    if name in graph.constants:
        return np.array(graph.array(name))
    if graph.nodes[node].op != "Concat":
        return None  # the whole input is rewritten
    numbers = flow.numbers(graph.nodes[node], slot) or ()
    return np.array([n.value for n in numbers], dtype=flow.dtype(graph.nodes[node], slot))


def _size(cut: Cut, number: Number, dim: Dim | None) -> int:
    """What a constant says of an axis after the cut; 0 and -1 say what they said before."""
    value = int(number.value or 0)
    return cut.kept(dim).size if value > 0 and dim is not None and cut.touches(dim) else value


def _copies(cut: Cut, number: Number, dim: Dim | None, source: Dim) -> bool:
    """Whether a 0, which copies the size at the same place of the input, is right where another number could stand."""
    wanted = _size(cut, number, dim)
    return wanted == 0 or wanted == cut.kept(source).size


def _follows(cut: Cut, number: Number, dim: Dim | None, written: Written) -> bool:
    """Whether the graph will compute for a number what it has to be after the cut."""
    source, touched = number.source, dim is not None and cut.touches(dim)
    if number.value is None and isinstance(source, Leaf):  # it is rewritten where it is not given a constant
        return dim is None and not _moves(cut, number)
    if number.value is not None and number.value < 0:
        return not _moves(cut, number)
    if isinstance(source, SizeOf):
        read = Dim(*source)
        return cut.kept(read).size == cut.kept(dim).size if touched and dim is not None else not cut.touches(read)
    size = cut.kept(dim).size if touched and dim is not None else number.value
    if isinstance(source, Leaf) and source.place in (there := written.get((source.node, source.slot), {})):
        return there[source.place] == size
    return not touched and not _moves(cut, number)


def _moves(cut: Cut, number: Number) -> bool:
    """Whether a size that a number is computed from changes."""
    return any(cut.touches(Dim(*size)) for size in number.sizes)
