"""Merge channels that do nearly the same: experiment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_array

from onnxprune import graph as graphs
from onnxprune.allocation import bound_of, choose, measure_of
from onnxprune.coupling import couple
from onnxprune.graph import Graph
from onnxprune.latency.block import resolve_align
from onnxprune.formats import is_half
from onnxprune.lossless import joined
from onnxprune.outcome import describe
from onnxprune.passes import register
from onnxprune.patch import NOTHING, patched, Patch
from onnxprune.plan import make_plan
from onnxprune.problem import Limits, problem_of
from onnxprune.rules.base import Dim, Options
from onnxprune.steps import Context, Outcome, Proof
from onnxprune.surgery import cut
from onnxprune.target import parse_target
from onnxprune.ties import Makers, norms, current, put

X = dict(kv.split("=") for kv in os.environ.get("MX", "").split(",") if kv)


def ward(K, w):
    """Weighted Ward on a Gram matrix; returns merges [(a,b)], heights (delta SSE)."""
    n = len(K)
    d = np.diag(K)[:, None] + np.diag(K) - 2 * K
    w = w.astype(float).copy()
    D = (w[:, None] * w / np.maximum(w[:, None] + w, 1e-300)) * np.maximum(d, 0)
    np.fill_diagonal(D, np.inf)
    label = np.arange(n)
    out = []
    nn = D.argmin(1); nd = D[np.arange(n), nn]
    alive = np.ones(n, bool)
    for _ in range(n - 1):
        i = int(np.argmin(nd)); j = int(nn[i])
        h = D[i, j]
        out.append((i, j, h))
        wi, wj, wk = w[i], w[j], w
        new = ((wi + wk) * D[i] + (wj + wk) * D[j] - wk * h) / np.maximum(wi + wj + wk, 1e-300)
        new[~alive] = np.inf; new[i] = np.inf; new[j] = np.inf
        D[i] = new; D[:, i] = new; D[j] = np.inf; D[:, j] = np.inf
        alive[j] = False; nd[j] = np.inf
        w[i] = wi + wj
        nn[i] = D[i].argmin(); nd[i] = D[i, nn[i]]
        redo = np.flatnonzero(alive & ((nn == i) | (nn == j)))
        for r in redo:
            nn[r] = D[r].argmin(); nd[r] = D[r, nn[r]]
    return out


@register("merge")
@dataclass(frozen=True)
class Merge:
    """Fold channels that do nearly the same together."""

    target: str = "macs=0.75"
    method: str = "agglomerative"
    scope: str = "budget"
    align: str | int = "auto"
    keep: str | Sequence[str] = ()
    seed: int = 0
    variance: bool = True

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        target = parse_target(self.target)
        align = resolve_align(self.align, context.provider, context.bench_seconds > 0, is_half(graph.proto))
        coupling = context.couple(graph, Options(align))
        bns = {}
        for n in norms(coupling):
            for use in (n.gamma, n.beta, n.mean, n.var, *(d.value for d in n.scaled)):
                bns[use] = n

        def tied(owner, mean, which, variance):
            patch = NOTHING
            for g in which:
                group = coupling.groups[g]
                makers = Makers(coupling, group, bns, patch)
                if not makers.able:
                    continue
                makers.tie(mean(g), variance)
                for m in makers.members:
                    if m.constant in graph.filled:
                        continue
                    patch |= put(coupling, m, makers.laid(m, current(coupling, m, patch)))
            return patch

        def model(patch):
            return graphs.load(context.make(lambda store: patched(graph, patch, store)), context.shapes)

        # trial
        sizes = [g.units.size for g in coupling.groups]
        one = lambda g: csr_array(np.full((sizes[g], sizes[g]), 1.0 / sizes[g]))
        trial = couple(model(tied(None, one, range(len(sizes)), False)), coupling.options)
        tomine = same_units(trial, coupling)
        back = np.empty_like(tomine); back[tomine] = np.arange(tomine.size)
        into, _ = joined(trial, trial.group_of.astype(np.intp))
        # heights
        scores = np.full(coupling.units, np.nan)
        trees = {}
        power = {}
        for g, group in enumerate(coupling.groups):
            u = back[group.units]
            if sizes[g] < 2 or len(set(into[u])) > 1:
                continue
            makers = Makers(coupling, group, bns, NOTHING)
            if not makers.able:
                continue
            feats = []
            skip = {Dim(x, 0) for n in makers.norms for x in (n.gamma, n.mean, n.var)}
            skip |= {n.scaled[1] for n in makers.norms if len(n.scaled) > 1}
            wd = {n.scaled[0]: n for n in makers.norms}
            for m in makers.members:
                dim = Dim(m.use, m.axis)
                if dim in skip:
                    continue
                v = makers.values[dim]
                if dim in wd and X.get("gamma", "1") == "1":
                    gam = makers.values[Dim(wd[dim].gamma, 0)]
                    k = gam.shape[1]
                    r = v.reshape(len(v) * k, -1)
                    v = (r * (gam.reshape(-1, 1) / np.maximum(np.sqrt((r**2).sum(1, keepdims=True)), 1e-12))).reshape(v.shape)
                if m.role != "out" and X.get("bias", "1") == "0":
                    continue
                feats.append(v)
            F = np.concatenate(feats, axis=1)
            K = F @ F.T
            w = np.zeros(sizes[g])
            power = np.diag(K)
            for m in group.members:
                if m.role == "in" and m.constant in graph.constants:
                    a = current(coupling, m, NOTHING)
                    sq = np.square(a.astype(np.float64)).sum(axis=tuple(i for i in range(a.ndim) if i != m.axis))
                    units = coupling.unit_of(Dim(m.use, m.axis))
                    c = np.bincount(units[units >= 0], weights=sq[units >= 0], minlength=coupling.units)[group.units]
                    w += c / max((c * power).sum(), 1e-300)
            if X.get("weights", "1") == "0":
                w = np.full(sizes[g], w.mean())
            z = ward(K, w)
            order = np.argsort([h for *_, h in z], kind="stable")
            heights = np.array([z[i][2] for i in order])
            trees[g] = (z, order, w)
            scores[group.units] = np.sqrt(np.append(np.maximum(heights, 0), (w * power).sum() - max(heights.sum(), 0) if X.get("last", "1") == "1" else heights[-1]).clip(0))
        limits = Limits(align, self.keep, ())
        problem = problem_of(coupling, scores, limits)
        cost = measure_of(problem, target)
        bound = bound_of(problem, cost, target, limits)
        gone = choose(problem, cost, bound, self.scope)
        count = np.bincount(coupling.group_of[gone], minlength=len(sizes))
        label = np.arange(coupling.units)
        means = {}
        for g in np.flatnonzero(count):
            z, order, w = trees[g]
            parent = np.arange(sizes[g])
            def find(i):
                while parent[i] != i:
                    i = parent[i]
                return i
            for i in order[: count[g]]:
                a, b, _ = z[i]
                parent[find(b)] = find(a)
            lab = np.array([find(i) for i in range(sizes[g])])
            label[coupling.groups[g].units] = coupling.groups[g].units[lab]
            M = (lab[:, None] == lab) * (np.maximum(w, 1e-12 * w.max()) if X.get("cw", "1") == "1" else 1.0)
            means[g] = csr_array(M / M.sum(1, keepdims=True))
        patch = tied(None, means.__getitem__, list(means), self.variance)
        tg = model(patch)
        new = couple(tg, coupling.options)
        tomine = same_units(new, coupling)
        into, folds = joined(new, label[tomine])
        removed = into != np.arange(into.size)
        plan = make_plan(new, removed, folds)
        mine = np.zeros(coupling.units, bool); mine[tomine] = removed
        made = context.make(lambda store: cut(new, plan, removed, store))
        print("removed", removed.sum(), "of", gone.sum(), "planned; frozen groups", np.isnan(scores).sum())
        return Outcome(made, describe(coupling, mine), make_plan(coupling, mine), proof=Proof(lambda: tg.path or tg.proto), said=f"{removed.sum()} merged")


def same_units(new, old):
    """[units of new] the unit of old."""
    found = np.full(new.units, -1)
    for dim in new.solution.class_of:
        a, b = new.unit_of(dim), old.unit_of(dim)
        if a is not None and b is not None:
            ok = (a >= 0)
            found[a[ok]] = b[ok]
    assert (found >= 0).all()
    return found
