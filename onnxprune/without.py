"""Models without some blocks, cut or not: how they are made, which layers that reaches, what it does to the answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxprune.blocks import alive
from onnxprune.bypass import Bypass, bypassed, written
from onnxprune.divergence import Distance
from onnxprune.feeds import Feed
from onnxprune.graph import Graph, is_external
from onnxprune.groups import Coupling
from onnxprune.parts import Engine
from onnxprune.plan import kept_indices
from onnxprune.rules.base import Dim
from onnxprune.trials import Trial, distances
from onnxprune.writing import passing

Floats = NDArray[np.float64]


def cut_down(coupling: Coupling, removed: NDArray[np.bool_], bypasses: Sequence[Bypass], graph: Graph) -> list[Bypass]:
    """Blocks of a model as they are in another that lacks some of its units.

    Args:
        coupling: the analysis of the model.
        removed: [units], those that the other one lacks.
        bypasses: of the model.
        graph: the other one.
    """
    found = []
    for bypass in bypasses:
        block = bypass.block
        kept = kept_indices(coupling, removed, Dim(block.exit, block.axis))
        made = (coupling.graph.nodes[index].outputs[0] for index in block.weighted)
        layers = frozenset(graph.producer[name].index for name in made if name in graph.producer)
        here = replace(block, nodes=frozenset(), weighted=layers)
        found.append(Bypass(here, bypass.shift if kept is None else bypass.shift[kept]))
    return found


def without(graph: Graph, bypasses: Sequence[Bypass]) -> Graph:
    """A model without some blocks; all values that stay keep their names."""
    if not bypasses:
        return graph
    return passing(partial(written, graph, bypassed(graph, bypasses)), is_external(graph))


def behind(view: Graph, layers: Collection[int], values: Collection[str], deep: bool = True) -> frozenset[str]:
    """First outputs of the layers that something else comes to than before.

    Args:
        view: the model.
        layers: indices of nodes that contract with weights.
        values: that have changed.
        deep: also through other layers.
    """
    changed, found, living = set(values), set[str](), alive(view, {})
    for node in view.nodes:
        if node.index in living and not changed.isdisjoint((*node.inputs, *node.captures)):
            layer = node.index in layers
            found.update(node.outputs[:1] if layer else ())
            if deep or not layer:
                changed.update(filter(None, node.outputs))
    return frozenset(found)


def touched(coupling: Coupling, bypasses: Sequence[Bypass], deep: bool = True) -> frozenset[str]:
    """First outputs of the layers that read something else without some blocks; as `behind`."""
    view = bypassed(coupling.graph, bypasses)
    return behind(view, {node.index for node, _ in coupling.linears}, {b.block.exit for b in bypasses}, deep)


def divergences(
    now: Graph,
    bypasses: Sequence[Bypass],
    batches: Sequence[Feed],
    distance: Distance,
    engine: Engine,
    tell: Callable[[str], None],
) -> Floats:
    """[bypasses]: how far the answers are off without each block; what comes before it runs once for all of them."""
    makers = [now.producer.get(bypass.block.entry) for bypass in bypasses]
    starts = [0 if maker is None else maker.index + 1 for maker in makers]  # what may read the entry
    trials = [Trial(at, view=partial(bypassed, now, [one])) for at, one in zip(starts, bypasses, strict=True)]
    return np.array(distances(now, batches, trials, distance, engine, tell, "blocks"))
