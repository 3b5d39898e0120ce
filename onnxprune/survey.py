"""What the groups of a model would cost its answers, looked at where it matters: one stage of a search.

Every group is measured at one width first. Between measured widths, and beyond, its damage follows its own local error;
where an allocation then wants a width far from any measured one, that width is measured, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxprune.cost import Counts
from onnxprune.curves import Curve
from onnxprune.damage import Gauge
from onnxprune.feeds import Feed
from onnxprune.groups import Coupling
from onnxprune.plan import kept_indices

Floats = NDArray[np.float64]
Index = NDArray[np.intp]

FIRST = 0.25  # of a group's units that go, where it is measured first
NEAR = 0.3  # a width is known where one was measured that is so near, relative
FLOOR = 0.05  # of the usual damage for its local error, that a group is taken to do at least


@dataclass(eq=False)
class Survey:
    """Measures the groups of a model, and says what it knows in terms of the original's.

    Attributes:
        original: whose groups are allocated to.
        unit: [units of the model as it is now], the unit of the original that each is; -1: none.
        curves: for each group of the model, the order in which units go, and the local error.
        gauge: measures.
        batches: the inputs on which it measures.
        tell: told about progress.
        known: (group of the model, units gone) -> damage: what is there is not measured again, the rest is added.
    """

    original: Coupling
    unit: Index
    curves: Sequence[Curve]
    gauge: Gauge
    batches: Sequence[Feed]
    tell: Callable[[str], None] = lambda text: None
    known: dict[tuple[int, int], float] = field(default_factory=dict)
    _points: list[dict[int, float]] = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is measured yet."""
        self._points = [{} for _ in self.curves]

    def group(self, number: int) -> int:
        """The group of the original that a group of the model is what is left of; -1: none."""
        first = self.unit[self.curves[number].order[0]]
        return int(self.original.group_of[first]) if first >= 0 else -1

    def orders(self) -> list[Index]:
        """For each group of the original: its units that are left, in the order in which they go."""
        found: list[Index] = [np.zeros(0, dtype=np.intp) for _ in self.original.groups]
        for number, curve in enumerate(self.curves):
            if (group := self.group(number)) >= 0:
                found[group] = self.unit[curve.order]
        return found

    def measure(self, wanted: Counts) -> None:
        """Measure groups of the original with so many more of their units gone; 0: not this one."""
        asked: list[tuple[int, int]] = []
        for number, points in enumerate(self._points):
            group = self.group(number)
            count = int(wanted[group]) if group >= 0 else 0
            if count and count not in points:
                asked.append((number, count))
        self._look(set(asked) - self.known.keys())
        for number, count in asked:
            self._points[number][count] = self.known[number, count]

    def _look(self, asked: Set[tuple[int, int]]) -> None:
        """Measure what is not known yet: groups of the model, and how many of their units are gone."""
        if not asked:
            return
        widths = [[count for g, count in asked if g == number] for number in range(len(self.curves))]
        for number, found in enumerate(self.gauge.measure(self.batches, self.curves, widths, self.tell)):
            self.known.update({(number, count): damage for count, damage in found.items()})

    def doubtful(self, wanted: Counts) -> Counts:
        """Those of so many more units gone that are far from everything measured; 0 for the others."""
        found = np.zeros_like(wanted)
        for number, points in enumerate(self._points):
            group = self.group(number)
            if group >= 0 and points and not any(abs(wanted[group] - k) <= NEAR * k for k in points):
                found[group] = wanted[group]
        return found

    def damages(self, gone: Counts) -> list[Floats]:
        """For each group of the original, damage[units gone in all]; infinite where nothing was measured.

        Args:
            gone: units that are gone already.
        """
        found = [np.full(group.units.size + 1, np.inf) for group in self.original.groups]
        for values, count in zip(found, gone, strict=True):
            values[: count + 1] = 0.0
        usual = gain(self.curves, self._points)
        for number, (curve, points) in enumerate(zip(self.curves, self._points, strict=True)):
            group = self.group(number)
            if group >= 0 and points:
                found[group][gone[group] :] = interpolated(curve, points, usual)
        return found


def gain(curves: Sequence[Curve], points: Sequence[Mapping[int, float]]) -> float:
    """Damage for a unit of local error, in the median over what was measured.

    Args:
        curves: of groups, the local error.
        points: for each, units gone -> damage.
    """
    gains = [
        damage / curve.error[count]
        for curve, known in zip(curves, points, strict=True)
        for count, damage in known.items()
        if curve.error[count] > 0 and np.isfinite(damage)
    ]
    return float(np.median(gains)) if gains else 0.0


def first_widths(left: Counts, step: Counts, room: Counts) -> Counts:
    """Units to go at which groups are measured first: what stays is a multiple of the step.

    Args:
        left: units that are left of each group.
        step: by how many units its width changes.
        room: how many may go.
    """
    kept = -(-np.floor(left * (1 - FIRST)).astype(np.intp) // step) * step
    narrower = (np.maximum(left, 1) - 1) // step * step
    return np.asarray(np.minimum(left - np.minimum(kept, narrower), room), dtype=np.intp)


def interpolated(curve: Curve, points: Mapping[int, float], usual: float) -> Floats:
    """Damage over units gone, from a few measured points: between them it follows the group's local error.

    Args:
        curve: the local error.
        points: units gone -> damage measured.
        usual: damage for a unit of local error in other groups: keeps what seems to do no harm from being free.
    """
    k = np.array(sorted(points))
    local = np.maximum(curve.error, 1e-12)
    value = np.array([points[i] for i in k])
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


def traced(original: Coupling, removed: NDArray[np.bool_], now: Coupling) -> Index:
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
