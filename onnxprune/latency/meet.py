"""From a choice that meets a target by a predicted latency to one that meets it on the clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation import least
from onnxprune.cost import Cost, Counts
from onnxprune.errors import TargetError
from onnxprune.feeds import Feed
from onnxprune.latency.table import DOUBTFUL, Table
from onnxprune.plan import make_plan
from onnxprune.problem import Problem
from onnxprune.surgery import cut
from onnxprune.target import Target
from onnxprune.timing import bench

Removed = NDArray[np.bool_]

TRIES = 6  # choices that are measured, at most
SLACK = 0.03  # so far below the bound is near enough
NEAR = 1.05  # what is farther from the target, as the written model is measured, is said
SECONDS = 3.0  # of a comparison with the original, at most


@dataclass(frozen=True)
class Step:
    """A network that was measured on the way: shares of the original's latency."""

    predicted: float
    measured: float


@dataclass(eq=False)
class Clock:
    """Measures choices as whole models, each in turns with the original.

    Attributes:
        problem: what is chosen from.
        target: a latency.
        table: predicts.
        feed: what models are run on.
        provider, threads: where.
        steps: what was measured so far.
    """

    problem: Problem
    target: Target
    table: Table
    feed: Feed
    provider: str
    threads: int | None
    steps: list[Step] = field(default_factory=list)

    @cached_property
    def cost(self) -> Cost:
        """Predicted milliseconds."""
        return self.table.cost(self.problem.coupling)

    def __call__(self, removed: Removed) -> float:
        """Milliseconds: now, where the target is in milliseconds, else where the original takes what the table says."""
        coupling = self.problem.coupling
        model = cut(coupling, make_plan(coupling, removed), removed)
        original = coupling.graph.path or coupling.graph.proto
        for seconds in (SECONDS, 3 * SECONDS):  # a busy moment is waited for
            found = bench(original, model, self.provider, self.threads, [self.feed], max_seconds=seconds)
            if found.ratio is not None and found.ratio.half_width < SLACK:
                break
        assert found.ratio is not None
        assert found.b is not None
        self.steps.append(Step(self._predicted(removed) / self.cost.before, found.ratio.value))
        return found.b.median.value if self.target.absolute else found.ratio.value * self.cost.before

    def bias(self, removed: Removed) -> float:
        """Measured over predicted."""
        return self(removed) / self._predicted(removed)

    def met(self, choose: Callable[[float], Removed | None], bound: float, aim: float | None = None) -> Removed:
        """The choice whose measured latency is nearest below a bound.

        Args:
            choose: a choice of at most so many predicted milliseconds; None: there is none.
            bound: milliseconds that may remain.
            aim: predicted milliseconds to begin with.

        Raises:
            TargetError: not even the least that can remain is below.
        """
        found = meet(choose, self._predicted, self, bound, aim)
        if found is not None:
            return found
        smallest = self.problem.removed(np.zeros(len(self.problem.count)))
        removed = self.problem.gone(smallest)
        real = self(removed)
        if real <= bound:
            return removed
        said = least(self.cost, smallest, self.target, real)
        raise TargetError(f"{self.problem.coupling.graph.name}: --target {self.target} cannot be met; measured, {said}")

    def said(self, removed: Removed) -> dict[str, Any]:
        """For the record: what was predicted of the result, and what the predictions are worth."""
        predicted = self._predicted(removed) / self.cost.before
        wanted = asdict(self.target)
        steps = [asdict(step) for step in self.steps]
        return {**self.table.summary(), "target": wanted, "predicted": predicted, "steps": steps}

    def _predicted(self, removed: Removed) -> float:
        return self.cost(self._counts(removed))

    def _counts(self, removed: Removed) -> Counts:
        group_of = self.problem.coupling.group_of
        return np.bincount(group_of[removed], minlength=len(self.problem.count))


def doubts(model: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """What is to be said where the written model is not at its target, or the table is not to be believed.

    Args:
        model: what `Clock.said` put into the record.
        measured: the comparison of the written model with the original, as `latency_ms` in the record.
    """
    target, found, table = model["target"], [], model["error"]["median"]
    low, high = (
        measured["after"]["median_ci95"]
        if target["absolute"]
        else (
            measured["ratio"]["low"],
            measured["ratio"]["high"],
        )
    )
    if None not in (low, high) and not (low <= target["amount"] * NEAR and high >= target["amount"] / NEAR):
        what = "milliseconds" if target["absolute"] else "of the original's latency"
        found.append(f"measured {low:.3g} to {high:.3g} {what}, where {target['amount']:g} was wanted: see `measured`")
    if table > DOUBTFUL:
        found.append(f"the latency table is {table:.0%} off and was not kept: measure on a quieter machine")
    return found


def meet(
    choose: Callable[[float], Removed | None],
    predicted: Callable[[Removed], float],
    truth: Callable[[Removed], float],
    bound: float,
    aim: float | None = None,
    tries: int = TRIES,
) -> Removed | None:
    """The choice whose measured cost is nearest below `bound`; None where none is.

    What is measured differs from what was predicted by a factor that hardly changes between neighbours: the choice is
    made again for a bound that is corrected by it.

    Args:
        choose: a choice of at most so much predicted cost; None: there is none.
        predicted: the predicted cost of a choice.
        truth: measures a choice.
        bound: what may remain.
        aim: predicted cost to begin with; the bound, if None.
        tries: choices that are measured, at most; twice as many before one is below the bound.
    """
    wanted = bound * (1 - SLACK / 2)
    aim, seen = wanted if aim is None else aim, set[bytes]()
    best: tuple[float, Removed] | None = None
    for number in range(2 * tries):
        removed = choose(aim)
        if removed is None or removed.tobytes() in seen:
            break
        seen.add(removed.tobytes())
        real = truth(removed)
        if real <= bound and (best is None or real > best[0]):
            best = real, removed
        if bound * (1 - SLACK) <= real <= bound:
            break
        if best is not None and number + 1 >= tries:
            break
        # Not the same choice again: less than what it was predicted to cost, or more than what was aimed at.
        nearest = min if real > wanted else max
        aim = nearest(aim, predicted(removed)) * wanted / real
    return None if best is None else best[1]
