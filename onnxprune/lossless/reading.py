"""Contractions as the analysis reads them: which channels each output reads, and what is known of the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.folds import CHAIN, Contraction, contraction, foldable, weighed
from onnxprune.groups import Coupling
from onnxprune.lossless.facts import Fact, Facts, Names, same_rows
from onnxprune.rules.base import NodeView
from onnxprune.sums import CHUNK, totals

Array = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Reading:
    """What a contraction does with its input.

    Attributes:
        contraction: the node and its weights.
        x: [channel of the input], the fact of each.
        open: [channel], False where the sum needs nothing of it: a zero, or a constant that a bias can take.
        shape: numbers of outputs, and of channels inside a group.
        held: `uses`, or, of a large contraction, eight of them in a byte.
    """

    contraction: Contraction
    x: Fact
    open: Mask
    shape: tuple[int, int]
    held: Array

    @property
    def uses(self) -> Mask:
        """[output, channel inside its group], whether a weight between them is not zero."""
        if self.held.dtype == np.bool_:
            return self.held
        return np.unpackbits(self.held, axis=1, count=self.shape[1]).view(np.bool_)


def read(facts: Facts, view: NodeView, each: Contraction) -> Reading | None:
    """Read a contraction and set the fact of its output; None where its weights are not known."""
    rows, spec = each.rows({}), each.spec
    if rows is None or rows.size == 0:
        return None
    groups = spec.groups
    x = facts.along(spec.x.value, spec.x.axis, groups * rows.shape[1])
    number = np.where(np.isnan(x), 0.0, x)
    found = Reading(each, x, np.isnan(x) | ((number != 0) & (each.bias is None)), rows.shape[:2], used(rows))
    if not spec.y.value:
        return found
    bias = _bias(facts, view, each, rows.shape[0])
    taken = np.flatnonzero(~found.open & (number != 0))
    amount = each.alpha * weighed(rows, groups, taken, number[taken]) if taken.size else 0.0
    bias = np.where(np.isnan(bias), bias, each.beta * bias + amount)
    content, names = _content(rows, groups, found.open, x)
    reads = found.uses.any(axis=1) if content is rows else (content != 0).any(axis=(1, 2))
    owner = np.repeat(same_rows(names), rows.shape[0] // groups)
    y = facts.combine(np.where(reads, np.nan, bias), same_rows(content), owner, bias)
    facts.set(spec.y.value, y.reshape([-1 if a == spec.y.axis else 1 for a in range(len(view.out_shape()))]))
    return found


def _bias(facts: Facts, view: NodeView, each: Contraction, size: int) -> Fact:
    name, slot = each.spec.bias, each.spec.bias_slot
    if name is None or slot is None:
        return np.zeros(size)
    rank = len(view.shape(slot))
    return facts.along(name, rank - 1, size) if rank else np.full(size, facts.of(name))


def readings(coupling: Coupling) -> dict[int, Contraction]:
    """Node index -> contraction, for all linear nodes that are known here."""
    return {node.index: contraction(coupling, node, spec) for node, spec in foldable(coupling)}


def derived(coupling: Coupling) -> set[str]:
    """Values that are constants, or constants in another shape, order or type."""
    found = set(coupling.graph.constants)
    for node in coupling.graph.nodes:
        if node.op in CHAIN and not node.domain and all(n in found for n in node.inputs if n):
            found.update(node.outputs)
    return found


def used(rows: Array) -> Array:
    """[output, input]: whether any weight between them is not zero; as `Reading.held`."""
    uses = np.asarray(rows[:, :, 0] != 0 if rows.shape[2] == 1 else (rows != 0).any(axis=2))
    return uses if uses.size <= CHUNK else np.packbits(uses, axis=1)


def _content(rows: Array, groups: int, is_open: NDArray[np.bool_], x: Fact) -> tuple[Array, Names]:
    """What tells two outputs apart: their weights over different, open channels, and [group, input] what these are."""
    names = x.view(np.int64).reshape(groups, -1)
    if groups > 1:
        shut = ~is_open.reshape(groups, 1, -1, 1)
        if shut.any():
            rows = np.where(shut, 0, rows.reshape(groups, -1, *rows.shape[1:])).reshape(rows.shape)
            names = np.where(shut[:, 0, :, 0], 0, names)
        return rows, names
    _, first, owner = np.unique(x.view(np.int64), return_index=True, return_inverse=True)
    source = np.flatnonzero((first[owner] != np.arange(x.size)) & is_open)
    kept = np.sort(first[is_open[first]])
    if source.size:
        sinks, sums = totals(rows, 1, source, first[owner[source]])
        rows = rows[:, kept]
        rows[:, np.searchsorted(kept, sinks)] = sums
    elif kept.size < x.size:
        rows = rows[:, kept]
    return rows, np.zeros((1, 1), dtype=np.int64)
