"""How much worse the answers get when one group is made narrower and repaired: measured, without labels.

At a few widths of every group, the part of the model after it runs with the group's weights masked and its consumers
repaired by the covariance of their inputs. Between the measured widths the damage follows the group's own error curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibrate import Statistics
from onnxprune.consumers import Consumer
from onnxprune.curves import Curve
from onnxprune.divergence import Distance
from onnxprune.feeds import Feed
from onnxprune.folds import weighed
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.parts import Engine
from onnxprune.patch import Patch
from onnxprune.rules.base import Dim
from onnxprune.solve import ridge
from onnxprune.surgery import masked
from onnxprune.trials import Trial, distances

Floats = NDArray[np.float64]
Index = NDArray[np.intp]

STRENGTH = 1e-2  # of the ridge, of the mean variance


def repaired(reader: Consumer, gone: NDArray[np.bool_], stats: Statistics, method: str) -> Patch:
    """A consumer that does without some of its channels: the others write them as the covariance says.

    Args:
        reader: the consumer.
        gone: [channels of its input], true where they are taken away.
        stats: of its input.
        method: "bias": the channels count as their means alone.
    """
    mean = stats.first / max(stats.rows, 1)
    if method == "bias" or stats.second is None:  # of too many channels: nothing is known of how they vary together
        return _without(reader, gone, mean)
    w, covariance = reader.weights, stats.covariance
    each = w.shape[2]
    new, offset = np.zeros_like(w), reader.offset.copy().reshape(len(w), -1)
    for i in range(len(w)):
        span = slice(i * each, (i + 1) * each)
        kept = np.flatnonzero(~gone[span])
        if not kept.size:
            offset[i] += w[i].sum(axis=2) @ mean[span]
            continue
        if kept.size == each:
            new[i] = w[i]
            continue
        rest = w[i][:, kept]
        sigma = covariance[span, span][:, kept]
        rows, prior = (np.moveaxis(v, 2, 1).reshape(-1, v.shape[1]) for v in (w[i], rest))  # one for output and tap
        mapped = ridge(sigma[kept], rows @ sigma, prior, STRENGTH)
        rest = np.moveaxis(mapped.reshape(len(rest), -1, kept.size), 2, 1)
        new[i][:, kept] = rest
        offset[i] += w[i].sum(axis=2) @ mean[span] - rest.sum(axis=2) @ mean[span][kept]
    return reader.patch(new, offset.reshape(-1) if reader.bias is not None else None)


def _without(reader: Consumer, gone: NDArray[np.bool_], mean: Floats) -> Patch:
    """A consumer for which channels count as their means alone; their weights become zero, in the type they have."""
    w, bias = reader.matrix, None
    if reader.bias is not None:
        rows = w.reshape(-1, *w.shape[2:])
        bias = reader.offset + weighed(rows, reader.groups, np.flatnonzero(gone), mean[gone])
    return reader.patch(np.where(gone.reshape(len(w), 1, -1, 1), 0, w), bias)


@dataclass(frozen=True, eq=False)
class Gauge:
    """Measures damage.

    Attributes:
        coupling: the model as it is now.
        readers: its consumers.
        moments: statistics of their inputs.
        distance: from the answers of the original.
        engine: where parts run.
        method: the repair that is measured with.
    """

    coupling: Coupling
    readers: Sequence[Consumer]
    moments: Mapping[Dim, Statistics]
    distance: Distance
    engine: Engine
    method: str = "full"

    def measure(
        self,
        batches: Sequence[Feed],
        curves: Sequence[Curve],
        widths: Sequence[Sequence[int]],
        tell: Callable[[str], None],
    ) -> list[dict[int, float]]:
        """For every group: units gone -> distance of the answers.

        Args:
            batches: the inputs on which it is measured.
            curves: the order in which units go.
            widths: for each group, the numbers of units gone at which it is measured.
            tell: called with a line of progress.
        """
        asked = [(g, count) for g in range(len(curves)) for count in widths[g]]
        trials = [Trial(self.start(g), partial(self._narrower, curves[g], count)) for g, count in asked]
        found: list[dict[int, float]] = [{} for _ in curves]
        lost = distances(self.coupling.graph, batches, trials, self.distance, self.engine, tell)
        for (g, count), damage in zip(asked, lost, strict=True):
            found[g][count] = damage
        return found

    def patch(self, removed: NDArray[np.bool_]) -> Patch:
        """The model without some units: masked, and their consumers repaired.

        Args:
            removed: [units].
        """
        patch = masked(self.coupling, removed)
        padded = np.append(removed, False)  # the last one stands for locked channels
        for reader in self.readers:
            gone = padded[reader.units]
            if self.method != "none" and reader.mixes and reader.x in self.moments and gone.any():
                patch |= repaired(reader, gone, self.moments[reader.x], self.method)
        return patch

    def _narrower(self, curve: Curve, count: int) -> Patch:
        """The model without the first `count` units of a group."""
        removed = np.zeros(self.coupling.units, dtype=bool)
        removed[curve.order[:count]] = True
        return self.patch(removed)

    def start(self, group: int) -> int:
        """The first node that computes with a parameter of a group."""
        members = {m.constant for m in self.coupling.groups[group].members}
        return min((i for name in members for i in _users(self.coupling.graph, name)), default=0)


def _users(graph: Graph, name: str) -> Iterator[int]:
    """Nodes that read a constant, or what is made of it alone."""
    for node, _ in graph.consumers.get(name, ()):
        if node.outputs and node.outputs[0] in graph.fixed:
            for made in node.outputs:
                yield from _users(graph, made)
        else:
            yield node.index
