"""In which order the units of a group go, and at what local error: block OBS on the covariance of what is contracted.

Removing the channels D of a consumer y = W x, and letting the others make up for them, adds the error

    tr((M_DD)^-1 (WᵀW)_DD),   M = (Σ + λI)^-1

and changes W by -W_D (M_DD)^-1 M_D: (Hassibi & Stork 1993, Optimal Brain Surgeon; in blocks, Kurtic et al. 2022). Both
M and K = WᵀW are downdated as channels go, so that one sweep gives the order and the whole error curve. The error of a
unit is summed over all consumers of the group, each in units of the variance of its own result. The fewer the samples,
the less Σ is to be believed: λ falls with their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibrate import Statistics
from onnxprune.consumers import Consumer
from onnxprune.groups import Coupling, Group
from onnxprune.rules.base import Dim
from onnxprune.solve import at_once

Floats = NDArray[np.float64]
Index = NDArray[np.intp]

PRIOR = 3.0  # samples of channels that know nothing of each other, that λ stands for
STEPS = 64  # batches in which the units of a group go


@dataclass(frozen=True, eq=False)
class Curve:
    """Units in the order in which they go, and the error after each: `error[k]` with the first k gone."""

    order: Index
    error: Floats


@dataclass(eq=False)
class _Problem:
    """One matrix W and its channels. `unit`: [channels], local number of the unit, -1 for channels that stay."""

    unit: Index
    k: Floats
    m: Floats
    weight: float  # of its error in the sum

    def scores(self, units: int) -> Floats:
        """[units]: the error that each would add, alone."""
        free = np.flatnonzero(self.unit >= 0)
        order = free[np.argsort(self.unit[free], kind="stable")]
        present, counts = np.unique(self.unit[order], return_counts=True)
        found = np.zeros(units)
        if not present.size:
            return found
        if self.k.ndim == 1:
            np.add.at(found, self.unit[order], self.k[order] / self.m[order])
        elif (counts == counts[0]).all():
            blocks = order.reshape(present.size, -1)
            k, m = (a[blocks[:, :, None], blocks[:, None, :]] for a in (self.k, self.m))
            if blocks.shape[1] == 1:
                found[present] = k[:, 0, 0] / m[:, 0, 0]
            else:
                found[present] = np.trace(np.linalg.solve(m, k), axis1=1, axis2=2)
        return found * self.weight

    def remove(self, gone: Index) -> float:
        """Take the channels of these units out, let the others make up for them; the error that this adds."""
        out = np.isin(self.unit, gone)
        d, stay = np.flatnonzero(out), np.flatnonzero(~out)
        if not d.size:
            return 0.0
        if self.k.ndim == 1:
            added = float((self.k[d] / self.m[d]).sum())
            self.k, self.m = self.k[stay], self.m[stay]
        else:
            k_dd, m_dd = self.k[np.ix_(d, d)], self.m[np.ix_(d, d)]
            m_ds, k_ds = self.m[np.ix_(d, stay)], self.k[np.ix_(d, stay)]
            t = np.linalg.solve(m_dd, m_ds)
            added = float(np.trace(np.linalg.solve(m_dd, k_dd)))
            cross = t.T @ (k_ds - 0.5 * (k_dd @ t))
            self.k = self.k[np.ix_(stay, stay)] - cross - cross.T
            self.m = self.m[np.ix_(stay, stay)] - m_ds.T @ t
        self.unit = self.unit[stay]
        return max(added, 0.0) * self.weight


def curves(
    coupling: Coupling,
    readers: Sequence[Consumer],
    moments: Mapping[Dim, Statistics],
    fallback: Floats,
    workers: int = 1,
) -> list[Curve]:
    """For every group of units, the order in which they go and the error curve.

    Args:
        coupling: the analysis.
        readers: its consumers.
        moments: statistics of what they read.
        fallback: [units], scores for groups that no consumer reads; the errors are then shares of their sum.
        workers: groups that are looked at at once.
    """

    def of(group: Group) -> Curve:
        local = np.full(coupling.units + 1, -1, dtype=np.intp)  # the last one stands for locked channels
        local[group.units] = np.arange(group.units.size)
        problems = [p for reader in readers if reader.x in moments for p in _problems(reader, local, moments)]
        return _sweep(group.units, problems) if problems else ranked(group.units, fallback)

    return at_once(of, coupling.groups, workers)


def _problems(reader: Consumer, local: Index, moments: Mapping[Dim, Statistics]) -> list[_Problem]:
    """The matrices of a consumer in which units of a group have channels."""
    unit = local[reader.units]
    if not reader.mixes or (unit < 0).all():
        return []
    stats, w = moments[reader.x], reader.weights
    each, damping = w.shape[2], PRIOR / max(stats.samples, PRIOR)
    flat = np.moveaxis(w, 2, 1).reshape(len(w), each, -1)  # channels of a group, everything else
    grams = flat @ flat.swapaxes(1, 2) if stats.second is not None else None
    squares = np.einsum("gcf,gcf->gc", flat, flat)
    power = float((squares.reshape(-1) * stats.variance).sum())
    covariance = stats.covariance if stats.second is not None else None
    if covariance is not None and grams is not None:
        blocks = [covariance[i * each : (i + 1) * each, i * each : (i + 1) * each] for i in range(len(w))]
        power = float(sum(np.sum(g * b) for g, b in zip(grams, blocks, strict=True)))
    weight = 1.0 / power if power > 0 else 0.0
    made = []
    for i in range(len(w)):
        span = slice(i * each, (i + 1) * each)
        if (unit[span] < 0).all():
            continue
        if covariance is None or grams is None:
            damped = stats.variance[span] + damping * stats.variance.mean()
            k, m = squares[i], 1.0 / np.maximum(damped, np.finfo(float).tiny)
        else:
            sigma = covariance[span, span]
            pull = max(damping * float(np.trace(covariance)) / len(covariance), np.finfo(float).tiny)
            k, m = grams[i], np.linalg.inv(sigma + pull * np.eye(each))
        made.append(_Problem(unit[span], k, m, weight))
    return made


def _sweep(units: Index, problems: list[_Problem]) -> Curve:
    """Take the units out in batches of those that add least."""
    count = units.size
    alive = np.ones(count, dtype=bool)
    order: list[Index] = []
    error = np.zeros(count + 1)
    step, done = max(1, count // STEPS), 0
    while done < count:
        scores = np.sum([p.scores(count) for p in problems], axis=0)
        scores[~alive] = np.inf
        size = min(step, count - done)
        gone = np.argsort(scores, kind="stable")[:size]
        added = sum(p.remove(gone) for p in problems)
        share = np.cumsum(np.maximum(scores[gone], 0.0))
        inside = share / share[-1] if share[-1] > 0 else np.arange(1, size + 1) / size
        error[done + 1 : done + size + 1] = error[done] + added * inside
        alive[gone] = False
        order.append(gone)
        done += size
    return Curve(units[np.concatenate(order)], error)


def ranked(units: Index, scores: Floats) -> Curve:
    """Units that nothing contracts: by another criterion."""
    values = np.nan_to_num(scores[units], nan=np.inf)
    order = np.argsort(values, kind="stable")
    steps = np.where(np.isfinite(values[order]), np.maximum(values[order], 0.0), 0.0)
    total = steps.sum() or 1.0
    return Curve(units[order], np.concatenate([[0.0], np.cumsum(steps) / total]))
