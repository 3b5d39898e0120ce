"""allocate(coupling, scores, target) -> which units go, so that the target is met and as little as possible is lost."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxprune import cost
from onnxprune.budget import exchanged
from onnxprune.cost import Cost, Counts
from onnxprune.errors import OptionError, TargetError, one_of
from onnxprune.groups import Coupling
from onnxprune.problem import Limits, Problem, problem_of, room_of, spent
from onnxprune.target import KINDS, THRESHOLD, Target

SCOPES = ("global", "local", "budget")
RANKING = ("auto", "global", "local")  # scopes that a threshold goes with: it takes the same units in all of them


def allocate(
    coupling: Coupling,
    scores: NDArray[np.float64],
    target: Target,
    scope: str = "global",
    limits: Limits | None = None,
    measure: Cost | None = None,
) -> NDArray[np.bool_]:
    """Choose the units that go.

    Args:
        coupling: the analysis.
        scores: [units], comparable between groups except for the local scope; NaN: the unit's group stays.
        target: the share of a cost that may remain; met from below, as closely as whole units allow. Or a threshold.
        scope: "local" keeps the same share of every group, "global" ranks all units together, "budget" spends the cost
            where it keeps most: what goes is least important for what it saves (HALP, Shen et al. 2022).
        limits: alignment, and what stays.
        measure: the cost; for a latency target the one of its table (`latency.table`), for others found here.

    Returns:
        [units], True where a unit goes.

    Raises:
        TargetError: even the smallest model that the limits allow is larger than the target, or nothing can be cut.
        OptionError: an option that does not exist, or a pattern that matches nothing.
    """
    one_of("--scope", scope, SCOPES)
    if target.kind not in (*KINDS, THRESHOLD):
        raise TargetError(f"--target {target} has no share to allocate; use `prune`, or one of {', '.join(KINDS)}")
    check_scope(target, scope)
    if np.shape(scores) != (coupling.units,):
        raise OptionError(f"scores have the shape {np.shape(scores)}; {coupling.units} units want one each")
    limits = limits or Limits()
    problem = problem_of(coupling, scores, limits)
    if target.kind == THRESHOLD:
        return below(problem, target.amount)
    measure = measure or measure_of(problem, target)
    return choose(problem, measure, bound_of(problem, measure, target, limits), scope)


def check_scope(target: Target, scope: str) -> None:
    """Refuse a scope that a threshold leaves nothing to do.

    Raises:
        OptionError: it spends a cost, which a threshold does not bound.
    """
    if target.kind == THRESHOLD and scope not in RANKING:
        raise OptionError(
            f"--scope {scope} spends a cost, and --target {target} bounds none: choose one of {', '.join(RANKING)}, or "
            "a target such as macs=0.5"
        )


def below(problem: Problem, threshold: float) -> NDArray[np.bool_]:
    """[units]: those that go because they score less than that; of every group a step stays, and widths stay aligned.

    Args:
        problem: the groups; those that are fixed by a ratio keep what it says.
        threshold: in the unit of the scores.
    """
    weak = problem.coupling.group_of[problem.scores < threshold]
    wanted = problem.count - np.bincount(weak, minlength=len(problem.count))
    return problem.gone(problem.removed(wanted.astype(float)))


def choose(problem: Problem, measure: Cost, bound: float, scope: str) -> NDArray[np.bool_]:
    """[units]: those that go, so that the cost is at most `bound`, which can be met."""
    ways: dict[str, Callable[[Problem, Cost, float], Counts]]
    ways = {"local": _local, "global": _global, "budget": _budget}
    return problem.gone(ways[scope](problem, measure, bound))


def bound_of(problem: Problem, measure: Cost, target: Target, limits: Limits) -> float:
    """What may remain of a cost.

    Raises:
        TargetError: even the smallest model that the limits allow is larger than that, or nothing can be cut.
    """
    bound = target.bound(measure.before) * (1 + 1e-12)
    if failure := _unmet(problem, measure, bound, target):
        name = problem.coupling.graph.name
        raise TargetError(f"{name}: --target {target} cannot be met{failure}{_advice(problem, limits)}")
    return bound


def _unmet(problem: Problem, measure: Cost, bound: float, target: Target) -> str | None:
    """Why no cut meets the target; None where one does."""
    smallest = problem.removed(np.zeros(len(problem.count)))
    if target.cuts(measure.before) and not smallest.any():
        return ": nothing can be cut"
    if target.cuts(measure.before) and measure.before == 0:
        return f": no {target.kind} are counted in this model"
    if measure(smallest) > bound:
        return f"; {least(measure, smallest, target)}"
    return None


def least(measure: Cost, removed: Counts, target: Target, real: float | None = None) -> str:
    """The least that a target can leave, and what holds it; `real`: what was measured where that is known."""
    cost = measure(removed)
    amount = cost if real is None else real
    said = f"{amount:.3g}ms" if target.absolute else f"{amount / max(measure.before, 1e-300):.3f}"
    holding = [f"{name} ({value / cost:.0%})" for name, value in measure.largest(removed) if value > 0]
    return f"the least that can remain is {target.kind}={said}" + (f", held by {', '.join(holding)}" if holding else "")


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
    """The cost that a target bounds.

    Raises:
        TargetError: it is measured, not counted.
    """
    if target.kind == "latency":
        raise TargetError(f"--target {target}: latency is measured; use `prune`, or give the cost of a latency table")
    makers: dict[str, Callable[[], Cost]] = {
        "channels": lambda: cost.channels(problem.coupling, problem.frozen | (problem.count <= 1)),
        "params": lambda: cost.params(problem.coupling),
        "macs": lambda: cost.macs(problem.coupling),
    }
    return makers[target.kind]()


def _budget(problem: Problem, measure: Cost, bound: float) -> Counts:
    """Give up what holds least for the cost that it saves; exchange while that keeps more.

    Since widths multiply, one start may end where another does not: what keeps most in the end is taken.
    """
    curves = losses(problem)
    first = spent(problem, curves, measure, bound)
    starts = [_local(problem, measure, bound), _global(problem, measure, bound), *([] if first is None else [first])]
    found = [exchanged(curves, room_of(problem), measure, bound, start) for start in starts]
    return min(found, key=lambda gone: sum(float(curve[n]) for curve, n in zip(curves, gone, strict=True)))


def losses(problem: Problem) -> list[NDArray[np.float64]]:
    """[units + 1] for each group: what is lost with its first k units gone.

    That is the share of its energy, as `_lost` has it, for every multiplication that the group takes part in: what does
    much of the work holds much.
    """
    work = cost.macs(problem.coupling).per_group()
    return [n * _lost(problem.scores[units]) for n, units in zip(work, problem.order, strict=True)]


def _lost(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """[units + 1]: what a group loses with its first k units gone: minus the log of the share of energy that stays.

    Its slope is the LAMP score (Lee et al. 2021), the energy of a unit relative to what is left with it: the narrower
    a group is already, the dearer its next unit.
    """
    energy = np.square(scores)
    left = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
    tiny = np.finfo(float).tiny
    return np.asarray(-np.log(np.maximum(left / max(left[0], tiny), tiny)))


def _local(problem: Problem, measure: Cost, bound: float) -> Counts:
    """The largest share of every group that meets the target; then single steps where they still fit."""

    def removed(share: float) -> Counts:
        return problem.removed(problem.count * share)

    low, high = 0.0, min(bound / measure.before, 1.0) if isinstance(measure, cost.Channels) else 1.0
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


def _global(problem: Problem, measure: Cost, bound: float) -> Counts:
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
