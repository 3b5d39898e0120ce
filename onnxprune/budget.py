"""Split a budget over groups so that the damage is least: curves of damage against a cost that multiplies widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxprune.cost import Cost, Counts

Floats = NDArray[np.float64]

LOOK = 8  # how many steps ahead a cut is looked for that pays
EXCHANGES, CANDIDATES = 200, 512  # the most exchanges, and the pairs that are tried for each
LEAST = 0.125  # of a group's units that stay, whatever its curve says


@dataclass(frozen=True, eq=False)
class Groups:
    """What may go of every group.

    Attributes:
        count: units.
        step: units by which a width changes.
        most: the most units that may go; 0 for groups that stay whole.
        gone: units that go in any case.
        inside: [groups, groups], those that go as a whole with the first unit of another, and do no further damage
            then; None: there are no such.
    """

    count: Counts
    step: Counts
    most: Counts
    gone: Counts
    inside: NDArray[np.bool_] | None = field(default=None, kw_only=True)

    def beside(self, more: Groups) -> Groups:
        """These, and others that may hold some of them."""
        assert more.inside is not None
        both = (np.concatenate(pair) for pair in zip(self.sizes, more.sizes, strict=True))
        none = np.zeros((len(self.count), more.inside.shape[1]), dtype=bool)
        return Groups(*both, inside=np.concatenate([none, more.inside]))

    @property
    def sizes(self) -> tuple[Counts, Counts, Counts, Counts]:
        """All that is a number for each group."""
        return self.count, self.step, self.most, self.gone


def spend(
    curves: Sequence[Floats], groups: Groups, cost: Cost, bound: float, start: Counts | None = None
) -> Counts | None:
    """How many units of every group go, so that the cost is at most `bound`; None where it cannot be.

    Greedy on damage added over cost saved, where a cut may be several steps at once: curves that rise steeply at first
    and then no more are cut through. At the end, what the last cut saved too much is given back where it heals most.

    Args:
        curves: for each group, damage[k] with k units gone.
        groups: what may go.
        cost: of units gone.
        bound: what may remain.
        start: units that are gone already.
    """
    start = groups.gone if start is None else np.maximum(start, groups.gone)
    gone = start.copy()
    now = cost(gone)
    while now > bound:
        options = [
            (g, cut) for g in np.flatnonzero(gone < groups.most).tolist() for cut in _cuts(groups, g, int(gone[g]))
        ]
        if not options:
            return None
        trials = np.repeat(gone[None], len(options), axis=0)
        trials[np.arange(len(options)), [g for g, _ in options]] = [cut for _, cut in options]
        saved = now - cost.each(trials)
        done = np.array([curve[k] for curve, k in zip(curves, gone, strict=True)])
        spared = np.zeros(len(gone)) if groups.inside is None else groups.inside @ done  # no further damage then
        added = np.array([max(curves[g][cut] - done[g] - spared[g], 0.0) for g, cut in options])
        price = np.where(saved > 0, added / np.maximum(saved, 1e-300), np.inf)
        best = int(np.argmin(price))
        if not np.isfinite(price[best]):
            return None
        gone, now = trials[best], now - saved[best]
        if groups.inside is not None:
            gone = np.where(groups.inside[options[best][0]], start, gone)
    return _given_back(curves, groups, cost, bound, start, gone)


def exchanged(curves: Sequence[Floats], groups: Groups, cost: Cost, bound: float, gone: Counts) -> Counts:
    """Narrow a group by a step and widen another, as long as that does less damage at a cost within `bound`."""
    numbers = np.arange(len(gone))
    for _ in range(EXCHANGES):
        kept = groups.count - gone
        wider = groups.count - np.minimum((kept // groups.step + 1) * groups.step, groups.count)
        narrower = np.minimum(groups.count - (-(-kept // groups.step) - 1) * groups.step, groups.most)
        heals = np.array([c[g] - c[w] for c, g, w in zip(curves, gone, wider, strict=True)])
        hurts = np.array([c[n] - c[g] for c, g, n in zip(curves, gone, narrower, strict=True)])
        may = (narrower > gone)[:, None] & (wider >= groups.gone) & (numbers[:, None] != numbers)
        gain = np.where(may, heals - hurts[:, None], -np.inf)
        # Widths multiply, so that the cost of two changes is not the sum of their costs: the best are tried out.
        best = [divmod(int(pair), len(gone)) for pair in np.argsort(-gain, axis=None, kind="stable")[:CANDIDATES]]
        best = [(less, more) for less, more in best if gain[less, more] > 0]
        trials = np.repeat(gone[None], len(best), axis=0)
        for trial, (less, more) in zip(trials, best, strict=True):
            trial[less], trial[more] = narrower[less], wider[more]
        fits = np.flatnonzero(cost.each(trials) <= bound) if best else np.zeros(0, dtype=np.intp)
        if not fits.size:
            return gone
        gone = trials[fits[0]]
    return gone


def _cuts(groups: Groups, group: int, gone: int) -> list[int]:
    """Numbers of units that may be gone next: what stays is a multiple of the step."""
    count, step, most = (int(a[group]) for a in (groups.count, groups.step, groups.most))
    chunk = max(step, -(-count // 32) // step * step)
    kept = -(-(count - gone) // step) * step
    found = [count - (kept - chunk * k) for k in range(1, LOOK + 1)]
    return [cut for cut in found if gone < cut <= most]


def _given_back(
    curves: Sequence[Floats], groups: Groups, cost: Cost, bound: float, start: Counts, gone: Counts
) -> Counts:
    """Widen groups again while the cost allows it, the one that heals most for what it costs first."""
    while True:
        now, best, choice = cost(gone), 0.0, None
        for g in np.flatnonzero(gone > 0).tolist():
            kept = int(groups.count[g] - gone[g])
            wider = min((kept // int(groups.step[g]) + 1) * int(groups.step[g]), int(groups.count[g]))
            if groups.count[g] - wider < start[g]:
                continue
            trial = gone.copy()
            trial[g] = groups.count[g] - wider
            price = cost(trial) - now
            healed = curves[g][gone[g]] - curves[g][trial[g]]
            if now + price <= bound and healed / max(price, 1e-12) > best:
                best, choice = healed / max(price, 1e-12), trial
        if choice is None:
            return gone
        gone = choice
