"""Prune a little, repair, score again on what is there by then, and so on to the target.

A score that was taken once on the original gets wrong as the units around it go (Molchanov et al. 2017, iterative
pruning). What remains after every step is the same share of what was there before it. The intermediate models are only
looked at: units are traced back to the original, of which all that went is cut at once in the end. Units return only to
use up what a step leaves of its bound. Groups with a share of their own get it in the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxprune import graph as graphs
from onnxprune.bypass import Bypass
from onnxprune.cost import Counts
from onnxprune.coupling import couple
from onnxprune.groups import Coupling
from onnxprune.parts import Engine
from onnxprune.patch import NOTHING, patched
from onnxprune.plan import make_plan
from onnxprune.problem import Problem
from onnxprune.recovery import Pair, recover
from onnxprune.samples import Turn
from onnxprune.surgery import cut
from onnxprune.survey import traced
from onnxprune.without import cut_down, touched, without
from onnxprune.writing import passing

Floats = NDArray[np.float64]
Removed = NDArray[np.bool_]


@dataclass(frozen=True)
class Iteration:
    """A step, for the record: the share of the cost that remained, and of the units."""

    cost: float
    units: float


def bounds(before: float, bound: float, count: int) -> Iterator[float]:
    """What may remain after each of `count` steps, the last of which leaves `bound`: a geometric schedule."""
    for number in range(1, count):
        yield before * (bound / before) ** (number / count)
    yield bound


def narrowed(
    original: Coupling,
    removed: Removed,
    turn: Turn | None,
    method: str,
    engine: Engine,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
    bypasses: Sequence[Bypass] = (),
) -> Coupling:
    """The analysis of a model without some of its units.

    Args:
        original: the analysis of the model.
        removed: [units], those that go.
        turn: what remaining weights are fitted to; None: they stay as they are.
        method: of the repair.
        engine: where models run.
        seed: of the places sampled.
        tell: told about progress.
        bypasses: blocks that are left out, too.
    """
    if not removed.any() and not bypasses:
        return original
    in_file, patch = graphs.is_external(original.graph), NOTHING
    made = passing(partial(cut, original, make_plan(original, removed), removed), in_file)
    made = without(made, cut_down(original, removed, bypasses, made))
    if method != "none" and turn is not None:
        pair = Pair(original, removed, made, touched(original, bypasses))
        patch, _ = recover(pair, *turn, method, engine, seed, tell=tell)
    return couple(passing(partial(patched, made, patch), in_file), original.options)


def rescored(problem: Problem, removed: Removed, now: Coupling, scores: Floats) -> Problem:
    """The problem with the scores that a model has by now, in terms of the original's units.

    Args:
        problem: of the original, as the last choice was made from it.
        removed: [units], those that are gone: they stay first in the order, the last to go being the first to return.
        now: the analysis of the model without them.
        scores: [units of that model].

    Groups in which a unit has no score any more keep the width that they have.
    """
    unit = traced(problem.coupling, removed, now)
    found = np.full(problem.coupling.units, np.nan)
    found[unit[unit >= 0]] = scores[unit >= 0]
    least = np.nanmin(found, initial=0.0)
    group_of, count = problem.coupling.group_of, len(problem.count)
    lost = np.bincount(group_of[np.isnan(found) & ~removed], minlength=count) > 0
    left = np.bincount(group_of[~removed], minlength=count)
    fixed = problem.fixed | {g: int(left[g]) for g in np.flatnonzero(lost & ~problem.frozen).tolist()}
    order = []
    for units in problem.order:
        here = units[~removed[units]]
        order.append(np.concatenate([units[removed[units]], here[np.argsort(found[here], kind="stable")]]))
    return replace(problem, scores=np.where(removed, least, found), order=order, fixed=fixed)


def iterate(
    problem: Problem,
    choose: Callable[[Problem, float, bool], Removed],
    score: Callable[[Removed, int], tuple[Coupling, Floats]],
    measure: Callable[[Counts], float],
    before: float,
    bound: float,
    count: int,
) -> tuple[Removed, list[Iteration]]:
    """The units that go, so that the cost is at most `bound`.

    Args:
        problem: the original's groups and its scores.
        choose: the units that go for a problem and what may remain; the last argument: this is the end.
        score: the model without the units that went in so many steps, repaired, and its scores.
        measure: the cost for units gone of every group.
        before: the cost of the original.
        bound: what may remain of it.
        count: steps.
    """
    removed, steps = np.zeros(problem.coupling.units, dtype=bool), list[Iteration]()
    for number, limit in enumerate(bounds(before, bound, count), 1):
        if number > 1:
            problem = rescored(problem, removed, *score(removed, number - 1))
        removed = choose(problem, limit, number == count)
        gone = np.bincount(problem.coupling.group_of[removed], minlength=len(problem.count))
        steps.append(Iteration(measure(gone) / before, 1.0 - float(removed.mean())))
    return removed, steps
