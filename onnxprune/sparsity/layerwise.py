"""Layer after layer, from the inputs to the outputs: each makes of what the layers before it, sparse
already, give what the dense one made, as far as it can.

Without data nothing has to wait for anything, and the weights of a layer are made only when they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.feeds import rows
from onnxprune.graph import Graph
from onnxprune.parts import Engine, Walk
from onnxprune.patch import Patch
from onnxprune.samples import Turn
from onnxprune.solve import at_once
from onnxprune.sparsity.choice import Chosen, Way, choose, scores_of
from onnxprune.sparsity.layers import Layer
from onnxprune.sparsity.moments import Seen, look
from onnxprune.sparsity.patterns import Array
from onnxprune.sparsity.ranking import shares
from onnxprune.sparsity.worth import Bytes, bytes_of


@dataclass(frozen=True)
class Done:
    """What became of a layer.

    Attributes:
        node: its name.
        constant: its weights.
        weights, zeros: how many.
        error: of its result on held-out samples, relative to its variance; None: there are no data.
        damping: that its update was made with; None: nothing was updated.
        hollow: a whole output, or all weights of an input channel, are zero.
        before, after: bytes of its weights.
    """

    node: str
    constant: str
    weights: int
    zeros: int
    error: float | None
    damping: float | None
    hollow: bool
    before: Bytes
    after: Bytes


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be done.

    Attributes:
        graph: the model.
        layers: in the order of the nodes.
        ways: how each becomes sparse.
        turn: inputs that layers are fitted to, and others; None: there are no data.
        engine: where the model runs.
        seed: of the places that are sampled.
        tell: told about progress.
        done: filled as layers are finished.
    """

    graph: Graph
    layers: Sequence[Layer]
    ways: Sequence[Way]
    turn: Turn | None
    engine: Engine
    seed: int = 0
    tell: Callable[[str], None] = lambda text: None
    done: dict[str, Done] = field(default_factory=dict)

    def patch(self) -> Patch:
        """The new weights; without data they are made one by one, as they are asked for."""
        if self.turn is None:
            each = {layer.reader.constant: (layer, way) for layer, way in zip(self.layers, self.ways, strict=True)}
            return Patch(_Late(lambda name: self._finish(each[name][0], choose(*each[name], None)), tuple(each)))
        with closing(self._walk(self.turn)) as dense, closing(self._walk(self.turn)) as thin:
            for (layer, seen), way in zip(self._seen(self.turn, dense, thin), self.ways, strict=True):
                thin.patch |= self._finish(layer, choose(layer, way, seen))
            return thin.patch

    def ranked(self, share: float) -> Work:
        """The same with a share for each layer, so that `share` goes of all: what has the lowest scores in all of them.

        Errors count relative to the variance of what a layer makes, magnitudes as they are.
        """
        if self.turn is None:
            scores = [self._scores(layer, way, None) for layer, way in zip(self.layers, self.ways, strict=True)]
        else:
            with closing(self._walk(self.turn)) as dense:
                seen = zip(self._seen(self.turn, dense), self.ways, strict=True)
                scores = [self._scores(layer, way, found) for (layer, found), way in seen]
        parts = shares(scores, [layer.size for layer in self.layers], share)
        return replace(self, ways=[replace(way, share=part) for way, part in zip(self.ways, parts, strict=True)])

    def _scores(self, layer: Layer, way: Way, seen: Seen | None) -> Array:
        scores = layer.grid.scores(scores_of(layer, way.criterion, seen)).reshape(-1)
        if seen is None or way.criterion == "magnitude":
            return scores.astype(np.float32, copy=False)
        power = np.square(scores) if way.criterion == "wanda" else scores
        relative = power / max(seen.fit.variance(layer.matrix()), float(np.finfo(float).tiny))
        return np.minimum(relative, float(np.finfo(np.float32).max)).astype(np.float32)

    def _walk(self, turn: Turn) -> Walk:
        return Walk(self.graph, [*turn.fit, *turn.choose], self.engine)

    def _seen(self, turn: Turn, dense: Walk, thin: Walk | None = None) -> Iterator[tuple[Layer, Seen]]:
        samples = sum(map(rows, [*turn.fit, *turn.choose]))
        for number, layer in enumerate(self.layers):
            self.tell(f"sparsify {number + 1}/{len(self.layers)}")
            yield layer, look(layer, dense, thin, len(turn.fit), samples, np.random.default_rng([self.seed, number]))

    def _finish(self, layer: Layer, chosen: Chosen) -> Patch:
        """The new weights of a layer, checked; what it became is noted."""
        patch, name = layer.patch(chosen.gone, chosen.matrix, chosen.shift), layer.reader.constant
        new, kind = patch.weights[name], self.graph.constants[name].data_type
        stored = layer.stored(new)
        before, after = at_once(lambda a: bytes_of(a, kind), [self.graph.array(name), new], self.engine.workers)
        self.done[name] = Done(
            node=layer.label,
            constant=name,
            weights=layer.size,
            zeros=layer.size - int(np.count_nonzero(stored)),
            error=chosen.error,
            damping=chosen.damping,
            hollow=layer.hollow(stored),
            before=before,
            after=after,
        )
        return patch


class _Late(Mapping[str, Array]):
    """Constants that are made when they are asked for, one at a time."""

    def __init__(self, make: Callable[[str], Patch], names: tuple[str, ...]) -> None:
        self._make, self._names = make, names

    def __getitem__(self, name: str) -> Array:
        return self._make(name).weights[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
