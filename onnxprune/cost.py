"""What a model costs, as a function of how many units of each group are removed: parameters, MACs, channels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune import bodies
from onnxprune.graph import Node
from onnxprune.groups import Coupling
from onnxprune.products import multiplied
from onnxprune.rules.base import Dim

Counts = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Cost:
    """A sum of terms: a factor times the widths of some classes of dims.

    `before` is the cost of the whole model; calling it gives the cost with `removed` units gone per group.
    """

    coupling: Coupling
    factors: NDArray[np.float64]
    classes: NDArray[np.intp]  # [terms, most classes in a term]; one past the last class stands for 1
    before: float
    names: Sequence[str] = ()  # of the terms: the nodes or parameters that they are of
    blocks: NDArray[np.intp] | None = None  # [classes]: widths count in multiples of these; None: as they are
    nodes: Sequence[int | None] = ()  # of the terms: the index of the node that costs that; None: it is a parameter

    def __call__(self, removed: Counts) -> float:
        """Cost with removed[g] units of group g gone."""
        return float(self.factors @ self.products(removed))

    def each(self, trials: Counts) -> NDArray[np.float64]:
        """[trials]: the cost for each row of [trials, groups] units gone."""
        return np.asarray(self.factors @ self.products(trials.T))

    def products(self, removed: Counts) -> NDArray[np.float64]:
        """[terms, ...]: the product of the widths of each term, for [groups, ...] units gone."""
        sizes = np.asarray(self.coupling.solution.sizes, dtype=float)
        widths = sizes.reshape(-1, *[1] * (removed.ndim - 1)) - self.coupling.per_unit @ removed
        if self.blocks is not None:
            blocks = self.blocks.reshape(-1, *[1] * (removed.ndim - 1))
            widths = np.ceil(widths / blocks) * blocks
        widths = np.concatenate([widths, np.ones((1, *removed.shape[1:]))])
        return np.asarray(widths[self.classes].prod(axis=1))

    def largest(self, removed: Counts, most: int = 3) -> list[tuple[str, float]]:
        """The nodes or parameters that cost most with removed[g] units of group g gone, and what they cost."""
        total: dict[str, float] = {}
        for name, value in zip(self.names, self.factors * self.products(removed), strict=bool(self.names)):
            total[name] = total.get(name, 0.0) + float(value)
        return sorted(total.items(), key=lambda item: -item[1])[:most]

    def terms(self) -> NDArray[np.float64]:
        """[terms]: the value of each term in the whole model."""
        widths = np.append(np.asarray(self.coupling.solution.sizes, dtype=float), 1.0)
        return np.asarray(self.factors * widths[self.classes].prod(axis=1))

    def movable(self) -> NDArray[np.bool_]:
        """[terms]: whether some width in a term can be cut."""
        return np.asarray((self.classes < len(self.coupling.solution.sizes)).any(axis=1))

    def per_group(self) -> NDArray[np.float64]:
        """[groups]: the cost of the terms in which a group takes part."""
        values = self.terms()
        by_class = np.zeros(len(self.coupling.solution.sizes) + 1)
        for column in self.classes.T:
            np.add.at(by_class, column, values)
        takes = self.coupling.per_unit.astype(bool).astype(float)
        return np.asarray(takes.T @ by_class[:-1])


def params(coupling: Coupling) -> Cost:
    """Elements of all parameters. A shared vector counts once for every way in which it may be cut."""
    graph = coupling.graph
    terms: list[_Term] = [(float(part.params), (), part.name, part.node.index) for part in bodies.inner(graph)]
    for name in graph.parameters:
        terms += {
            _term(coupling, name, None, 1.0, (Dim(use, a) for a in range(len(graph.constants[name].dims))))
            for use in coupling.uses[name]
        }
    return _cost(coupling, terms, float(bodies.total(graph)))


def macs(coupling: Coupling) -> Cost:
    """Multiply-accumulates of convolutions and matrix products; open sizes count as 1."""
    return _cost(
        coupling, [_term(coupling, n.label, n.index, factor, dims) for n, factor, dims in _products(coupling)], None
    )


def macs_by_node(coupling: Coupling) -> dict[int, float]:
    """Index of a node -> the multiply-accumulates that are counted for it."""
    found: dict[int, float] = {}
    for (node, *_), value in zip(_products(coupling), macs(coupling).terms().tolist(), strict=True):
        found[node.index] = found.get(node.index, 0.0) + value
    return found


def _products(coupling: Coupling) -> Iterator[tuple[Node, float, Sequence[Dim]]]:
    """Nodes that multiply and accumulate: a factor and the dims whose sizes it is multiplied with."""
    for node, spec in coupling.linears:
        yield node, spec.macs, spec.cost
    for node, dims in multiplied(coupling):  # attention
        yield node, 1.0, dims


def channels(coupling: Coupling, frozen: NDArray[np.bool_]) -> Cost:
    """Units of the groups that may be cut."""
    counts = np.bincount(coupling.group_of, minlength=len(coupling.groups)).astype(float)
    counts[frozen] = 0
    return Channels(coupling, np.zeros(0), np.zeros((0, 0), dtype=np.intp), float(counts.sum()))


class Channels(Cost):
    """A cost that counts units."""

    def __call__(self, removed: Counts) -> float:
        """Units that remain."""
        return self.before - float(removed.sum())

    def each(self, trials: Counts) -> NDArray[np.float64]:
        """Units that remain, for each row."""
        return np.asarray(self.before - trials.sum(axis=1), dtype=np.float64)


_Term = tuple[float, tuple[int, ...], str, int | None]  # factor, classes, name, node


def _term(coupling: Coupling, name: str, node: int | None, factor: float, dims: Iterable[Dim]) -> _Term:
    cut: list[int] = []
    for dim in dims:
        factor *= coupling.scale(dim)
        number = coupling.solution.class_of.get(dim)
        if number is not None and coupling.solution.unit_of[number] is not None:
            cut.append(number)
        else:
            factor *= coupling.size(dim)
    return factor, tuple(cut), name, node


def _cost(coupling: Coupling, terms: list[_Term], before: float | None) -> Cost:
    nowhere = len(coupling.solution.sizes)
    most = max((len(classes) for _, classes, _, _ in terms), default=1) or 1
    classes = np.full((len(terms), most), nowhere, dtype=np.intp)
    for row, (_, cut, _, _) in enumerate(terms):
        classes[row, : len(cut)] = cut
    factors, names, nodes = (np.array([t[0] for t in terms]), [t[2] for t in terms], [t[3] for t in terms])
    cost = Cost(coupling, factors, classes, before or 0.0, names, nodes=nodes)
    if before is None:
        cost = replace(cost, before=cost(np.zeros(len(coupling.groups), dtype=np.intp)))
    return cost
