"""What an allocation decides about, in numbers: groups, the steps of their widths, and what stays whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import uses
from onnxprune.budget import LEAST, Groups, spend
from onnxprune.cost import Cost, Counts
from onnxprune.errors import OptionError, expressions
from onnxprune.groups import Coupling

ONE = "group:"  # in front of a name: that group, and no other that shares a tensor with it


@dataclass(frozen=True)
class Limits:
    """What the allocation must leave alone.

    Attributes:
        align: widths stay multiples of this where they were, rounded up.
        keep: regular expression or several; groups with a matching tensor or node stay whole.
        ratios: (regular expression, share): matching groups keep that share, whatever the target says.

    Instead of a regular expression `group:NAME` is one group alone, by the name that `analyze` and records call it by.
    """

    align: int = 1
    keep: str | Sequence[str] = ()
    ratios: Sequence[tuple[str, float]] = ()

    def __post_init__(self) -> None:
        """Refuse what is wrong whatever the model is.

        Raises:
            OptionError: an alignment, a regular expression or a share that is none.
        """
        if self.align < 1:
            raise OptionError(f"--align {self.align}: write a whole number from 1, or auto")
        named = [("--keep", pattern) for pattern in each(self.keep)] + [
            ("--ratio", pattern) for pattern, _ in self.ratios
        ]
        for option, pattern in named:
            if not pattern.startswith(ONE):
                expressions(option, pattern)
        for pattern, share in self.ratios:
            if not 0 < share <= 1:
                raise OptionError(f"--ratio {pattern}={share:g}: the share kept must be in (0, 1]")


@dataclass(frozen=True, eq=False)
class Problem:
    """Groups in numbers: units, the step in which a width may change, the order in which units go."""

    coupling: Coupling
    count: Counts
    step: Counts
    frozen: NDArray[np.bool_]
    fixed: dict[int, int]  # group -> units kept by a ratio
    order: list[NDArray[np.intp]]  # per group, least important first
    scores: NDArray[np.float64]

    def kept(self, wanted: NDArray[np.floating[Any]]) -> Counts:
        """Whole units, rounded up to the step, within 1..count."""
        least = np.minimum(self.step, self.count)
        units = np.maximum(np.floor(wanted + 1e-9), least).astype(np.intp)
        units = np.minimum(-(-units // self.step) * self.step, self.count)
        units[self.frozen] = self.count[self.frozen]
        for group, fixed in self.fixed.items():
            units[group] = fixed
        return np.asarray(units)

    def removed(self, wanted: NDArray[np.floating[Any]]) -> Counts:
        """Units that go, where `wanted` are to be kept."""
        return self.count - self.kept(wanted)

    def gone(self, removed: Counts) -> NDArray[np.bool_]:
        """[units], True for the least important of every group, as many as `removed` says."""
        found = np.zeros(self.coupling.units, dtype=bool)
        for units, number in zip(self.order, removed.tolist(), strict=True):
            found[units[:number]] = True
        return found


def problem_of(coupling: Coupling, scores: NDArray[np.float64], limits: Limits) -> Problem:
    """The groups in numbers, and what the limits leave of the freedom to cut them.

    Raises:
        OptionError: a pattern that matches nothing.
    """
    count = np.bincount(coupling.group_of, minlength=len(coupling.groups)).astype(np.intp)
    step = _steps(coupling, limits.align)
    # The step is per unit; a group of fewer units than one step stays whole.
    frozen = (count <= 1) | (count <= step)
    frozen |= np.bincount(coupling.group_of, weights=np.isnan(scores), minlength=len(count)) > 0
    for pattern in each(limits.keep):
        frozen |= _matching(coupling, pattern, "--keep")
    fixed: dict[int, int] = {}
    for pattern, share in limits.ratios:
        for group in np.flatnonzero(_matching(coupling, pattern, "--ratio") & ~frozen).tolist():
            units, whole = max(1, int(count[group] * share + 1e-9)), int(step[group])
            fixed[group] = min(-(-units // whole) * whole, int(count[group]))
    order = [g.units[np.argsort(scores[g.units], kind="stable")] for g in coupling.groups]
    return Problem(coupling, count, step, frozen, fixed, order, scores)


def room_of(problem: Problem, least: float = LEAST) -> Groups:
    """What may go of every group: nothing of frozen ones, and at least a share of the others stays."""
    stay = np.maximum(np.ceil(problem.count * least), np.minimum(problem.step, problem.count)).astype(np.intp)
    stay = np.minimum(-(-stay // problem.step) * problem.step, problem.count)
    most = np.where(problem.frozen, 0, problem.count - stay)
    gone = np.zeros_like(most)
    for g, kept in problem.fixed.items():
        most[g] = gone[g] = problem.count[g] - kept
    return Groups(problem.count, problem.step, np.maximum(most, 0), gone)


def spent(
    problem: Problem,
    curves: Sequence[NDArray[np.float64]],
    cost: Cost,
    bound: float,
    start: Counts | None = None,
    more: Groups | None = None,
) -> Counts | None:
    """`budget.spend`, where no group is nearly emptied unless the bound asks for it; `more` go beside the groups."""
    for least in (LEAST, 0.0):
        room = room_of(problem, least)
        found = spend(curves, room if more is None else room.beside(more), cost, bound, start)
        if found is not None:
            return found
    return None


def _steps(coupling: Coupling, align: int) -> Counts:
    """Units by which the width of each group may change: what keeps the channels that are contracted aligned.

    A head of 64 channels is aligned by itself; the axis that counts heads is nobody's channels.
    """
    per_unit = coupling.per_unit.tocsc()
    steps = np.ones(len(coupling.groups), dtype=np.intp)
    for group in range(len(steps)):
        span = slice(per_unit.indptr[group], per_unit.indptr[group + 1])
        taken, rows = per_unit.data[span], per_unit.indices[span]
        widths = taken[coupling.channels[rows]] if coupling.channels[rows].any() else taken
        steps[group] = align // gcd(align, *widths.astype(int).tolist())
    return steps


def each(patterns: str | Sequence[str]) -> Sequence[str]:
    """One pattern, or many."""
    return (patterns,) if isinstance(patterns, str) else patterns


def kept_whole(coupling: Coupling, patterns: str | Sequence[str]) -> NDArray[np.bool_]:
    """[units]: those of the groups that match one of the regular expressions.

    Raises:
        OptionError: a pattern that matches nothing.
    """
    groups = np.zeros(len(coupling.groups), dtype=bool)
    for pattern in each(patterns):
        groups |= _matching(coupling, pattern, "--keep")
    return groups[coupling.group_of]


def _matching(coupling: Coupling, pattern: str, option: str) -> NDArray[np.bool_]:
    if pattern.startswith(ONE):
        hit = np.array([group.name == pattern.removeprefix(ONE) for group in coupling.groups])
    else:
        (expression,) = expressions(option, pattern)
        hit = np.array(
            [any(expression.search(label) for label in labels(coupling, g)) for g in range(len(coupling.groups))]
        )
    if not hit.any():
        raise OptionError(f"{option} {pattern!r} matches no tensor or node that can be cut; see `onnxprune inspect`")
    return hit


def labels(coupling: Coupling, group: int) -> list[str]:
    """What --keep and --ratio are matched with: the group's name, its parameters, and the nodes that read them."""
    found = {coupling.groups[group].name}
    for member in coupling.groups[group].members:
        readers = coupling.graph.consumers.get(member.constant, ())
        if member.use != member.constant:
            node, slot = uses.reader(member.use)
            readers = [(coupling.graph.nodes[node], slot)]
        found |= {member.constant, *(node.label for node, _ in readers)}
    return sorted(found)
