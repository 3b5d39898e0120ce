"""A model with something about it changed, again and again, and how far its answers are off each time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from onnxprune.divergence import Distance
from onnxprune.feeds import Feed
from onnxprune.graph import Graph, file_bytes
from onnxprune.parts import Engine, Parts, Place, Walk
from onnxprune.patch import NOTHING, Patch

TOGETHER = 1 << 29  # bytes of weights in all sessions that run side by side: each has its own


@dataclass(frozen=True, eq=False)
class Trial:
    """Something that is changed of a model, alone.

    Attributes:
        start: the first node that computes with what changes.
        patch: makes the change; called when its turn comes, so that few are held at once.
        view: makes the model that is patched, where it is not the walk's own; up to `start` it computes the same.
    """

    start: int
    patch: Callable[[], Patch] = lambda: NOTHING
    view: Callable[[], Graph] | None = None


def distances(
    graph: Graph,
    batches: Iterable[Feed],
    trials: Sequence[Trial],
    distance: Distance,
    engine: Engine,
    tell: Callable[[str], None],
    what: str = "damage",
) -> list[float]:
    """How far the answers are off in each trial: what comes before its first node is computed once for all.

    Args:
        graph: the model.
        batches: the inputs on which it is measured.
        trials: any number, in any order.
        distance: from the answers of the original.
        engine: where parts run; trials run side by side, and the threads are shared out.
        tell: called with a line of progress, which begins with `what` is measured.
    """
    walk = Walk(graph, batches, engine, distance.values)
    last, found = len(graph.nodes), [0.0] * len(trials)
    waiting: deque[tuple[int, Future[float]]] = deque()
    abreast = max(1, min(engine.workers, TOGETHER // max(file_bytes(graph), 1)))
    each = replace(engine, threads=max(1, engine.workers // abreast))

    def collect(most: int) -> None:
        while len(waiting) > most:  # so many places in the model are held at once
            number, future = waiting.popleft()
            found[number] = future.result()

    def off(place: Place, trial: Trial) -> float:
        here = place if trial.view is None else replace(place, parts=Parts(trial.view()))
        return distance(here.rest(trial.patch(), distance.values, each))

    with ThreadPoolExecutor(abreast) as pool:
        for done, number in enumerate(sorted(range(len(trials)), key=lambda n: trials[n].start), 1):
            tell(f"{what} {done}/{len(trials)}")
            collect(abreast if abreast > 1 else 0)  # a large model: the walk has a session of its own, too
            walk.go(min(trials[number].start, last))
            waiting.append((number, pool.submit(off, walk.here(), trials[number])))
        collect(0)
    walk.close()
    return found
