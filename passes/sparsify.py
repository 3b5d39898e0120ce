"""Make weights zero: single ones, N of every M, kernels and their rows, or blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isclose
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import graph as graphs
from onnxprune.coupling import couple
from onnxprune.errors import DataError, ModelError, OptionError, ShapeError, at_least, expressions, one_of
from onnxprune.folds import foldable
from onnxprune.formats import is_half
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.latency.block import resolve_align
from onnxprune.lossless import aligned
from onnxprune.outcome import carry_out
from onnxprune.parity import parity
from onnxprune.parts import Engine
from onnxprune.passes import register
from onnxprune.patch import patched
from onnxprune.plan import make_plan
from onnxprune.rules.base import Options
from onnxprune.sparse import too_old, with_sparse
from onnxprune.sparsity.choice import CRITERIA, Way
from onnxprune.sparsity.layers import layers_of
from onnxprune.sparsity.layerwise import Work
from onnxprune.sparsity.patterns import parse
from onnxprune.sparsity.told import Told
from onnxprune.steps import Context, Outcome, Proof
from onnxprune.tensors import Store

SHARE = 0.5
SCOPES = ("layer", "global")
STORAGES = ("dense", "sparse")


@register("sparsify")
@dataclass(frozen=True)
class Sparsify:
    """Make weights zero: single ones, 2:4 and other N:M patterns, kernels, blocks; smaller files, seldom faster models.

    Attributes:
        pattern: what becomes zero together: unstructured (single weights), N:M (at most N of M input channels stay),
            vector (rows of a kernel), kernel (all taps of an input and an output channel), or RxC (blocks of R outputs
            and C columns, which are input channels times taps).
        sparsity: the share of the weights that becomes zero; a half, unless N:M or a threshold says it.
        threshold: what has a lower score becomes zero, instead of a share.
        criterion: magnitude (|w|), wanda (|w| times the input's size) or obs (SparseGPT: by the error that it makes,
            and the weights that stay make up for it); "auto": obs, without data or for a threshold magnitude.
        scope: "layer" takes the share of every layer, "global" of all together, from those that lose least by it.
        keep: regular expression or several; layers with a matching node or tensor stay dense.
        cut: remove channels that nothing reads any more or that became constant (the function stays the same).
        align: widths that are cut so stay multiples of this; "auto" is the provider's block, which is measured once.
        storage: "sparse" writes weights as sparse tensors where that is smaller, "dense" none.
        seed: of the places that are sampled in the data.
    """

    settles: ClassVar[bool] = True

    pattern: str = "unstructured"
    sparsity: float | None = None
    threshold: float | None = None
    criterion: str = "auto"
    scope: str = "layer"
    keep: str | Sequence[str] = ()
    cut: bool = True
    align: str | int = "auto"
    storage: str = "dense"
    seed: int = 0

    @property
    def last(self) -> bool:
        """Whether a pass after it would lose the sparse tensors."""
        return self.storage == "sparse"

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        expressions("sparsify: keep =", self.keep)
        pattern = parse(self.pattern)
        one_of("sparsify: criterion =", self.criterion, CRITERIA)
        one_of("sparsify: scope =", self.scope, SCOPES)
        one_of("sparsify: storage =", self.storage, STORAGES)
        at_least("sparsify: seed =", self.seed, 0)
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise OptionError(f"sparsify: sparsity = {self.sparsity}: write a share between 0 and 1, as in 0.5")
        if self.threshold is not None and not 0 < self.threshold < float("inf"):
            raise OptionError(f"sparsify: threshold = {self.threshold}: write a positive number")
        if self.sparsity is not None and self.threshold is not None:
            raise OptionError("sparsify: sparsity and threshold both say how much goes: give one of them")
        given = self.sparsity if self.threshold is None else self.threshold
        if pattern.share is not None and given is not None and (self.threshold or not isclose(given, pattern.share)):
            which = "sparsity" if self.threshold is None else "threshold"
            raise OptionError(
                f"sparsify: pattern = {self.pattern!r} is {pattern.share:.6g} sparse by itself: drop {which}"
            )
        if self.scope == "global" and (pattern.share is not None or self.threshold is not None):
            which = "threshold" if self.threshold is not None else f"pattern = {self.pattern!r}"
            raise OptionError(f"sparsify: scope = 'global' shares out a sparsity, and {which} leaves none to share out")

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Choose, update, check; then cut and store.

        Raises:
            OptionError: the pattern fits no layer, or there are no data where they are needed.
        """
        pattern = parse(self.pattern)
        criterion = self._criterion(context)
        with context.stage("analysis"):
            coupling = context.couple(graph, Options())
            layers, left = layers_of(coupling, pattern, self.keep)
        share = pattern.share or self.sparsity or SHARE
        way = Way(criterion, share, self.threshold, criterion == "wanda" and self.scope == "layer")
        turn = None if context.data is None else context.samples(coupling).last
        engine = Engine(context.provider, context.threads)
        with context.stage("sparsify"):
            work = Work(graph, layers, [way] * len(layers), turn, engine, self.seed, context.on_stage)
            if self.scope == "global":
                work = work.ranked(share)
            model = context.make(partial(patched, graph, work.patch()))  # and the patch is let go
        done = [work.done[layer.reader.constant] for layer in layers]
        outcome, rounded = Outcome(model), 0
        if self.cut and pattern.survives_cuts and any(d.hollow for d in done):
            outcome, rounded = _without_hollow(model, self.align, context)
        units = sum(g["units"]["before"] - g["units"]["after"] for g in outcome.notes.get("groups", ()))
        sparse = None
        if self.storage == "sparse":
            with context.stage("sparse tensors"):
                outcome, sparse = _stored_sparse(outcome, {d.constant for d in done}, context)
        bound = {d.constant for d in done if too_old(graph.proto)} - {t.name for t in graph.proto.graph.initializer}
        asked = share if self.threshold is None else None
        told = Told(pattern, criterion, done, left, units, rounded, sparse, len(bound), asked)
        return replace(outcome, notes={**outcome.notes, "sparsify": told.notes}, said=told.sentence)

    def _criterion(self, context: Context) -> str:
        """What "auto" stands for.

        Raises:
            OptionError: it needs data, and there are none.
        """
        if self.criterion == "auto":
            return "magnitude" if context.data is None or self.threshold is not None else "obs"
        if self.criterion != "magnitude" and context.data is None:
            raise OptionError(
                f"sparsify: criterion = {self.criterion!r} looks at inputs: give --data (or --data synthetic), or "
                "take magnitude"
            )
        return self.criterion


def _without_hollow(model: ModelProto | Path, align: str | int, context: Context) -> tuple[Outcome, int]:
    """The model without channels that its function does not need.

    A constant that goes into a bias is exact, but what the model makes of it need not be: ONNX Runtime's mean of
    200,000 equal numbers is off by 2e-4 of them. Where that is felt, constant channels stay: how many is said, too.
    """
    with context.stage("search"):
        coupling = couple(graphs.load(model, context.shapes), Options())
        context.observe(coupling)
        half = is_half(coupling.graph.proto)
        block = resolve_align(align, context.provider, context.bench_seconds > 0, half)
    keep = np.zeros(coupling.units, dtype=bool)
    while True:
        with context.stage("search"):
            removed, folds = aligned(coupling, block, keep)
        if not removed.any():
            return Outcome(model), int(keep.sum())
        outcome = carry_out(coupling, removed, make_plan(coupling, removed, folds), context)
        folded = _folded(coupling, folds) & removed
        if not folded.any() or _agree(model, outcome.model, coupling.graph, context):
            return replace(outcome, replays=False), int(keep.sum())
        keep |= folded


def _folded(coupling: Coupling, folds: Mapping[str, Any]) -> NDArray[np.bool_]:
    """[units]: those whose constants go into biases."""
    read = {node.outputs[0]: coupling.unit_of(spec.x) for node, spec in foldable(coupling)}
    found = np.zeros(coupling.units, dtype=bool)
    for output, channels, _ in folds.get("bias", ()):
        if (units := read[output]) is not None:
            found[units[channels]] = True
    return found


def _agree(whole: ModelProto | Path, cut: ModelProto | Path, graph: Graph, context: Context) -> bool:
    """Whether both compute the same, as far as the model can be run."""
    with context.stage("parity"):
        try:
            return parity(whole, cut, context.feeds(graph), context.provider, context.threads).exact
        except (ModelError, DataError, ShapeError):
            return True


def _stored_sparse(outcome: Outcome, names: Collection[str], context: Context) -> tuple[Outcome, list[str]]:
    """The model with sparse tensors, which must compute what the dense one does; and their names."""
    dense, made = outcome.model, list[str]()
    graph = graphs.load(dense, context.shapes)

    def make(store: Store) -> ModelProto:
        model, sparse = with_sparse(graph.proto, graph.folder, names, store)
        made[:] = sparse
        return model

    model = context.make(make)
    if not made:
        return outcome, made
    return replace(outcome, model=model, proof=outcome.proof or Proof(lambda: dense)), made
