"""From the times of whole networks of many widths to what every operator takes, as a function of its widths.

An operator's time is a sum of products of its widths, with coefficients that are not negative: a part that is always
there, parts for what is read and written, a part for the products. Widths count in whole blocks: that is the staircase.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from onnxprune.cost import Cost, Counts
from onnxprune.groups import Coupling
from onnxprune.latency.operators import MOST, Operators, made

Floats = NDArray[np.float64]
Parts = Mapping[int, Sequence[float]]  # node -> milliseconds in the original: of each product of its widths

LEAST_MS = 1e-3  # a shorter time is not known more exactly than one of this length


@dataclass(frozen=True, eq=False)
class Reading:
    """One network that was run.

    Attributes:
        gone: units gone of every group.
        total: milliseconds of a run.
        pace: milliseconds of the original at the time: machines slow down and recover.
        ms: node -> milliseconds; empty where the provider tells only the whole.
        kernels: node -> number of kernels that these are of.
    """

    gone: Counts
    total: float
    pace: float
    ms: Mapping[int, float] = field(default_factory=dict)
    kernels: Mapping[int, int] = field(default_factory=dict)

    def at(self, pace: float) -> Reading:
        """What would have been measured where the original takes `pace`."""
        factor = pace / self.pace
        return replace(self, total=self.total * factor, pace=pace, ms={n: ms * factor for n, ms in self.ms.items()})

    def without(self, each: float) -> Reading:
        """Without so many milliseconds of every kernel."""
        return replace(self, ms={n: max(ms - each * self.kernels[n], 0.0) for n, ms in self.ms.items()})


def latency(coupling: Coupling, parts: Parts, block: int) -> Cost:
    """The cost, in milliseconds, that a fit amounts to."""
    found = _basis(Operators(coupling), parts, block)
    ms = np.concatenate([np.zeros(0), *(np.asarray(parts[node], dtype=float) for node in parts)])
    factors = ms / found.products(_nothing(coupling))
    return replace(found, factors=factors, before=float(ms.sum()))


def by_node(coupling: Coupling, readings: Sequence[Reading], block: int) -> dict[int, list[float]]:
    """Fit each node to its own times."""
    nodes, operators = sorted({node for reading in readings for node in reading.ms}), Operators(coupling)
    shares, first = _shares(_basis(operators, nodes, block), readings), 0
    found = {}
    for node in nodes:
        rows = shares[first : first + operators.parts(node)]
        first += len(rows)
        times = np.array([reading.ms.get(node, 0.0) for reading in readings])
        weight = 1 / np.sqrt(np.maximum(times, LEAST_MS))
        found[node] = nnls(rows.T * weight[:, None], times * weight)[0].tolist()
    return found


def by_kind(coupling: Coupling, readings: Sequence[Reading], block: int) -> dict[int, list[float]]:
    """Fit the whole's times, where no more is known.

    Operators of a kind share two rates: milliseconds for each product of their widths, and for each element that they
    make. One more part does not change with widths.
    """
    graph, operators = coupling.graph, Operators(coupling)
    nodes = [n.index for n in graph.nodes if any(v in graph.shapes for v in n.outputs)]
    shares = _shares(_basis(operators, nodes, block), readings)
    macs: dict[int, float] = {}
    for maker, spec in coupling.linears:
        macs[maker.index] = macs.get(maker.index, 0.0) + spec.macs * prod(map(coupling.size, spec.cost))
    ends = np.cumsum([operators.parts(node) for node in nodes]).tolist()
    kinds: dict[tuple[str, str], Floats] = {}  # [parts]: how much of each part is of the kind
    for node, end in zip(nodes, ends, strict=True):
        op, classes, outputs = graph.nodes[node].op, operators.classes(node), operators.made(node)
        elements = float(prod(n for n in graph.shapes.get(made(graph.nodes[node])) or () if isinstance(n, int)))
        written = _subsets(classes).index(tuple(number for number in classes if number in outputs))
        if node in macs:
            kinds.setdefault((op, "work"), np.zeros(len(shares)))[end - 1] = macs[node]
        kinds.setdefault((op, "made"), np.zeros(len(shares)))[end - operators.parts(node) + written] = elements
    total = np.array([reading.total for reading in readings])
    features = np.stack([np.ones(len(readings)), *(of @ shares for of in kinds.values())], axis=1) / total[:, None]
    scale = np.maximum(np.linalg.norm(features, axis=0), np.finfo(float).tiny)
    rates = nnls(features / scale, np.ones(len(total)))[0] / scale
    ms = sum((rate * of for rate, of in zip(rates[1:], kinds.values(), strict=True)), np.zeros(len(shares)))
    ms[:1] += rates[0]
    return {node: part.tolist() for node, part in zip(nodes, np.split(ms, ends[:-1]), strict=True)} if nodes else {}


def _subsets(classes: Sequence[int]) -> list[tuple[int, ...]]:
    """Which widths are multiplied in each part: none, each alone, ..., all."""
    return [s for size in range(len(classes) + 1) for s in combinations(classes, size)]


def _basis(operators: Operators, nodes: Iterable[int], block: int) -> Cost:
    """A cost with a term for every part of every node, all factors 1."""
    coupling = operators.coupling
    nowhere = len(coupling.solution.sizes)
    parts = [(node, subset) for node in nodes for subset in _subsets(operators.classes(node))]
    classes = np.full((len(parts), MOST), nowhere, dtype=np.intp)
    for row, (_, subset) in enumerate(parts):
        classes[row, : len(subset)] = subset
    names = [coupling.graph.nodes[node].label for node, _ in parts]
    return Cost(coupling, np.ones(len(parts)), classes, float(len(parts)), names, _blocks(coupling, block))


def _blocks(coupling: Coupling, block: int) -> NDArray[np.intp]:
    """[classes]: the block of channels; heads, say, do not come in blocks."""
    wide = np.asarray(coupling.solution.sizes) >= block
    return np.where(coupling.channels & wide, block, 1).astype(np.intp)


def _shares(basis: Cost, readings: Sequence[Reading]) -> Floats:
    """[parts, readings]: the products of widths, as shares of the original's."""
    gone = np.stack([reading.gone for reading in readings], axis=1)
    whole = basis.products(_nothing(basis.coupling))
    return np.asarray(basis.products(gone) / whole[:, None])


def _nothing(coupling: Coupling) -> Counts:
    return np.zeros(len(coupling.groups), dtype=np.intp)
