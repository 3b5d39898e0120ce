"""allocate(coupling, scores, target) -> which units go, so that the target is met and as little as possible is lost."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import cost, uses
from onnxprune.cost import Cost, Counts
from onnxprune.errors import OptionError, TargetError
from onnxprune.groups import Coupling

COSTS: tuple[str, ...] = ("channels", "params", "macs")
SCOPES = ("global", "local")


@dataclass(frozen=True)
class Target:
    """What may remain: at most `amount` (0 < amount <= 1) of a cost, or "lossless": all that the function needs."""

    kind: str
    amount: float = 1.0

    def __str__(self) -> str:
        """As it is written on the command line."""
        return self.kind if self.kind == "lossless" else f"{self.kind}={self.amount:g}"


def parse_target(text: object) -> Target:
    """Read `macs=0.5`, `params=0.5`, `channels=0.5` or `lossless`.

    Raises:
        TargetError: it is none of these.
    """
    kind, _, amount = text.partition("=") if isinstance(text, str) else ("", "", "")
    if text == "lossless":
        return Target("lossless")
    try:
        value = float(amount)
    except ValueError:
        value = float("nan")
    if kind not in COSTS or not 0 < value <= 1:
        choices = ", ".join(f"{c}=X" for c in COSTS)
        raise TargetError(f"--target {text}: write {choices} with 0 < X <= 1 (the share that may remain), or lossless")
    return Target(kind, value)


@dataclass(frozen=True)
class Limits:
    """What the allocation must leave alone.

    Attributes:
        align: widths stay multiples of this where they were, rounded up.
        keep: regular expression or several; groups with a matching tensor or node stay whole.
        ratios: (regular expression, share): matching groups keep that share, whatever the target says.
    """

    align: int = 1
    keep: str | Sequence[str] = ()
    ratios: Sequence[tuple[str, float]] = ()


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


def allocate(
    coupling: Coupling, scores: NDArray[np.float64], target: Target, scope: str = "global", limits: Limits | None = None
) -> NDArray[np.bool_]:
    """Choose the units that go.

    Args:
        coupling: the analysis.
        scores: [units], comparable between groups for the global scope; NaN: the unit's group stays.
        target: the share of a cost that may remain; met from below, as closely as whole units allow.
        scope: "local" keeps the same share of every group, "global" ranks all units together.
        limits: alignment, and what stays.

    Returns:
        [units], True where a unit goes.

    Raises:
        TargetError: even the smallest model that the limits allow is larger than the target, or nothing can be cut.
        OptionError: an option that does not exist, or a pattern that matches nothing.
    """
    if scope not in SCOPES:
        raise OptionError(f"--scope {scope}: choose one of {', '.join(SCOPES)}")
    if target.kind not in COSTS:
        raise TargetError(f"--target {target} has no share to allocate; use `prune`, or one of {', '.join(COSTS)}")
    if np.shape(scores) != (coupling.units,):
        raise OptionError(f"scores have the shape {np.shape(scores)}; {coupling.units} units want one each")
    limits = limits or Limits()
    problem = problem_of(coupling, scores, limits)
    measure = measure_of(problem, target)
    bound = bound_of(problem, measure, target, limits)
    removed = (_local if scope == "local" else _global)(problem, measure, bound, target)
    gone = np.zeros(coupling.units, dtype=bool)
    for group, number in enumerate(removed):
        gone[problem.order[group][:number]] = True
    return gone


def bound_of(problem: Problem, measure: Cost, target: Target, limits: Limits) -> float:
    """What may remain of a cost.

    Raises:
        TargetError: even the smallest model that the limits allow is larger than that, or nothing can be cut.
    """
    bound = target.amount * measure.before * (1 + 1e-12)
    if failure := _unmet(problem, measure, bound, target):
        name = problem.coupling.graph.name
        raise TargetError(f"{name}: --target {target} cannot be met{failure}{_advice(problem, limits)}")
    return bound


def _unmet(problem: Problem, measure: Cost, bound: float, target: Target) -> str | None:
    """Why no cut meets the target; None where one does."""
    smallest = problem.removed(np.zeros(len(problem.count)))
    if target.amount < 1 and not smallest.any():
        return ": nothing can be cut"
    if target.amount < 1 and measure.before == 0:
        return f": no {target.kind} are counted in this model"
    if measure(smallest) > bound:
        return f"; the least that can remain is {target.kind}={measure(smallest) / measure.before:.3f}"
    return None


def _advice(problem: Problem, limits: Limits) -> str:
    """The options in use, or named by a lock, that leave room; and where to look."""
    opening = sorted({lock.option for lock in problem.coupling.locked if lock.option})
    ways = [
        *([f"an --align below {limits.align}"] if (problem.step > 1).any() else []),
        *(["fewer --keep"] if limits.keep else []),
        *(["a smaller --ratio"] if limits.ratios else []),
        *(["another --criterion"] if np.isnan(problem.scores).any() else []),
        *opening,
    ]
    text = " or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)
    return f"{f'; {text} may allow more' if ways else ''}; see `onnxprune inspect`"


def measure_of(problem: Problem, target: Target) -> Cost:
    """The cost that a target bounds."""
    makers: dict[str, Callable[[], Cost]] = {
        "channels": lambda: cost.channels(problem.coupling, problem.frozen | (problem.count <= 1)),
        "params": lambda: cost.params(problem.coupling),
        "macs": lambda: cost.macs(problem.coupling),
    }
    return makers[target.kind]()


def _local(problem: Problem, measure: Cost, bound: float, target: Target) -> Counts:
    """The largest share of every group that meets the target; then single steps where they still fit."""

    def removed(share: float) -> Counts:
        return problem.removed(problem.count * share)

    low, high = 0.0, target.amount if target.kind == "channels" else 1.0
    if measure(removed(high)) <= bound:
        return removed(high)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(removed(middle)) <= bound else (low, middle)
    found = removed(low)
    more = found - problem.removed(np.minimum(problem.count, (problem.count - found) + 1).astype(np.float64))
    for group in np.argsort(-found / problem.count, kind="stable"):
        trial = found.copy()
        trial[group] -= more[group]
        if more[group] > 0 and measure(trial) <= bound:
            found = trial
    return found


def _global(problem: Problem, measure: Cost, bound: float, target: Target) -> Counts:
    """Remove the least important units of all groups; then give back the best that still fit."""
    free = [g for g in range(len(problem.count)) if not problem.frozen[g] and g not in problem.fixed]
    ranked = np.concatenate([np.zeros(0, dtype=np.intp), *(problem.order[g] for g in free)])
    ranked = ranked[np.argsort(problem.scores[ranked], kind="stable")]
    groups = problem.coupling.group_of[ranked]

    def removed(first: int) -> Counts:
        gone = np.bincount(groups[:first], minlength=len(problem.count))
        return problem.removed((problem.count - gone).astype(float))

    low, high = 0, ranked.size
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if measure(removed(middle)) <= bound else (middle + 1, high)
    found = removed(low)
    heap = [(-problem.scores[problem.order[g][found[g] - 1]], g) for g in free if found[g] > 0]
    heapq.heapify(heap)
    while heap:
        _, group = heapq.heappop(heap)
        trial = found.copy()
        kept = problem.count[group] - found[group]
        wanted = min((kept // problem.step[group] + 1) * problem.step[group], problem.count[group])
        trial[group] = problem.count[group] - wanted
        if measure(trial) > bound:
            continue
        found = trial
        if found[group] > 0:
            heapq.heappush(heap, (-problem.scores[problem.order[group][found[group] - 1]], group))
    return found


def problem_of(coupling: Coupling, scores: NDArray[np.float64], limits: Limits) -> Problem:
    """The groups in numbers, and what the limits leave of the freedom to cut them.

    Raises:
        OptionError: an alignment or a share that is none, or a pattern that matches nothing.
    """
    if limits.align < 1:
        raise OptionError(f"--align {limits.align}: write a whole number from 1, or auto")
    count = np.bincount(coupling.group_of, minlength=len(coupling.groups)).astype(np.intp)
    step = _steps(coupling, limits.align)
    # The step is per unit; a group of fewer units than one step stays whole.
    frozen = (count <= 1) | (count <= step)
    frozen |= np.bincount(coupling.group_of, weights=np.isnan(scores), minlength=len(count)) > 0
    for pattern in each(limits.keep):
        frozen |= _matching(coupling, pattern, "--keep")
    fixed: dict[int, int] = {}
    for pattern, share in limits.ratios:
        if not 0 < share <= 1:
            raise OptionError(f"--ratio {pattern}={share:g}: the share kept must be in (0, 1]")
        for group in np.flatnonzero(_matching(coupling, pattern, "--ratio") & ~frozen).tolist():
            units, whole = max(1, int(count[group] * share + 1e-9)), int(step[group])
            fixed[group] = min(-(-units // whole) * whole, int(count[group]))
    order = [g.units[np.argsort(scores[g.units], kind="stable")] for g in coupling.groups]
    return Problem(coupling, count, step, frozen, fixed, order, scores)


def _steps(coupling: Coupling, align: int) -> Counts:
    """Units by which the width of each group may change: what keeps the channels that are contracted aligned.

    A head of 64 channels is aligned by itself; the axis that counts heads is nobody's channels.
    """
    class_of = coupling.solution.class_of
    channels = {class_of.get(d, -1) for _, spec in coupling.linears for d in (spec.w_in, spec.w_out)} - {-1}
    contracted = np.zeros(len(coupling.solution.sizes), dtype=bool)
    contracted[list(channels)] = True
    per_unit = coupling.per_unit.tocsc()
    steps = np.ones(len(coupling.groups), dtype=np.intp)
    for group in range(len(steps)):
        span = slice(per_unit.indptr[group], per_unit.indptr[group + 1])
        taken, rows = per_unit.data[span], per_unit.indices[span]
        widths = taken[contracted[rows]] if contracted[rows].any() else taken
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
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise OptionError(f"{option} {pattern!r}: not a regular expression ({error})") from error
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
