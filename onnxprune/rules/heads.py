"""Heads: what the fused attention operators have in common.

Whole heads go, with the rows and columns that belong to them in everything that an operator touches. With grouped
queries the unit is a key-value head and all query heads that read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import wraps

import numpy as np

from onnxprune.rules.base import Constraint, Dim, Edit, Kept, Lock, NodeView, Rule, SetAttr, Tie, Unknown, size_of

SEQUENCE = "attention runs over the axis"
INSIDE = "whole heads are cut"


@dataclass(frozen=True)
class Heads:
    """Query heads along `hub`, an axis of the output, `repeat` of them to a key-value head, each of some width."""

    hub: Dim
    size: int
    queries: int
    repeat: int

    def tie(self, dim: Dim, heads: int, size: int, start: int = 0) -> Tie:
        """Tie `size` indices of a dim that hold `heads` heads side by side, from index `start` on."""
        if size % heads:
            raise Unknown("the numbers of heads do not divide its sizes")
        width = self.size // self.queries
        head = np.arange(size) // (size // heads) * (self.queries // heads)
        return Tie(dim, self.hub, start + np.arange(size), head // self.repeat * self.repeat * width)

    def one_each(self, dim: Dim, size: int | str | None, count: int) -> Iterator[Constraint]:
        """An axis with one index a head, or one for all of them: a cache, a bias per head."""
        if not isinstance(size, int):
            raise Unknown("whether an axis has one index a head is not known; give --shape")
        if size == count:
            yield self.tie(dim, count, count)


def heads_of(hub: Dim, size: int, queries: int, keys: int) -> Heads:
    """Heads along an axis of the output.

    Raises:
        Unknown: the numbers contradict each other.
    """
    if not queries or not keys or queries % keys or size % queries:
        raise Unknown("the numbers of heads do not divide its sizes")
    return Heads(hub, size, queries, queries // keys)


def last(n: NodeView, slot: int) -> int:
    """The size of an input's last axis."""
    return size_of(n.shape(slot)[-1], f"input {slot}")


def attends(declare: Rule) -> Rule:
    """A rule that says what happens to heads; every other axis is a sequence, or lies inside the heads."""

    @wraps(declare)
    def run(n: NodeView) -> Iterator[Constraint]:
        said: set[Dim] = set()
        for constraint in declare(n):
            if isinstance(constraint, Tie):
                said.update((constraint.a, constraint.b))
            elif isinstance(constraint, Lock):
                said.add(constraint.dim)
            yield constraint
        values = [*zip(n.names, n.node.inputs, strict=True), *((name, name) for name in n.node.outputs)]
        for name, value in values:
            for axis in range(len(n.graph.shapes.get(value) or ())):
                if Dim(name, axis) not in said:
                    yield Lock(Dim(name, axis), SEQUENCE)

    return run


def same_batch(n: NodeView, slots: tuple[int, ...]) -> Iterator[Constraint]:
    """The batch axis passes where nothing but these inputs and one output has it."""
    if len(list(n.outputs())) == 1 and not any(n.has(s) for s in range(len(n.node.inputs)) if s not in slots):
        for slot in slots:
            if n.has(slot):
                yield Tie(n.x(slot, 0), n.y(0))


def scores(n: NodeView, heads: Heads, slot: int, count: int) -> Iterator[Constraint]:
    """A mask or bias that broadcasts against [B, heads, S, T]."""
    if n.has(slot) and (rank := len(n.shape(slot))) >= 3:
        yield from heads.one_each(n.x(slot, rank - 3), n.shape(slot)[rank - 3], count)


def caches(
    n: NodeView, heads: Heads, count: int, inputs: tuple[int, ...], outputs: tuple[int, ...], axis: int = 1
) -> Iterator[Constraint]:
    """Past and present keys and values, one index a head along `axis`."""
    for slot in inputs:
        if n.has(slot):
            yield from heads.one_each(n.x(slot, axis), n.shape(slot)[axis], count)
    for slot in outputs:
        if slot in n.outputs() and n.graph.shapes.get(n.node.outputs[slot]) is not None:
            yield from heads.one_each(n.y(axis, slot), n.out_shape(slot)[axis], count)


def remaining(n: NodeView, kept: Kept, *names: str) -> Iterator[Edit]:
    """Attributes that count heads, or what all heads hold, after the cut of the output's last axis."""
    before, after = size_of(n.out_shape()[-1], "the output"), kept(n.y(-1)).size
    if after == before:
        return
    for name in names:
        value = n.attrs.get(name)
        if isinstance(value, int) and value:
            yield SetAttr(name, value * after // before)
        elif value:
            yield SetAttr(name, [part * after // before for part in value])
