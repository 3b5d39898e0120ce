"""What the answers lose when one group, or one layer's share of it, alone gets narrower.

A layer is a contraction with weights. Of a group all consumers lose the channels that go; of a layer only its own
columns of weights go, and everything else that is coupled to them stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.consumers import Consumer
from onnxprune.cost import Cost, macs
from onnxprune.criteria.base import score
from onnxprune.curves import Curve, curves
from onnxprune.damage import Gauge, repaired
from onnxprune.groups import Group
from onnxprune.look import Look
from onnxprune.patch import Patch
from onnxprune.problem import ONE, Problem, spent
from onnxprune.runtime import plain
from onnxprune.survey import gain, interpolated
from onnxprune.trials import Trial, distances

Removed = NDArray[np.bool_]
Index = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Site:
    """Something that can be made narrower alone.

    Attributes:
        name: of the group, or of the node.
        node: that makes the units, or that reads them.
        macs: share of the model's MACs in which it takes part.
        orders: units of each group that it has a share in, in the order in which they go.
        start: the first node that computes with what changes.
        patch: the change, for the [units] that go.
        group: number of the group; None: it is a layer.
    """

    name: str
    node: str
    macs: float
    orders: tuple[Index, ...]
    start: int
    patch: Callable[[Removed], Patch]
    group: int | None = None

    @property
    def units(self) -> int:
        """How many there are."""
        return sum(order.size for order in self.orders)

    def gone(self, cut: float) -> tuple[Index, ...]:
        """The units of each group that go for a share that is cut: at least one does, and one stays."""
        counts = [min(max(round(order.size * cut), 1), order.size - 1) for order in self.orders]
        return tuple(order[:count] for order, count in zip(self.orders, counts, strict=True))


@dataclass(frozen=True)
class Row:
    """What was measured of a site.

    Attributes:
        name, node, macs: as of `Site`.
        units: that it has.
        gone: units gone, for each share that was cut.
        values: what that lost, likewise; infinite or NaN: the answers could not be compared any more.
        measured: all numbers of the user's metric, likewise; empty where there is none.
    """

    name: str
    node: str
    macs: float
    units: int
    gone: tuple[int, ...]
    values: tuple[float, ...]
    measured: tuple[Mapping[str, float], ...] = ()

    @property
    def mean(self) -> float:
        """Loss, in the mean over the shares; what is no number is as bad as can be."""
        return float(np.mean([value if value == value else np.inf for value in self.values]))


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of a model.

    Attributes:
        model: its name.
        by: "group" or "layer".
        cuts: the shares of units that were cut.
        what: what the values are.
        criterion, recover: the order in which units went, and the repair that was measured with.
        rows: the most sensitive first.
        target: what `ratios` were chosen for; None: there are none.
        ratios: (pattern, share that stays), as `--ratio` takes them, for groups that are to be cut.
        remains: the share of the target's cost that they leave.
        align: multiples that their widths are of.
    """

    model: str
    by: str
    cuts: tuple[float, ...]
    what: str
    criterion: str
    recover: str
    rows: tuple[Row, ...]
    target: str | None = None
    ratios: tuple[tuple[str, float], ...] = ()
    remains: float | None = None
    align: int = 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is not a finite number is null."""
        found: dict[str, Any] = plain(self)
        return found


def groups(look: Look, free: NDArray[np.bool_]) -> Iterator[Site]:
    """The groups that can be made narrower.

    Args:
        look: at the model.
        free: [groups], those that are wanted.
    """
    coupling, gauge = look.gauge.coupling, look.gauge
    cost = macs(coupling)
    share = cost.per_group() / max(cost.before, 1.0)
    for number in np.flatnonzero(free).tolist():
        group, order = coupling.groups[number], look.curves[number].order
        yield Site(
            group.name, _maker(gauge, group), float(share[number]), (order,), gauge.start(number), gauge.patch, number
        )


def layers(look: Look, free: NDArray[np.bool_], criterion: str | None) -> Iterator[Site]:
    """The contractions that read groups which can be made narrower; channels that do not meet in one are left out.

    Args:
        look: at the model.
        free: [groups], those that are wanted.
        criterion: in which order units go; None: by the error that the layer makes without them.
    """
    gauge, coupling = look.gauge, look.gauge.coupling
    cost = macs(coupling)
    spent_in = dict(cost.largest(np.zeros(len(coupling.groups), dtype=np.intp), len(cost.names)))
    fallback = score(coupling, "l2")
    for reader in gauge.readers:
        mine = np.unique(coupling.group_of[reader.units[reader.units >= 0]])
        mine = mine[free[mine]]
        if not reader.mixes or not mine.size:
            continue
        found = look.curves if criterion is not None else curves(coupling, [reader], gauge.moments, fallback)
        orders = tuple(found[g].order for g in mine)
        label = reader.node.label
        share = spent_in.get(label, 0.0) / max(cost.before, 1.0)
        yield Site(label, label, share, orders, reader.node.index, partial(_alone, gauge, reader))


def measured(
    look: Look,
    sites: Sequence[Site],
    cuts: Sequence[float],
    judge: Callable[[Patch], tuple[float, Mapping[str, float]]] | None,
    tell: Callable[[str], None],
) -> list[Row]:
    """Make each site narrower by each share, alone, and see what is lost.

    Args:
        look: at the model.
        sites: what is made narrower.
        cuts: the shares of its units that go.
        judge: what the user's metric loses by a change, and all its numbers; None: the distance of the answers counts.
        tell: told about progress.
    """
    coupling, gauge = look.gauge.coupling, look.gauge
    cells: dict[tuple[int, int], Trial] = {}
    gone = [[site.gone(cut) for cut in cuts] for site in sites]
    counts = [[sum(map(len, each)) for each in row] for row in gone]
    for number, (site, row) in enumerate(zip(sites, gone, strict=True)):
        for count, units in zip(counts[number], row, strict=True):
            cells[number, count] = Trial(site.start, partial(_made, site, coupling.units, units))
    trials = list(cells.values())
    lost, numbers = list[float](), list[Mapping[str, float]]()
    if judge is None:
        lost = distances(coupling.graph, look.batches, trials, gauge.distance, gauge.engine, tell)
    else:
        for done, trial in enumerate(trials, 1):
            tell(f"metric {done}/{len(trials)}")
            amount, found = judge(trial.patch())
            lost.append(amount)
            numbers.append(found)
    place = {key: n for n, key in enumerate(cells)}
    rows = []
    for number, site in enumerate(sites):
        at = [place[number, count] for count in counts[number]]
        values, said = tuple(lost[n] for n in at), tuple(numbers[n] for n in at) if numbers else ()
        rows.append(Row(site.name, site.node, site.macs, site.units, tuple(counts[number]), values, said))
    return rows


def chosen(
    problem: Problem, found: Sequence[Curve], sites: Sequence[Site], rows: Sequence[Row], cost: Cost, bound: float
) -> tuple[list[tuple[str, float]], float] | None:
    """The share of each group that stays, so that the cost is at most `bound` and least is lost; and what it then is.

    Between what was measured a loss follows the group's local error.

    Args:
        problem: what may go of each group.
        found: for each group the order in which units go, and the local error.
        sites: groups that were measured.
        rows: what was measured of them.
        cost: of units gone.
        bound: what may remain.

    Returns:
        None where it cannot be.
    """
    points: list[dict[int, float]] = [{} for _ in found]
    for site, row in zip(sites, rows, strict=True):
        if site.group is not None:
            points[site.group] = dict(zip(row.gone, (v if v == v else np.inf for v in row.values), strict=True))
    usual = gain(found, points)
    losses = []
    for curve, known in zip(found, points, strict=True):
        nothing = np.append(0.0, np.full(curve.order.size, np.inf))
        losses.append(interpolated(curve, known, usual) if known else nothing)
    gone = spent(problem, losses, cost, bound)
    if gone is None:
        return None
    names = [group.name for group in problem.coupling.groups]
    kept = [(names[g], _upwards(1 - gone[g] / problem.count[g])) for g in np.flatnonzero(gone)]
    return [(ONE + name, share) for name, share in kept], cost(gone)


def _upwards(share: float) -> float:
    """Rounded so that the units which it keeps are not one less."""
    return float(np.ceil(share * 1e5 - 1e-6) / 1e5)


def _made(site: Site, units: int, gone: tuple[Index, ...]) -> Patch:
    removed = np.zeros(units, dtype=bool)
    removed[np.concatenate(gone)] = True
    return site.patch(removed)


def _alone(gauge: Gauge, reader: Consumer, removed: Removed) -> Patch:
    """The model in which one contraction does without some units."""
    gone = np.append(removed, False)[reader.units]
    if gauge.method != "none" and reader.x in gauge.moments:
        return repaired(reader, gone, gauge.moments[reader.x], gauge.method)
    kept = ~gone.reshape(reader.groups, 1, -1, 1)
    return reader.patch(reader.matrix * kept, None)


def _maker(gauge: Gauge, group: Group) -> str:
    """The node that makes a group's units."""
    constant = next((m.constant for m in group.members if m.role == "out"), group.name)
    readers = gauge.coupling.graph.consumers.get(constant, ())
    return next((node.label for node, _ in readers), "")
