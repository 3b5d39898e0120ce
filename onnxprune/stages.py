"""Choose what goes by predicted damage, in stages: measure, cut a little, repair, measure again.

A damage curve that was measured once on the original gets wrong as other groups shrink; each stage measures anew on the
model as it is by then (cut and repaired), against the answers of the original.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune import graph as graphs
from onnxprune.allocation import Problem
from onnxprune.budget import LEAST, Groups, spend
from onnxprune.calibrate import Statistics
from onnxprune.consumers import Consumer
from onnxprune.cost import Cost, Counts
from onnxprune.coupling import couple
from onnxprune.criteria.base import score
from onnxprune.curves import Curve, curves, ranked
from onnxprune.damage import SHARES, Gauge
from onnxprune.divergence import Distance, targets
from onnxprune.errors import TargetError
from onnxprune.feeds import Feed
from onnxprune.groups import Coupling
from onnxprune.observe import observe
from onnxprune.parts import Engine, Walk
from onnxprune.patch import NOTHING, Patch, patched
from onnxprune.plan import kept_indices, make_plan
from onnxprune.recovery import Pair, recover
from onnxprune.rules.base import Dim
from onnxprune.samples import Samples
from onnxprune.surgery import cut

Floats = NDArray[np.float64]

STAGE = 0.82  # of what is there, that a stage leaves
FLOOR = 0.05  # of the usual damage for its local error, that a group is taken to do at least
WORTH = 1e-3  # of what is to be saved, that half of a group must save to be measured


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage, for the record: what remained of the cost, and the distance of the answers."""

    cost: float
    distance: float
    damage: float


@dataclass(eq=False)
class Staged:
    """The search for the units that go.

    Attributes:
        coupling: the analysis of the original.
        problem: what may go of each group.
        samples: the data.
        engine: where models run.
        method: how the result will be repaired.
        kind: how answers are compared.
        criterion: in which order units go; None: by the error that their consumers make without them.
        seed: of the places sampled.
        tell: told about progress.
    """

    coupling: Coupling
    problem: Problem
    samples: Samples
    engine: Engine
    method: str = "full"
    kind: str = "auto"
    criterion: str | None = None
    seed: int = 0
    tell: Callable[[str], None] = lambda text: None

    @cached_property
    def distance(self) -> Distance:
        """From the original's answers on the samples that choose."""
        return distance_of(self.coupling.graph, self.samples.choose, self.engine, self.kind)

    def run(self, measure: Cost, bound: float) -> tuple[NDArray[np.bool_], list[Stage]]:
        """The units that go, so that the cost is at most `bound`.

        Raises:
            TargetError: the limits do not allow it.
        """
        problem = self.problem
        gone = np.zeros(len(problem.count), dtype=np.intp)
        removed = np.zeros(self.coupling.units, dtype=bool)
        now, stages = self.coupling, list[Stage]()
        count = max(1, math.ceil(math.log(bound / measure.before) / math.log(STAGE) - 1e-6)) if bound else 1
        bounds = [measure.before * (bound / measure.before) ** ((n + 1) / count) for n in range(count)]
        for number, limit in enumerate(bounds):
            self.tell(f"stage {number + 1}/{count}")
            groups = self._groups(gone)
            orders, damages, distance = self._measure(now, removed, gone, groups, measure, limit)
            found = spend(damages, groups, measure, limit, gone)
            if found is None:
                raise TargetError(
                    f"{self.coupling.graph.name}: the target leaves too little of the groups; see `inspect`"
                )
            for g, order in enumerate(orders):
                removed[order[: found[g] - gone[g]]] = True
            predicted = sum(float(d[k] - d[j]) for d, k, j in zip(damages, found, gone, strict=True))
            stages.append(Stage(measure(gone) / measure.before, distance, predicted))
            gone = found
            if number + 1 < count:
                now = self._after(removed, self.seed + number)
        return removed, stages

    def _curves(self, now: Coupling, readers: Sequence[Consumer], moments: Mapping[Dim, Statistics]) -> list[Curve]:
        if self.criterion is None:
            return curves(now, readers, moments, score(now, "l2"))
        scores = score(now, self.criterion, seed=self.seed, readers=readers, moments=moments)
        return [ranked(group.units, scores) for group in now.groups]

    def _after(self, removed: NDArray[np.bool_], seed: int) -> Coupling:
        """The analysis of the model without these units, repaired."""
        if not removed.any():
            return self.coupling
        made, patch = graphs.load(cut(self.coupling, make_plan(self.coupling, removed), removed)), NOTHING
        if self.method != "none":
            pair = Pair(self.coupling, removed, made)
            fit, choose = self.samples.fit, self.samples.choose
            patch, _ = recover(pair, fit, choose, self.method, self.engine, seed, tell=self.tell)
        return couple(graphs.load(patched(made, patch)), self.coupling.options)

    def _groups(self, gone: Counts) -> Groups:
        """What may go in all: nothing of frozen groups, no more than a part of the others."""
        problem = self.problem
        least = np.maximum(np.ceil(problem.count * LEAST), np.minimum(problem.step, problem.count)).astype(np.intp)
        least = np.minimum(-(-least // problem.step) * problem.step, problem.count)
        most = np.where(problem.frozen, 0, problem.count - least)
        for g, kept in problem.fixed.items():
            most[g] = problem.count[g] - kept
        return Groups(problem.count, problem.step, np.maximum(most, gone))

    def _measure(
        self, now: Coupling, removed: NDArray[np.bool_], gone: Counts, groups: Groups, measure: Cost, limit: float
    ) -> tuple[list[NDArray[np.intp]], list[Floats], float]:
        """For every group of the original: the order of the units that are left, and damage[units gone in all]."""
        readers, moments = observe(now, self.samples.fit, self.engine, self.seed)
        unit = traced(self.coupling, removed, now)
        found = self._curves(now, readers, moments)
        group_of = self.coupling.group_of
        here = [int(group_of[unit[c.order[0]]]) if unit[c.order[0]] >= 0 else -1 for c in found]
        widths: list[list[int]] = []
        saving = max(measure(gone) - limit, 1e-12)
        for g, curve in zip(here, found, strict=True):
            room = int(groups.most[g] - gone[g]) if g >= 0 else 0
            widths.append(_widths(len(curve.order), int(groups.step[g]), room) if room > 0 else [])
            if widths[-1]:
                half = gone.copy()
                half[g] += widths[-1][-1]
                if measure(gone) - measure(half) < WORTH * saving:
                    widths[-1] = []
        gauge = Gauge(now, readers, moments, self.distance, self.engine, self.method)
        walk = Walk(now.graph, self.samples.choose, self.engine)
        distance = self.distance(walk.rest(NOTHING, self.distance.values, self.engine))
        measured = gauge.measure(walk, found, widths, self.tell)
        walk.close()
        orders = [np.zeros(0, dtype=np.intp) for _ in self.problem.count]
        damages = [np.full(n + 1, np.inf) for n in self.problem.count]
        for values in damages:
            values[0] = 0.0
        usual = _usual(found, measured, distance)
        for g, curve, points in zip(here, found, measured, strict=True):
            if g < 0:
                continue
            orders[g] = unit[curve.order]
            damages[g][: gone[g] + 1] = 0.0
            if points:
                added = {k: d - distance for k, d in points.items()}
                damages[g][gone[g] :] = interpolated(curve, added, usual)
        return orders, damages, distance


def distance_of(graph: graphs.Graph, batches: Sequence[Feed], engine: Engine, kind: str = "auto") -> Distance:
    """The distance from a model's answers on some batches."""
    compared = targets(graph, kind)
    walk = Walk(graph, batches, engine)
    return Distance(compared, list(walk.rest(NOTHING, [t.value for t in compared], engine)))


def off(
    distance: Distance, graph: graphs.Graph, batches: Sequence[Feed], engine: Engine, patch: Patch = NOTHING
) -> float:
    """How far a model's answers on these batches are off."""
    walk = Walk(graph, batches, engine)
    return distance(walk.rest(patch, distance.values, engine))


def traced(original: Coupling, removed: NDArray[np.bool_], now: Coupling) -> NDArray[np.intp]:
    """[units of a cut model]: the unit of the original that each is; -1 where it is none."""
    found = np.full(now.units, -1, dtype=np.intp)
    seen = set()
    for dim, number in original.solution.class_of.items():
        before, after = original.solution.unit_of[number], now.unit_of(dim)
        key = number, now.solution.class_of.get(dim)
        if before is None or after is None or key in seen:
            continue
        seen.add(key)
        kept = kept_indices(original, removed, dim)
        here = before if kept is None else before[kept]
        if here.shape == after.shape:
            both = (here >= 0) & (after >= 0)
            found[after[both]] = here[both]
    return found


def _widths(units: int, step: int, room: int) -> list[int]:
    """Numbers of units gone at which damage is measured: what stays is a multiple of the step."""
    found = set()
    for share in SHARES:
        kept = -(-int(units * (1 - share)) // step) * step
        gone = units - kept if kept < units else units - (units - 1) // step * step
        found.add(min(max(gone, 1), room))
    return sorted(found)


def _usual(found: Sequence[Curve], measured: Sequence[dict[int, float]], distance: float) -> float:
    """Damage for a unit of local error, in the median over groups."""
    gains = [
        (d - distance) / c.error[k]
        for c, points in zip(found, measured, strict=True)
        for k, d in points.items()
        if c.error[k] > 0 and np.isfinite(d)
    ]
    return max(float(np.median(gains)), 0.0) if gains else 0.0


def interpolated(curve: Curve, added: dict[int, float], usual: float) -> Floats:
    """Damage over units gone, from a few measured points: between them it follows the group's local error.

    Args:
        curve: the local error.
        added: units gone -> damage measured.
        usual: damage for a unit of local error in other groups: keeps what seems to do no harm from being free.
    """
    k = np.array(sorted(added))
    local = np.maximum(curve.error, 1e-12)
    value = np.array([added[i] for i in k])
    value = np.maximum(np.where(np.isfinite(value), value, 1e6), FLOOR * usual * local[k] + 1e-9)
    value = np.maximum.accumulate(value)
    gains = np.log(value / local[k])
    places = np.arange(len(curve.error))
    gain = np.interp(places, k, gains)
    if len(k) > 1:  # beyond the last point the trend goes on
        slope = max((gains[-1] - gains[-2]) / (k[-1] - k[-2]), 0.0)
        gain = gain + np.maximum(places - k[-1], 0) * slope
    damage = local * np.exp(gain)
    damage[0] = 0.0
    return np.asarray(np.maximum.accumulate(damage))
