"""Restore the answers of a cut model by closed forms, layer after layer, without labels and without gradients.

Original and cut model are walked through side by side. At every contraction that lost channels, its weights are fitted
anew: the inputs are what the cut model (already repaired up to here) has, the targets what the original has, so that
later layers undo the damage of earlier ones (He et al. 2017; AdaRound and GPTQ use the same asymmetric targets). Where
the result is added to another branch, the target makes up for that branch's error, too.

Of every layer several repairs are tried: none, a new bias, the C x C map of lost channels onto kept ones (folded into
every tap), and least squares on sampled im2col rows with several ridges, drawn to the weights or to the map. The one
with the least error on samples that it was not fitted to is taken; if that is none, the layer stays as it is. Where
BatchNormalization is still there, its statistics follow what it now reads (see `renorm`). Products of two computed
tensors, which have no weights, are repaired through layers before them (see `scores`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.blocks import alive
from onnxprune.branches import Branch, branch_of, corrected
from onnxprune.consumers import Consumer, consumers
from onnxprune.coupling import couple
from onnxprune.errors import OptionError, one_of
from onnxprune.feeds import Feed, rows
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.parts import Engine, Walk
from onnxprune.patch import Patch
from onnxprune.plan import kept_indices
from onnxprune.refit import Layer, Refit, same_but
from onnxprune.renorm import norms
from onnxprune.rules.base import Dim
from onnxprune.scores import bonds, mended

Array = NDArray[Any]
Floats = NDArray[np.float64]
Index = NDArray[np.intp]
Stop: TypeAlias = tuple[int, list[str]]

METHODS = ("none", "bias", "channel", "full")
AUTO = "auto"


def resolve_method(method: str, data: bool = True) -> str:
    """What is tried at most; "auto" is everything that can be done with data, or without.

    Raises:
        OptionError: there is no such method, or it needs data.
    """
    one_of("--recover", method, (*METHODS, AUTO))
    if not data and method not in ("none", "bias", AUTO):
        raise OptionError(
            f"--recover {method} fits weights to inputs: give --data (or --data synthetic), or take --recover bias"
        )
    return ("full" if data else "bias") if method == AUTO else method


@dataclass(frozen=True, eq=False)
class Pair:
    """An original and its cut.

    Attributes:
        original: the analysis of the original.
        removed: [units], those that the cut took.
        cut: the cut model.
        touched: first outputs of contractions that lost no channels, but whose weights are to be fitted anew, too.
        around: exit -> entry of the blocks that the cut model lacks.
    """

    original: Coupling
    removed: NDArray[np.bool_]
    cut: Graph
    touched: frozenset[str] = frozenset()
    around: Mapping[str, str] = field(default_factory=dict)

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
    rescale: bool = False,
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
        rescale: give results the variance that the original's have (see `refit`).
        tell: told about progress.

    Returns:
        The new weights of the cut model, and what was done to each layer.
    """
    cut = couple(pair.cut, pair.original.options)
    batches = [*fit, *choose]
    todo = deque(_steps(pair, cut, method, sum(map(rows, batches)), seed, rescale, engine.workers))
    count = len(todo)
    dense, thin = Walk(pair.original.graph, batches, engine), Walk(pair.cut, batches, engine)
    lost = bonds(pair.original, cut, pair.kept) if method in ("channel", "full") else []
    layers = list[Layer]()
    while todo:
        tell(f"recovery {count - len(todo) + 1}/{count}")
        step = todo.popleft()  # with what it collects, which may be large
        layers += mended(lost, step.thin[0], dense, thin, len(fit), everything)
        full, part = dense.advance(*step.dense), thin.advance(*step.thin)
        for batch, values in enumerate(zip(full, part, strict=True)):
            step.add(batch >= len(fit), *values)
        patch, said = step.best(everything)
        thin.patch |= patch
        layers += [said] if step.cut or said.method != "none" else []
    layers += mended(lost, len(pair.cut.nodes), dense, thin, len(fit), everything)
    dense.close()
    thin.close()
    return thin.patch, layers


class Step(Protocol):
    """A part of the cut model that is repaired.

    Attributes:
        dense, thin: of the original and of the cut model: the node in front of which values are taken, and which.
        cut: it lost channels itself, and does not only read what has changed.
    """

    @property
    def cut(self) -> bool:
        """Whether it lost channels itself."""

    @property
    def dense(self) -> Stop:
        """Of the original."""

    @property
    def thin(self) -> Stop:
        """Of the cut model."""

    def add(self, choosing: bool, dense: Mapping[str, Array], thin: Mapping[str, Array]) -> None:
        """The values of a batch; `choosing`: it is held out."""

    def best(self, everything: bool) -> tuple[Patch, Layer]:
        """New weights, and what is said about them."""


def _steps(pair: Pair, cut: Coupling, method: str, samples: int, seed: int, rescale: bool, workers: int) -> list[Step]:
    """What is repaired, in the order of the nodes: contractions that lost channels by all means of `method`; of what
    comes after them and lost none itself, biases and the statistics of BatchNormalization (and the variance)."""
    mine = {c.node.outputs[0]: c for c in consumers(pair.original)}
    both = [(mine[c.node.outputs[0]], c) for c in consumers(cut) if c.node.outputs[0] in mine]
    both = [(a, b) for a, b in both if a.groups == b.groups]
    lost = {b.y.value: b.node.index for a, b in both if b.node.outputs[0] in pair.touched or _lost(pair, a)}
    if not lost:
        return []
    first = min(lost.values())
    renormed = list(norms(pair.original, cut, pair.kept, rescale, first, lost))
    found: list[Step] = [*renormed]
    moved = {step.b.inputs[0] for step in renormed}
    for number, (a, b) in enumerate(both):
        whole = b.y.value not in lost
        if whole and (b.bias is None or b.y.value in moved or b.node.index < first):
            continue
        kept, rng = (_kept(pair, a), pair.kept(a.y)), np.random.default_rng([seed, number])
        # The variance that is given back is that of the original's own result.
        branch = None if rescale else branch_of(a, b)
        most = "bias" if whole else method
        refit = Refit(a, b, kept, samples, most, rng, rescale, workers, branch is not None)
        found.append(Contracted(a, b, refit, kept[1], branch, not whole))
    return sorted(found, key=lambda step: (step.dense[0], step.thin[0]))


@dataclass(frozen=True, eq=False)
class Contracted:
    """A contraction that lost channels, or that reads what has changed.

    Attributes:
        a, b: in the original and in the cut model.
        refit: fits its weights.
        kept: the channels of its result that the cut model has.
        other: what the result is added to, if its error is made up for.
        cut: it lost channels itself.
    """

    a: Consumer
    b: Consumer
    refit: Refit
    kept: Index | slice
    other: Branch | None
    cut: bool

    @property
    def dense(self) -> Stop:
        """Behind it: its input, its result, the other branch."""
        more = [self.other.value] if self.other else []
        return self.a.node.index + 1, [self.a.x.value, self.a.y.value, *more]

    @property
    def thin(self) -> Stop:
        """In front of it: its input, the other branch."""
        return self.b.node.index, [self.b.x.value, *([self.other.value] if self.other else [])]

    def add(self, choosing: bool, dense: Mapping[str, Array], thin: Mapping[str, Array]) -> None:
        """Rows of a batch, the targets corrected; none where the models picked unlike numbers of boxes before it."""
        y = dense[self.a.y.value]
        if not same_but(dense[self.a.x.value], thin[self.b.x.value], self.a.x.axis):
            return
        if self.other:
            here = self.other.value
            y = corrected(y, self.other, dense[here], thin[here], self.a.y.axis, self.kept)
        self.refit.add(choosing, dense[self.a.x.value], y, thin[self.b.x.value])

    def best(self, everything: bool) -> tuple[Patch, Layer]:
        """As `Refit.best`."""
        return self.refit.best(everything)


def _kept(pair: Pair, reader: Consumer) -> NDArray[np.bool_]:
    """[channels of its input]: whether the cut model has them."""
    units = reader.units
    kept = np.ones(units.size, dtype=bool)
    kept[units >= 0] = ~pair.removed[units[units >= 0]]
    return kept


def unmatched(pair: Pair) -> list[str]:
    """The layers that lost channels, and that are not in the cut model by the name of their result."""
    there = {name for node in pair.cut.nodes for name in node.outputs}
    meant = alive(pair.original.graph, pair.around)
    lost = (c for c in consumers(pair.original) if c.node.outputs[0] not in there and _lost(pair, c))
    return [c.node.label for c in lost if c.node.index in meant and c.node.outputs[0] not in pair.around]


def _lost(pair: Pair, reader: Consumer) -> bool:
    """Whether channels that it contracts went."""
    return kept_indices(pair.original, pair.removed, reader.spec.w_in) is not None
