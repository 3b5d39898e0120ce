"""Remove channels (any coupled units) down to a target: analysis, scores, allocation, cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.allocation import Limits, allocate, kept_whole, parse_target
from onnxprune.coupling import couple
from onnxprune.criteria.base import CRITERIA, score
from onnxprune.graph import Graph
from onnxprune.latency import resolve_align
from onnxprune.lossless import lossless
from onnxprune.outcome import carry_out
from onnxprune.passes import register
from onnxprune.plan import make_plan
from onnxprune.rules.base import Options
from onnxprune.steps import Context, Outcome


@register("prune_channels")
@dataclass(frozen=True)
class PruneChannels:
    """Remove the least important channels, heads or neurons with everything that is coupled to them.

    Attributes:
        target: channels=, params= or macs= with the share that may remain, or lossless.
        criterion: how units are scored; `onnxprune list criteria` shows all.
        scope: "global" ranks all units together, "local" keeps the same share of every group.
        align: keep widths multiples of this; "auto" is the provider's block.
        keep: regular expression or several; groups with a matching tensor or node stay whole.
        ratios: (regular expression, share): groups that keep a share of their own.
        combine: how the scores of a unit's tensors are put together: mean, sum or max.
        normalise: how groups are made comparable: mean, max or none.
        seed: for the random criterion.
        allow_inexact: cut through LayerNormalization and its kin too, whose statistics then change.
        head_dims: prune inside attention heads instead of whole heads.
    """

    target: str = "macs=0.5"
    criterion: str = "l2"
    scope: str = "global"
    align: str | int = "auto"
    keep: str | Sequence[str] = ()
    ratios: Sequence[tuple[str, float]] = ()
    combine: str = "mean"
    normalise: str = "mean"
    seed: int = 0
    allow_inexact: bool = False
    head_dims: bool = False

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Choose and cut."""
        target = parse_target(self.target)
        CRITERIA.get(self.criterion)  # an unknown one is refused, whatever the target
        align = 1 if target.kind == "lossless" else resolve_align(self.align, context.provider)
        with context.stage("analysis"):
            coupling = couple(graph, Options(align, self.allow_inexact, self.head_dims))
        if target.kind == "lossless":
            with context.stage("search"):
                removed, folds = lossless(coupling, kept_whole(coupling, self.keep))
            return carry_out(coupling, removed, make_plan(coupling, removed, folds), context)
        with context.stage("scores"):
            scores = score(coupling, self.criterion, self.combine, self.normalise, self.seed)
        with context.stage("allocation"):
            limits = Limits(align, self.keep, tuple(self.ratios))
            removed = allocate(coupling, scores, target, self.scope, limits)
            plan = make_plan(coupling, removed)
        return carry_out(coupling, removed, plan, context)
