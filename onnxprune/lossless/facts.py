"""What is known of every channel without running the model: that it is constant, or that it equals another one.

An abstract interpretation in the manner of constant propagation and value numbering (Kildall 1973; Alpern, Wegman,
Zadeck 1988), per channel instead of per value. A *fact* is a float64 array with one entry for each index of the axes
of a value that can be cut, and size one along the others:

- a number: all elements there have this value, whatever the input;
- a NaN: not constant. Its payload is a *name*: entries of equal name hold equal elements.

So structural operators act on facts as they act on tensors. Names are only ever given, never guessed: an operator that
is not known here gives every entry a new name. Facts hold for inputs on which the model computes finite numbers
(then 0 * x = 0; ONNX Runtime would make NaN of 0 * Inf).
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.folds import constant_value
from onnxprune.groups import Coupling
from onnxprune.rules.base import Dim, NodeView, Unknown
from onnxprune.sums import CHUNK, chunks

Array = NDArray[Any]
Fact = NDArray[np.float64]
Names = NDArray[np.int64]
Form = tuple[int, ...]

_QUIET_NAN = 0x7FF8_0000_0000_0000


class Facts:
    """The facts of a model, value by value; filled in the order of the nodes (see `search`)."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self._facts: dict[str, Fact] = {}
        self._named = 0

    def form(self, name: str) -> Form:
        """The shape of a value's fact."""
        shape = self.coupling.graph.shapes.get(self.coupling.source.get(name, name)) or ()
        return tuple(
            1 if self.coupling.unit_of(dim := Dim(name, axis)) is None else self.coupling.size(dim)
            for axis in range(len(shape))
        )

    def of(self, name: str) -> Fact:
        """The fact of a value; new names throughout where nothing is known."""
        if name not in self._facts:
            self._facts[name] = self._constant(name)
        return self._facts[name]

    def set(self, name: str, fact: Fact) -> None:
        """Keep what is known of a value, brought to its form."""
        self._facts[name] = self.fit(fact, self.form(name))

    def x(self, view: NodeView, slot: int) -> Fact:
        """The fact of a node's input."""
        return self.of(view.names[slot])

    def type(self, name: str) -> int:
        """The data type of a value; 0 where it is not known."""
        return self._types.get(name, 0)

    @cached_property
    def _types(self) -> dict[str, int]:
        graph = self.coupling.graph.shell.graph
        return {i.name: i.type.tensor_type.elem_type for i in (*graph.value_info, *graph.input, *graph.output)}

    def _constant(self, name: str) -> Fact:
        graph, form = self.coupling.graph, self.form(name)
        value = constant_value(graph, self.coupling.source.get(name, name), {})
        if value is None or value.ndim != len(form) or value.size == 0 or value.dtype.kind in "OSUc":
            return self.unknown(form)
        if value.shape == form:
            return value.astype(np.float64) + 0.0  # no negative zeros: they are zeros
        return self.collapse(value, [a for a, size in enumerate(form) if size != value.shape[a]])

    def unknown(self, form: Form) -> Fact:
        """New names, all different."""
        return self._name(np.arange(int(np.prod(form)), dtype=np.int64)).reshape(form)

    def combine(self, values: Array, *parts: Array) -> Fact:
        """Numbers where `values` has them; elsewhere entries with equal `parts` get equal names, new in the model."""
        fact = np.array(values, dtype=np.float64) + 0.0
        unknown = np.isnan(fact)
        if unknown.any():
            names = np.zeros(int(unknown.sum()), dtype=np.int64)
            for part in parts:
                names = pair(names, np.broadcast_to(part, fact.shape)[unknown].view(np.int64))
            fact[unknown] = self._name(names)
        return fact

    def rename(self, fact: Fact) -> Fact:
        """The same fact with new names: of a tensor that is made from another, each index for itself."""
        return self.combine(fact, fact)

    def unlike(self, fact: Fact) -> Fact:
        """No numbers, but equal names where the fact is equal."""
        return self.combine(np.full(fact.shape, np.nan), fact)

    def _name(self, names: Names) -> Fact:
        start = self._named
        self._named += int(names.max(initial=-1)) + 1
        return ((names + start + 1) | _QUIET_NAN).view(np.float64)

    def collapse(self, value: Array, axes: Collection[int]) -> Fact:
        """Entries for whole slices along `axes`: constant where a slice is, named by its content elsewhere."""
        kept = [a for a in range(value.ndim) if a not in axes]
        form = [1 if a in axes else s for a, s in enumerate(value.shape)]
        flat = value.transpose(*kept, *axes).reshape(int(np.prod([value.shape[a] for a in kept])), -1)
        constant = (flat == flat[:, :1]).all(axis=1)
        values = np.where(constant, flat[:, 0].astype(np.float64), np.nan)
        return self.combine(values, same_rows(flat)).reshape(form)

    def spread(self, fact: Fact, axis: int, size: int) -> Fact:
        """Entries for every index of an axis of which nothing was said: constants stay, the others get own names."""
        if fact.shape[axis] == size:
            return fact
        form = tuple(size if a == axis else s for a, s in enumerate(fact.shape))
        if np.prod(form) > CHUNK:
            raise Unknown("too many entries")
        place = np.arange(size, dtype=np.int64).reshape([-1 if a == axis else 1 for a in range(fact.ndim)])
        return self.combine(np.broadcast_to(fact, form), fact, place)

    def fit(self, fact: Fact, form: Form) -> Fact:
        """Collapse and spread a fact to a form of the same rank."""
        if fact.ndim != len(form):
            raise Unknown("not the rank of the value")
        if axes := [a for a, size in enumerate(form) if size == 1 != fact.shape[a]]:
            fact = self.collapse(fact, axes)
        for axis, size in enumerate(form):
            fact = self.spread(fact, axis, size)
        return fact

    def along(self, name: str, axis: int, size: int) -> Fact:
        """[size]: the fact of a value along one axis alone."""
        fact = self.of(name)
        others = [a for a in range(fact.ndim) if a != axis and fact.shape[a] != 1]
        fact = self.collapse(fact, others) if others else fact
        return self.spread(fact, axis, size).reshape(-1)


def same_rows(rows: Array) -> Names:
    """[row]: the number of a row that is equal bit by bit. Rows of different sums are not compared."""
    count = rows.shape[0]
    found = np.arange(count, dtype=np.int64)
    if count < 2 or not rows[0].size:
        return np.zeros(count, dtype=np.int64)
    bits = rows.view(f"u{rows.dtype.itemsize}")
    sums = bits.sum(axis=tuple(range(1, bits.ndim)), dtype=np.uint64)
    _, owner, members = np.unique(sums, return_inverse=True, return_counts=True)
    pending = np.flatnonzero(members[owner] > 1)
    while pending.size:
        _, first, place = np.unique(owner[pending], return_index=True, return_inverse=True)
        head = pending[first][place]
        same = np.ones(pending.size, dtype=bool)
        for part in chunks(pending.size, bits[0].size):
            same[part] = (bits[pending[part]] == bits[head[part]]).reshape(len(pending[part]), -1).all(axis=1)
        found[pending[same]] = head[same]
        pending = pending[~same]
    return found


def pair(a: Names, b: Names) -> Names:
    """Numbers 0, 1, ... that are equal where both a and b are."""
    _, left = np.unique(a, return_inverse=True)
    _, right = np.unique(b, return_inverse=True)
    _, both = np.unique(left * (int(right.max(initial=0)) + 1) + right, return_inverse=True)
    return np.asarray(both, dtype=np.int64)
