"""Restore the answers of a cut model by closed forms, layer after layer, without labels and without gradients.

Original and cut model are walked through side by side. At every contraction that lost channels, its weights are fitted
anew: the inputs are what the cut model (already repaired up to here) has, the targets what the original has, so that
later layers undo the damage of earlier ones (He et al. 2017; AdaRound and GPTQ use the same asymmetric targets). Where
the result is added to another branch, the target makes up for that branch's error, too.

Of every layer several repairs are tried: none, a new bias, the C x C map of lost channels onto kept ones (folded into
every tap), and least squares on sampled im2col rows with several ridges, drawn to the weights or to the map. The one
with the least error on samples that it was not fitted to is taken; if that is none, the layer stays as it is. Products
of two computed tensors, which have no weights, are repaired through layers before them (see `scores`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.consumers import Consumer, consumers
from onnxprune.coupling import couple
from onnxprune.errors import OptionError
from onnxprune.feeds import Feed, rows
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.parts import Engine, Walk
from onnxprune.patch import Patch
from onnxprune.plan import kept_indices
from onnxprune.refit import Layer, Refit
from onnxprune.rules.base import Dim
from onnxprune.scores import bonds, mended

Array = NDArray[Any]
Floats = NDArray[np.float64]
Index = NDArray[np.intp]

METHODS = ("none", "bias", "channel", "full")
AUTO = "auto"


def resolve_method(method: str) -> str:
    """What is tried at most; "auto" is everything.

    Raises:
        OptionError: there is no such method.
    """
    if method not in (*METHODS, AUTO):
        raise OptionError(f"--recover {method}: choose one of {', '.join(METHODS)} or auto")
    return "full" if method == AUTO else method


@dataclass(frozen=True, eq=False)
class Pair:
    """An original and its cut.

    Attributes:
        original: the analysis of the original.
        removed: [units], those that the cut took.
        cut: the cut model.
    """

    original: Coupling
    removed: NDArray[np.bool_]
    cut: Graph

    def kept(self, dim: Dim) -> Index | slice:
        """The indices of an axis of the original that the cut model has."""
        index = kept_indices(self.original, self.removed, dim)
        return slice(None) if index is None else index


def recover(
    pair: Pair,
    fit: Sequence[Feed],
    choose: Sequence[Feed],
    method: str,
    engine: Engine,
    seed: int = 0,
    everything: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Patch, list[Layer]]:
    """Fit the weights of a cut model to the original's answers.

    Args:
        pair: both models.
        fit: inputs that weights are fitted to.
        choose: inputs that the repair of each layer is chosen with.
        method: the most that is tried: "bias", "channel" or "full".
        engine: where the models run.
        seed: of the places sampled.
        everything: once it is chosen, fit the repair to all inputs.
        tell: told about progress.

    Returns:
        The new weights of the cut model, and what was done to each layer.
    """
    mine = {c.node.outputs[0]: c for c in consumers(pair.original)}
    cut = couple(pair.cut, pair.original.options)
    todo = [(mine[c.node.outputs[0]], c) for c in consumers(cut) if c.node.outputs[0] in mine]
    todo = [(a, b) for a, b in todo if a.groups == b.groups and _lost(pair, a)]
    batches = [*fit, *choose]
    samples = sum(map(rows, batches))
    dense, thin = Walk(pair.original.graph, batches, engine), Walk(pair.cut, batches, engine)
    lost = bonds(pair.original, cut, pair.kept) if method in ("channel", "full") else []
    layers = list[Layer]()
    for number, (a, b) in enumerate(todo):
        tell(f"recovery {number + 1}/{len(todo)}")
        layers += mended(lost, b.node.index, dense, thin, len(fit), everything)
        kept = _kept(pair, a), pair.kept(a.y)
        layer = Refit(a, b, kept, samples, method, np.random.default_rng([seed, number]))
        other = _branch(pair, a, b)
        more = [other] if other else []
        full = dense.advance(a.node.index + 1, [a.x.value, a.y.value, *more])
        part = thin.advance(b.node.index, [b.x.value, *more])
        for batch, (mine_here, thin_here) in enumerate(zip(full, part, strict=True)):
            y = mine_here[a.y.value]
            if other:
                y = _corrected(y, mine_here[other], thin_here[other], a.y.axis, kept[1])
            layer.add(batch >= len(fit), mine_here[a.x.value], y, thin_here[b.x.value])
        patch, said = layer.best(everything)
        thin.patch |= patch
        layers.append(said)
    layers += mended(lost, len(pair.cut.nodes), dense, thin, len(fit), everything)
    dense.close()
    thin.close()
    return thin.patch, layers


def _kept(pair: Pair, reader: Consumer) -> NDArray[np.bool_]:
    """[channels of its input]: whether the cut model has them."""
    units = reader.units
    kept = np.ones(units.size, dtype=bool)
    kept[units >= 0] = ~pair.removed[units[units >= 0]]
    return kept


def _lost(pair: Pair, reader: Consumer) -> bool:
    """Whether channels that it contracts went."""
    return kept_indices(pair.original, pair.removed, reader.spec.w_in) is not None


def _branch(pair: Pair, a: Consumer, b: Consumer) -> str | None:
    """The other branch, if the result is only added to one, and that is computed before it in both models."""
    graph, y = pair.original.graph, a.y.value
    readers = graph.consumers.get(y, [])
    if len(readers) != 1 or readers[0][0].op != "Add" or y in graph.outputs or y in graph.captured:
        return None
    adder, slot = readers[0]
    other = adder.inputs[1 - slot]
    if other in graph.fixed or graph.shapes.get(other) != graph.shapes.get(y):
        return None
    late = any(
        (maker := model.producer.get(other)) is not None and maker.index > node.index
        for model, node in ((graph, a.node), (pair.cut, b.node))
    )
    return None if late else other


def _corrected(y: Array, full: Array, part: Array, axis: int, kept: Index | slice) -> Array:
    """What the cut model's result has to be, so that its sum with the other branch is the original's sum.

    Args:
        y, full: the original's result, and what it is added to.
        part: what the cut model adds it to.
        axis: of the channels.
        kept: those that the cut model has.
    """
    where = (slice(None),) * axis + (kept,)
    if full.shape != y.shape or part.shape != y[where].shape:
        return y
    target = y.astype(np.float32)
    target[where] += full[where].astype(np.float32) - part.astype(np.float32)
    return target
