"""A model seen on some inputs: what its groups read, in which order their units go, and how far its answers are off."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxprune.criteria.base import score, sight_of
from onnxprune.curves import Curve, curves, ranked
from onnxprune.damage import Gauge
from onnxprune.divergence import Distance, distance_of
from onnxprune.feeds import Feed
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.instrument import Want
from onnxprune.observe import observe
from onnxprune.parts import Engine, Walk
from onnxprune.patch import NOTHING
from onnxprune.samples import Turn


@dataclass(frozen=True, eq=False)
class Look:
    """A model on the inputs of a turn.

    Attributes:
        gauge: measures damage to it.
        curves: for each of its groups, the order in which units go, and the local error.
        batches: the inputs on which is measured.
        off: the distance of its answers from the original's.
        known: (group, units gone) -> damage, as far as it was measured.
    """

    gauge: Gauge
    curves: list[Curve]
    batches: tuple[Feed, ...]
    off: float
    known: dict[tuple[int, int], float] = field(default_factory=dict)


def look(
    original: Graph,
    now: Coupling,
    turn: Turn,
    engine: Engine,
    method: str = "full",
    kind: str = "auto",
    criterion: str | None = None,
    seed: int = 0,
    keep: bool = False,
) -> Look:
    """Run a model over the inputs of a turn.

    Args:
        original: whose answers those of the model are compared with.
        now: the analysis of the model.
        turn: statistics are taken where weights are fitted, answers where is chosen.
        engine: where it runs.
        method: the repair that damage will be measured with.
        kind: how answers are compared.
        criterion: in which order units go; None: by the error that their consumers make without them.
        seed: of the places sampled.
        keep: the statistics, on disk (see `observe`).

    Raises:
        DataError, ModelError: as `observe` and `distance_of`.
    """
    distance = distance_of(original, turn.choose, engine, kind)
    sight = sight_of(criterion or "obs") or Want.SUMS
    want = sight if method == "none" else sight | Want.PAIRS
    readers, moments = observe(now, turn.fit, engine, want, seed, keep)
    walk = Walk(now.graph, turn.choose, engine)
    answers = list(walk.rest(NOTHING, distance.values, engine))
    # From the answers as they are by now: from the original's, an error that happens to undo another looks good.
    here = Distance(distance.compared, answers)
    gauge = Gauge(now, readers, moments, here, engine, method)
    if criterion is None:
        found = curves(now, readers, moments, score(now, "l2"), engine.workers)
    else:
        scores = score(now, criterion, seed=seed, readers=readers, moments=moments)
        found = [ranked(group.units, scores) for group in now.groups]
    return Look(gauge, found, turn.choose, distance(answers))
