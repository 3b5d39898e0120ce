"""Merge channels: clusters of them share their parameters, and of each cluster one channel stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation import bound_of, choose, measure_of
from onnxprune.clusters import Clusters, Tree, kmeans, ward
from onnxprune.errors import ModelError, OptionError, TargetError, at_least, one_of
from onnxprune.formats import is_half
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.instrument import Want
from onnxprune.kinship import Kinship
from onnxprune.latency.block import resolve_align
from onnxprune.merging import Merging
from onnxprune.observe import observe
from onnxprune.parts import Engine
from onnxprune.passes import register
from onnxprune.problem import Limits, problem_of, spent
from onnxprune.rules.base import Options
from onnxprune.steps import Context, Outcome
from onnxprune.target import KINDS, Target, parse_target

METHODS = ("agglomerative", "kmeans")
SCOPES = ("global", "local", "budget")


@register("merge")
@dataclass(frozen=True)
class Merge:
    """Fold channels that do nearly the same into one, whose weights are their mean: data-free, nothing is dropped.

    Attributes:
        target: channels=, params= or macs= with the share that may remain.
        method: "agglomerative" puts the two clusters together that differ least for those who read them, again and
            again (Ward); "kmeans" goes on from there by Lloyd's algorithm.
        scope: "global" merges what differs least in the whole model, "local" keeps the same share of every group,
            "budget" merges where it saves most for the difference that it makes.
        align: keep widths multiples of this; "auto" is the provider's block, which is measured once.
        keep: regular expression or several; groups with a matching tensor or node stay whole.
        seed: of the places that are sampled in the data.
        variance: filters that were averaged grow until their mean square is that of the originals.
    """

    alters: ClassVar[bool] = True

    target: str = "macs=0.9"
    method: str = "agglomerative"
    scope: str = "global"
    align: str | int = "auto"
    keep: str | Sequence[str] = ()
    seed: int = 0
    variance: bool = False

    def __post_init__(self) -> None:
        """Check the options that can be checked without a model."""
        one_of("merge: method =", self.method, METHODS)
        one_of("merge: scope =", self.scope, SCOPES)
        Limits(1, self.keep)  # which look at themselves
        at_least("merge: seed =", self.seed, 0)
        if self.align != "auto":
            resolve_align(self.align, "cpu")
        self._target()

    def _target(self) -> Target:
        try:
            target = parse_target(self.target)
        except TargetError:
            target = Target("")
        if target.kind not in KINDS or target.kind == "latency":
            ways = "channels=X, params=X or macs=X with 0 < X <= 1, the share that may remain"
            raise OptionError(f"merge: target = {self.target!r}: write {ways}")
        return target

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Choose clusters, let their units share parameters, then cut all but one of each."""
        align = resolve_align(self.align, context.provider, context.bench_seconds > 0, is_half(graph.proto))
        with context.stage("analysis"):
            coupling = context.couple(graph, Options(align))
            merging = Merging(coupling, context)
            makers, left = merging.able()
        if not makers:
            reasons = "; ".join(dict.fromkeys(left.values())) or "nothing can be cut"
            raise ModelError(f"{graph.name}: merge: no channels can be merged ({reasons}); see `onnxprune inspect`")
        with context.stage("clusters"):
            kin, trees = self._kinship(merging, context), dict[int, Tree]()
            for g, each in makers.items():
                trees[g] = ward(*kin.of(each))
        with context.stage("allocation"):
            count, error = self._allocate(coupling, trees, Limits(align, self.keep))
        label, clusters = np.arange(coupling.units), dict[int, Clusters]()
        for g in np.flatnonzero(count).tolist():
            units, weights = coupling.groups[g].units, trees[g].weights
            labels = trees[g].labels(int(count[g]))
            if self.method == "kmeans":
                labels = kmeans(kin.of(makers[g])[0], weights, labels)
            label[units], clusters[g] = units[labels], Clusters(labels, weights)
        with context.stage("cut"):
            outcome, merged = merging.carried_out(label, clusters, self.variance)
        short = int(count.sum()) - merged
        found = {"merged": merged, "error": error, "left": left, "short": short, "data": context.data is not None}
        missed = f"; {short} that were to go could not: the target is missed" if short else ""
        said = f"{merged} channels merged into others in {len(clusters)} groups; " + (
            f"{len(left)} groups cannot be merged" if left else "all groups can be merged"
        )
        return replace(outcome, notes={**outcome.notes, "merge": found}, said=said + missed)

    def _kinship(self, merging: Merging, context: Context) -> Kinship:
        coupling = merging.coupling
        if context.data is None:
            return Kinship(coupling, merging.norms)
        engine, fit = Engine(context.provider, context.threads), context.samples(coupling).last.fit
        return Kinship(
            coupling, merging.norms, observe(coupling, fit, engine, Want.PAIRS, self.seed, keep=True).moments
        )

    def _allocate(
        self, coupling: Coupling, trees: Mapping[int, Tree], limits: Limits
    ) -> tuple[NDArray[np.intp], dict[str, float]]:
        """[groups]: how many merges of each are made; and the error that they add, by the group's name."""
        scores = np.full(coupling.units, np.nan)  # as if the k-th unit to go were worth what the k-th merge costs
        for g, tree in trees.items():
            scores[coupling.groups[g].units] = np.append(tree.added, np.inf)
        problem, target = problem_of(coupling, scores, limits), self._target()
        cost = measure_of(problem, target)
        bound = bound_of(problem, cost, target, limits)
        curves = [
            np.append(0.0, np.cumsum(trees[g].added)) if g in trees else np.zeros(1) for g in range(len(problem.count))
        ]
        count = spent(problem, curves, cost, bound) if self.scope == "budget" else None
        if count is None:
            gone = choose(problem, cost, bound, "local" if self.scope == "local" else "global")
            count = np.bincount(coupling.group_of[gone], minlength=len(problem.count))
        return count, {coupling.groups[g].name: float(curves[g][count[g]]) for g in trees}
