"""Remove channels (any coupled units) down to a target: analysis, scores, allocation, cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation import below, bound_of, check_scope, choose, measure_of
from onnxprune.answers import KINDS
from onnxprune.bypass import Bypass
from onnxprune.cost import Cost
from onnxprune.criteria.base import AUTO, COMBINE, NORMALISE, score, sight_of
from onnxprune.errors import OptionError, at_least, one_of
from onnxprune.formats import is_half
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.iterate import iterate, narrowed
from onnxprune.latency.block import resolve_align
from onnxprune.latency.meet import Clock
from onnxprune.latency.networks import table_of
from onnxprune.latency.table import Table
from onnxprune.lossless import aligned
from onnxprune.observe import Seen, observe
from onnxprune.outcome import carry_out
from onnxprune.parts import Engine
from onnxprune.passes import register
from onnxprune.plan import make_plan
from onnxprune.problem import Limits, Problem, kept_whole, problem_of
from onnxprune.recovery import resolve_method
from onnxprune.rules.base import Options
from onnxprune.shallow import Depth, depth_of
from onnxprune.stages import Staged
from onnxprune.steps import Context, Outcome
from onnxprune.target import LOSSLESS, THRESHOLD, Target, parse_target
from onnxprune.timing import bench

DEEP = ("macs", "params")
STEPS = 100  # each repairs the model: more do not end
SCOPES = ("auto", "global", "local", "budget", "damage")


@register("prune_channels")
@dataclass(frozen=True)
class PruneChannels:
    """Remove the least important channels, heads or neurons with everything that is coupled to them.

    Attributes:
        target: channels=, params=, macs= or latency= with the share that may remain, latency=5ms, threshold= with the
            least score that stays, or lossless.
        criterion: how units are scored; `onnxprune list criteria` shows all. A sum, as in 0.7*wanda+0.3*l1, weighs
            several. "auto": by the error that the consumers make without them where there are data, else l2.
        scope: "global" ranks all units together, "local" keeps the same share of every group, "budget" spends the
            target where it keeps most, "damage" measures on the data what narrower groups do to the answers; "auto":
            damage where there are data and the criterion is auto, else budget for a latency and global for the rest.
            A threshold takes the same units in "global" and "local", and goes with no other.
        align: keep widths multiples of this; "auto" is the provider's block, which is measured once (lossless: 1).
        keep: regular expression or several; groups with a matching tensor or node stay whole.
        ratios: (regular expression, share): groups that keep a share of their own.
        combine: how the scores of a unit's tensors are put together: mean, sum or max.
        normalise: how groups are made comparable: mean, max or none.
        seed: for the random criterion, and of the places that are sampled in the data.
        allow_inexact: cut through LayerNormalization and its kin too, whose statistics then change.
        head_dims: prune inside attention heads instead of whole heads.
        recover: the repair that will follow, which damage is measured with: none, bias, channel or full; "auto" is
            full.
        distance: how answers are compared: auto, logits, vectors, boxes or values.
        iterations: steps to the target: cut a little, repair where there are data, score again. The damage scope takes
            steps by itself; there it is how many at least.
        depth: leave out whole blocks (residual branches, layers) where that keeps the answers better than less width;
            with the damage scope and a target of macs= or params=.
    """

    alters: ClassVar[bool] = True

    target: str = "macs=0.5"
    criterion: str = AUTO
    scope: str = "auto"
    align: str | int = "auto"
    keep: str | Sequence[str] = ()
    ratios: Sequence[tuple[str, float]] = ()
    combine: str = "mean"
    normalise: str = "mean"
    seed: int = 0
    allow_inexact: bool = False
    head_dims: bool = False
    recover: str = AUTO
    distance: str = "auto"
    iterations: int = 1
    depth: bool = False

    def __post_init__(self) -> None:
        """Refuse what is wrong whatever the model is.

        Raises:
            OptionError, TargetError: an option that there is not.
        """
        target = parse_target(self.target)
        if self.criterion != AUTO:
            sight_of(self.criterion)  # every part of it is there
        one_of("--scope", self.scope, SCOPES)
        check_scope(target, self.scope)
        one_of("--combine", self.combine, COMBINE)
        one_of("--normalise", self.normalise, NORMALISE)
        one_of("--distance", self.distance, KINDS)
        resolve_method(self.recover)
        Limits(1, self.keep, tuple(self.ratios))  # which look at themselves
        if self.align != AUTO:
            resolve_align(self.align, "cpu")
        at_least("--seed", self.seed, 0)
        at_least("--iterations", self.iterations, 1)
        if self.iterations > STEPS:
            raise OptionError(
                f"--iterations {self.iterations}: write at most {STEPS}; more than 8 gained nothing so far"
            )
        if self.iterations > 1 and target.kind in (THRESHOLD, LOSSLESS):
            raise OptionError(f"--iterations {self.iterations}: {target} leaves nothing to come nearer to; drop it")
        if self.depth and self.scope not in (AUTO, "damage"):
            raise OptionError(f"--scope {self.scope} measures no damage, which --depth goes by; drop one of the two")
        if self.depth and target.kind not in DEEP:
            raise OptionError(
                f"--target {target}: with --depth it is macs=X or params=X; or put drop_blocks in a recipe"
            )

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Choose and cut."""
        target = parse_target(self.target)
        measure = context.bench_seconds > 0
        with context.stage("analysis"):
            align = 1  # of a lossless cut, unless a number is given
            if target.kind != LOSSLESS or self.align != AUTO:
                half = is_half(graph.proto)
                align = resolve_align(self.align, context.provider, measure, half)
            coupling = context.couple(graph, Options(align, self.allow_inexact, self.head_dims))
        if target.kind == LOSSLESS:
            with context.stage("search"):
                removed, folds = aligned(coupling, align, kept_whole(coupling, self.keep))
            return carry_out(coupling, removed, make_plan(coupling, removed, folds), context)
        limits, scope = Limits(align, self.keep, tuple(self.ratios)), self._scope(context, target)
        if scope == "damage":
            scores = np.zeros(coupling.units)
        else:
            with context.stage("scores"):
                scores = self._scores(coupling, context)
        problem, clock = problem_of(coupling, scores, limits), None
        if target.kind == THRESHOLD:
            with context.stage("allocation"):
                removed = below(problem, target.amount)
            outcome = carry_out(coupling, removed, make_plan(coupling, removed), context)
            return replace(outcome, said=_said(scores < target.amount, removed, target.amount))
        if target.kind == "latency":
            with context.stage("latency table"):
                clock = self._clock(problem, target, context)
        cost = measure_of(problem, target) if clock is None else clock.cost
        depth = self._depth(coupling, cost, scope, context)
        # Without blocks less may remain than the narrowest groups leave; the search says so where it does not.
        bound = target.bound(cost.before) * (1 + 1e-12) if depth else bound_of(problem, cost, target, limits)
        notes: dict[str, Any] = {}
        bypasses: Sequence[Bypass] = ()
        if scope == "damage":
            removed, bypasses, notes = self._by_damage(problem, cost, bound, clock, depth, context)
        else:
            with context.stage("allocation" if self.iterations == 1 else "iterations"):
                removed, notes = self._by_scores(problem, cost, bound, scope, clock, context)
        if clock is not None:
            notes = {**notes, "latency_model": clock.said(removed)}
        plan = replace(make_plan(coupling, removed), bypasses=bypasses)
        outcome = carry_out(coupling, removed, plan, context)
        return replace(outcome, notes={**outcome.notes, **notes}, said=depth.said(bypasses) if depth else "")

    def _scope(self, context: Context, target: Target) -> str:
        """The scope that "auto" stands for.

        Raises:
            OptionError: there are no data to measure damage on.
        """
        if self.scope == "damage" and context.data is None:
            raise OptionError("--scope damage measures on inputs: give --data (or --data synthetic)")
        if self.scope != "auto":
            return self.scope
        if target.kind != THRESHOLD and context.data is not None and self.criterion == AUTO:
            return "damage"
        return "budget" if target.kind == "latency" else "global"

    def _depth(self, coupling: Coupling, cost: Cost, scope: str, context: Context) -> Depth | None:
        """The blocks that may go; None: that was not asked for.

        Raises:
            OptionError: damage is not measured.
        """
        if not self.depth:
            return None
        if scope != "damage":
            why = "give --data" if context.data is None else "leave --criterion out, or add --scope damage"
            raise OptionError(f"--depth goes by measured damage: {why}")
        with context.stage("blocks"):
            engine = Engine(context.provider, context.threads)
            return depth_of(coupling, cost, self.keep, context.samples(coupling).turn(0).fit, engine)

    def _criterion(self, context: Context) -> str:
        if self.criterion != AUTO:
            return self.criterion
        return "l2" if context.data is None else "obs"

    def _scores(self, coupling: Coupling, context: Context) -> NDArray[np.float64]:
        seen: tuple[Any, ...] = ()
        criterion = self._criterion(context)
        want = sight_of(criterion)
        if context.data is not None and want is not None:
            engine = Engine(context.provider, context.threads)
            fit = context.samples(coupling).last.fit

            def look() -> Seen:
                return observe(coupling, fit, engine, want, self.seed, keep=True)

            seen = context.once(("seen", coupling, want, self.seed), look) if context.shared else look()
        return score(coupling, criterion, self.combine, self.normalise, self.seed, *seen)

    def _clock(self, problem: Problem, target: Target, context: Context) -> Clock:
        if context.bench_seconds <= 0:
            raise OptionError(f"--target {target} runs the models: drop --no-validate and --bench-seconds 0")
        coupling, where = problem.coupling, (context.provider, context.threads)
        feed = context.feeds(coupling.graph)[0]

        def make() -> Table:
            return table_of(coupling, feed, *where, context.on_stage)

        table = context.once(("latency table", coupling), make)
        if target.absolute:  # by the machine as it is now
            now = bench(coupling.graph.path or coupling.graph.proto, None, *where, [feed], max_seconds=2.0)
            table = table.at(now.a.median.value)
        return Clock(problem, target, table, feed, *where)

    def _by_scores(
        self, problem: Problem, cost: Cost, bound: float, scope: str, clock: Clock | None, context: Context
    ) -> tuple[NDArray[np.bool_], dict[str, Any]]:
        """The units that go by their scores, in as many steps as were asked for, and what is said about these."""

        def choice(here: Problem, limit: float, last: bool) -> NDArray[np.bool_]:
            if clock is None or not last:
                return choose(here, cost, limit, scope)
            smallest = cost(here.removed(np.zeros(len(here.count))))
            return clock.met(lambda aim: choose(here, cost, aim, scope) if aim >= smallest else None, limit)

        if self.iterations == 1:
            return choice(problem, bound, True), {}
        again = partial(self._again, problem.coupling, context)
        removed, steps = iterate(problem, choice, again, cost, cost.before, bound, self.iterations)
        return removed, {"iterations": [asdict(step) for step in steps]}

    def _again(
        self, coupling: Coupling, context: Context, removed: NDArray[np.bool_], number: int
    ) -> tuple[Coupling, NDArray[np.float64]]:
        """The model after so many steps, repaired where there are data, and the scores of its units."""
        context.on_stage(f"iteration {number + 1}/{self.iterations}")
        engine, want = Engine(context.provider, context.threads), sight_of(self._criterion(context))
        turn = None if context.data is None else context.samples(coupling).turn(number)
        method = resolve_method(self.recover, context.data is not None)
        now = narrowed(coupling, removed, turn, method, engine, self.seed + number, context.on_stage)
        seen = () if turn is None or want is None else observe(now, turn.fit, engine, want, self.seed)
        return now, score(now, self._criterion(context), self.combine, self.normalise, self.seed + number, *seen)

    def _by_damage(
        self, problem: Problem, cost: Cost, bound: float, clock: Clock | None, depth: Depth | None, context: Context
    ) -> tuple[NDArray[np.bool_], Sequence[Bypass], dict[str, Any]]:
        """The units and the blocks that go where damage is measured, and what is said about it in the record."""
        samples = context.samples(problem.coupling)
        search = Staged(
            coupling=problem.coupling,
            problem=problem,
            samples=samples,
            engine=Engine(context.provider, context.threads),
            method=resolve_method(self.recover),
            kind=self.distance,
            criterion=None if self.criterion in (AUTO, "obs") else self.criterion,
            seed=self.seed,
            tell=context.on_stage,
            clock=clock,
            memo=context.memo if context.shared else None,  # it would be large
            least=self.iterations,
            depth=depth,
        )
        with context.stage("damage"):
            removed, stages = search.run(cost if depth is None else depth.cost, bound)
        notes: dict[str, Any] = {"stages": [asdict(stage) for stage in stages]}
        if depth is not None:
            notes["blocks"] = depth.told(search.bypasses)
        return removed, search.bypasses, notes


def _said(weak: NDArray[np.bool_], removed: NDArray[np.bool_], threshold: float) -> str:
    """What a threshold took, in words."""
    count, gone, more = (int(units.sum()) for units in (weak, weak & removed, removed & ~weak))
    if not count and not more:
        return f"nothing: no unit scores less than {threshold:g}"
    said = f"{gone or 'nothing'} of {count} units that score less than {threshold:g}"
    said += "; the others keep a width whole, or were to stay" if gone < count else ""
    return said + (f"; {more} more by a ratio" if more else "")
