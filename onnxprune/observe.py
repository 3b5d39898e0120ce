"""What a model's contractions read on the data: the consumers of its channels, and statistics of their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onnxprune.calibrate import Statistics, calibrate
from onnxprune.consumers import Consumer, consumers
from onnxprune.feeds import Feed, rows
from onnxprune.groups import Coupling
from onnxprune.instrument import Want
from onnxprune.parts import Engine
from onnxprune.recall import recall
from onnxprune.rules.base import Dim


class Seen(NamedTuple):
    """Consumers, and statistics of the channels that they contract and that may go."""

    readers: list[Consumer]
    moments: dict[Dim, Statistics]


def observe(
    coupling: Coupling,
    batches: Sequence[Feed],
    engine: Engine,
    want: Want = Want.PAIRS,
    seed: int = 0,
    keep: bool = False,
) -> Seen:
    """Run a model over inputs and collect what criteria and repairs ask for.

    Args:
        coupling: the analysis.
        batches: its inputs.
        engine: where it runs.
        want: what is collected.
        seed: of the places that are sampled.
        keep: on disk, for the next time that this model meets these inputs: not worth it for one that is on its way.

    Raises:
        DataError, ModelError: as `calibrate`.
    """
    readers = list(consumers(coupling))
    wanted = {r.x: want & ~Want.RANKS for r in readers if r.mixes and (r.units >= 0).any()}
    if Want.RANKS in want:
        for dim in {m for x in wanted if (m := maps_of(coupling, x)) is not None}:
            wanted[dim] = wanted.get(dim, Want.SUMS) | Want.RANKS
    collect = recall if keep else calibrate
    return Seen(readers, collect(coupling.graph, batches, wanted, engine, sum(map(rows, batches)), seed))


def maps_of(coupling: Coupling, dim: Dim) -> Dim | None:
    """Where channels are maps last, before or at an axis; None: nowhere since they were made.

    A map is what a channel is in a value of four axes, of which the first is the batch and two are not of size 1. A
    pooled or flattened channel was one before, a head is one of tokens and dimensions; a neuron of a transformer is
    none.

    Args:
        coupling: the analysis.
        dim: the axis of the channels.
    """
    graph, units = coupling.graph, _own(coupling, dim)
    while not _is_map(graph.shapes.get(dim.value), dim.axis):
        node = graph.producer.get(dim.value)
        before = (
            Dim(name, axis)
            for name in (node.inputs if node is not None else ())
            if name not in graph.constants
            for axis in range(len(graph.shapes.get(name) or ()))
        )
        found = next((d for d in before if _own(coupling, d) == units), None)
        if found is None:
            return None
        dim = found
    return dim


def _own(coupling: Coupling, dim: Dim) -> frozenset[int]:
    """The units along an axis."""
    units = coupling.unit_of(dim)
    return frozenset() if units is None else frozenset(np.unique(units).tolist())


def _is_map(shape: Sequence[int | str | None] | None, axis: int) -> bool:
    return shape is not None and len(shape) == 4 and axis > 0 and all(shape[a] != 1 for a in {1, 2, 3} - {axis})
