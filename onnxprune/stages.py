"""Choose what goes by predicted damage, in stages: measure, cut a little, repair, measure again.

A damage curve that was measured once on the original gets wrong as other groups shrink; each stage measures anew on the
model as it is by then (cut and repaired), against the answers of the original, and on other samples than the stage
before: widths that looked good by the luck of a few samples do not go on to do so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.budget import Groups
from onnxprune.bypass import Bypass
from onnxprune.cost import Cost, Counts
from onnxprune.divergence import Distance
from onnxprune.errors import TargetError
from onnxprune.groups import Coupling
from onnxprune.iterate import bounds, narrowed
from onnxprune.latency.meet import Clock
from onnxprune.look import Look, look
from onnxprune.parts import Engine
from onnxprune.problem import Problem, room_of, spent
from onnxprune.samples import Samples
from onnxprune.shallow import Depth
from onnxprune.survey import Survey, first_widths, traced

Floats = NDArray[np.float64]

STAGE = 0.82  # of what is there, that a stage leaves
WORTH = 5e-4  # of what is to be saved, that a first cut of a group must save to be measured
LOOKS = 2  # at the groups of a model: at one width each, then at the widths that were chosen


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
        clock: measures what a choice costs, where that is more than the cost can tell.
        memo: what other searches found out about the original with the same data and options, and where
            this one adds to it; None: there are no others.
        least: stages, however near the bound is.
        depth: the blocks that may go, too; None: none.
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
    clock: Clock | None = None
    memo: dict[Hashable, Any] | None = None
    least: int = 1
    depth: Depth | None = None
    bypasses: Sequence[Bypass] = ()

    def run(self, measure: Cost, bound: float) -> tuple[NDArray[np.bool_], list[Stage]]:
        """The units that go, so that the cost is at most `bound`; `bypasses` then has the blocks that go, too.

        Args:
            measure: the cost; that of `depth`, where there is one.
            bound: what may remain of it.

        Raises:
            TargetError: the limits do not allow it.
        """
        groups, more = room_of(self.problem), self.depth.groups if self.depth else None
        gone = np.zeros(len(groups.count) + (len(more.count) if more else 0), dtype=np.intp)
        units = slice(len(groups.count))
        removed = np.zeros(self.coupling.units, dtype=bool)
        now, stages = self.coupling, list[Stage]()
        count = max(1, math.ceil(math.log(bound / measure.before) / math.log(STAGE) - 1e-6)) if bound else 1
        count = max(count, self.least)
        bias = 1.0  # measured over predicted cost
        for number, limit in enumerate(bounds(measure.before, bound, count)):
            limit /= bias
            self.tell(f"stage {number + 1}/{count}")
            survey, distance = self._survey(now, removed, number)
            wanted, found, damages = self._worth(gone, groups, measure, limit), gone, list[Floats]()
            blocks = self._blocks(now, removed, gone, survey.gauge.distance, number)
            for _ in range(LOOKS):
                survey.measure(wanted)
                damages = [*survey.damages(gone[units]), *blocks]
                split = spent(self.problem, damages, measure, limit, gone, more)
                if split is None:
                    raise TargetError(
                        f"{self.coupling.graph.name}: the target leaves too little of the groups; see `inspect`"
                    )
                found = split
                wanted = survey.doubtful((found - gone)[units])
            choice = partial(self._choice, removed, survey.orders(), damages, measure, gone)
            if self.clock is not None and number + 1 == count:
                removed = self.clock.met(choice, bound, limit)
                found = np.bincount(self.coupling.group_of[removed], minlength=len(gone))
            else:
                removed = _with(removed, survey.orders(), (found - gone)[units])
                bias = 1.0 if self.clock is None else self.clock.bias(removed)
            predicted = sum(float(d[k]) for d, k in zip(damages, found, strict=True))
            stages.append(Stage(measure(gone) / measure.before, distance, predicted))
            gone = found
            self.bypasses = self.depth.gone(gone) if self.depth else ()
            if number + 1 < count:
                turn, options = self.samples.turn(number + 1), (self.method, self.engine, self.seed + number, self.tell)
                now = narrowed(self.coupling, removed, turn, *options, self.bypasses)
        return removed, stages

    def _choice(
        self,
        removed: NDArray[np.bool_],
        orders: Sequence[NDArray[np.intp]],
        damages: Sequence[Floats],
        measure: Cost,
        gone: Counts,
        limit: float,
    ) -> NDArray[np.bool_] | None:
        """The units that go, these included, so that the cost is at most `limit`; None where it cannot be."""
        split = spent(self.problem, damages, measure, limit, gone)
        return None if split is None else _with(removed, orders, split - gone)

    def _survey(self, now: Coupling, removed: NDArray[np.bool_], number: int) -> tuple[Survey, float]:
        """What measures the model as it is now, and how far its answers are off the original's."""
        key = ("look", now, number, self.engine, self.method, self.kind, self.criterion, self.seed)
        known = self.memo if now is self.coupling else None
        if known and key in known:
            seen: Look = known[key]
        else:
            turn, options = self.samples.turn(number), (self.method, self.kind, self.criterion, self.seed)
            seen = look(self.coupling.graph, now, turn, self.engine, *options, keep=now is self.coupling)
        if known is not None:
            known[key] = seen
        unit = traced(self.coupling, removed, now)
        return Survey(self.coupling, unit, seen.curves, seen.gauge, seen.batches, self.tell, seen.known), seen.off

    def _blocks(
        self, now: Coupling, removed: NDArray[np.bool_], gone: Counts, distance: Distance, number: int
    ) -> list[Floats]:
        """For each block: no damage while it stays, and that without it; none any more for those that are gone."""
        if self.depth is None:
            return []
        turn, options = self.samples.turn(number), (self.engine, self.method, self.seed, self.tell)
        blocks = np.arange(len(gone) - len(self.depth.bypasses), len(gone))
        trials = np.repeat(gone[None], len(blocks), axis=0)
        trials[np.arange(len(blocks)), blocks] = 1
        saved = self.depth.cost(gone) - self.depth.cost.each(trials)
        found = self.depth.damages(now, removed, turn, distance, *options, saved)
        return [np.array([0.0, 0.0 if out else off]) for off, out in zip(found, gone[blocks], strict=True)]

    def _worth(self, gone: Counts, groups: Groups, measure: Cost, limit: float) -> Counts:
        """The units to go at which groups are measured first; 0 for groups that would save next to nothing."""
        here = gone[: len(groups.count)]
        found = first_widths(groups.count - here, groups.step, groups.most - here)
        saving = max(measure(gone) - limit, 1e-12)
        for g in np.flatnonzero(found):
            narrower = gone.copy()
            narrower[g] += found[g]
            if measure(gone) - measure(narrower) < WORTH * saving:
                found[g] = 0
        return found


def _with(removed: NDArray[np.bool_], orders: Sequence[NDArray[np.intp]], more: Counts) -> NDArray[np.bool_]:
    """Units removed before, and of each group the next in its order."""
    found = removed.copy()
    for order, number in zip(orders, more.tolist(), strict=True):
        found[order[:number]] = True
    return found
