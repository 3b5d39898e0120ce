"""From clusters of units to a smaller model: tie what makes them, sum what reads them, cut all but one of each.

The tied model, of the size of the original, has the centroid of a cluster in all its units. These are equal then, and
that they are is not believed but found by the analysis behind `lossless`: only what it proves is put together. So the
merged model computes the tied model's function, whatever lies between makers and readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxprune import graph as graphs
from onnxprune.clusters import Clusters
from onnxprune.coupling import couple
from onnxprune.groups import Coupling
from onnxprune.lossless import joined
from onnxprune.outcome import describe
from onnxprune.patch import NOTHING, patched
from onnxprune.plan import make_plan
from onnxprune.rules.base import Index
from onnxprune.steps import Context, Outcome, Proof
from onnxprune.surgery import cut
from onnxprune.ties import Makers, norms

QUANTISED = "some of its parameters are integers, whose scales its channels do not share"
UNMADE = "no weights make its channels"
MIXED = "what reads or makes its channels is not known to treat them alike, or its weights cannot be summed"


class Merging:
    """The merges of one model."""

    def __init__(self, coupling: Coupling, context: Context) -> None:
        """Nothing is merged yet."""
        self.coupling, self.context = coupling, context
        self.norms = {dim: norm for norm in norms(coupling) for dim in norm.dims}

    def able(self) -> tuple[dict[int, Makers], dict[str, str]]:
        """Group -> what makes it, where its units can be merged; name of another group -> why they cannot.

        It is tried: in a model in which all units of a group are tied, they are found to be equal, or not.
        """
        coupling = self.coupling
        makers = {
            g: Makers(coupling, group, self.norms) for g, group in enumerate(coupling.groups) if group.units.size > 1
        }
        left = {
            coupling.groups[g].name: QUANTISED if each.members else UNMADE
            for g, each in makers.items()
            if not each.able
        }
        makers = {g: each for g, each in makers.items() if each.able}
        if not makers:
            return makers, left
        one = {
            g: Clusters(np.zeros(n, dtype=np.intp), np.ones(n)) for g in makers if (n := coupling.groups[g].units.size)
        }
        tied = couple(graphs.load(self._tied(one, False), self.context.shapes), coupling.options)
        into, _ = joined(tied, tied.group_of.astype(np.intp))
        mine = _same(tied, coupling)
        equal = np.zeros(coupling.units, dtype=np.intp)
        equal[mine] = mine[into]
        for g in list(makers):
            if (equal[coupling.groups[g].units] != equal[coupling.groups[g].units[0]]).any():
                left[coupling.groups[g].name] = MIXED
                del makers[g]
        return makers, left

    def carried_out(self, label: Index, clusters: Mapping[int, Clusters], variance: bool) -> tuple[Outcome, int]:
        """Tie, sum and cut; and the number of units that went.

        Args:
            label: [units], the cluster of each.
            clusters: group -> those of its units.
            variance: as for `Makers.tied`.
        """
        coupling, context = self.coupling, self.context
        oracle = self._tied(clusters, variance)
        tied = couple(graphs.load(oracle, context.shapes), coupling.options)
        mine = _same(tied, coupling)
        into, folds = joined(tied, label[mine])
        gone = into != np.arange(into.size)
        plan = make_plan(tied, gone, folds)
        model = context.make(lambda store: cut(tied, plan, gone, store))
        removed = np.zeros(coupling.units, dtype=bool)
        removed[mine] = gone
        notes = describe(coupling, removed)
        proof = Proof(lambda: oracle, what="the tied model")
        plan = make_plan(coupling, removed, folds)  # what becomes of each channel, for those who repair the rest
        return Outcome(model, notes, plan, replays=False, proof=proof), int(gone.sum())

    def _tied(self, clusters: Mapping[int, Clusters], variance: bool) -> ModelProto | Path:
        """The model of the same size whose units are what they are on average."""
        coupling, patch = self.coupling, NOTHING
        for g, each in clusters.items():
            patch = Makers(coupling, coupling.groups[g], self.norms, patch).tied(each, variance)
        return self.context.make(lambda store: patched(coupling.graph, patch, store), "tied.onnx")


def _same(other: Coupling, coupling: Coupling) -> Index:
    """[units of the other]: the units of an analysis of the same model with other weights."""
    found = np.zeros(other.units, dtype=np.intp)
    for dim in coupling.solution.class_of:
        here, there = coupling.unit_of(dim), other.unit_of(dim)
        if here is not None and there is not None:
            found[there[there >= 0]] = here[there >= 0]
    return found
