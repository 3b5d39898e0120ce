"""From ties, locks and choices to units.

Three levels, each cheaper than the next: dims tied index by index share one class (union-find); locks spread between
classes along the other ties as masks; only what is still free becomes atoms, whose connected components are the units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.number import Leaf, SizeOf
from onnxprune.rules.base import Choice, Constraint, Dim, Index, Lock, Sized, Tie
from onnxprune.spread import Edge, Mask, Spread


@dataclass(frozen=True)
class Cause:
    """Why something is locked: the node (its index; None for the model's own inputs and outputs) and the reason."""

    node: int | None
    reason: str
    option: str | None = None


@dataclass(frozen=True)
class Solution:
    """Dims in classes, atoms in units, units in groups. `unit_of[c]` is None where class c is locked whole."""

    class_of: Mapping[Dim, int]
    sizes: list[int]
    unit_of: list[NDArray[np.int32] | None]
    group_of: NDArray[np.int32]
    locks: list[int | Mask | None]  # per class: a cause for the whole, one an index (0: free), or None
    causes: list[Cause]


class Solver:
    """Collects constraints node by node, then solves them once."""

    def __init__(self, sizes: Mapping[Dim, int | str | None]) -> None:
        """`sizes`: every dim of the graph with its size."""
        self._dims = list(sizes)
        self._ids = {dim: i for i, dim in enumerate(sizes)}
        self._size: list[int | str | None] = list(sizes.values())
        self._parent = list(range(len(self._size)))
        self._ties: list[tuple[int, int, Index, Index]] = []
        self._locks: list[tuple[int, int, Index | None]] = []
        self._sized: list[tuple[int, Leaf | SizeOf | None, int]] = []
        self._follows: list[tuple[int, Dim, Dim, str]] = []
        self._choices: list[tuple[int, Choice]] = []
        self.causes = [Cause(None, "")]

    def cause(self, node: int | None, reason: str, option: str | None = None) -> int:
        """Register a cause; its number is never 0."""
        self.causes.append(Cause(node, reason, option))
        return len(self.causes) - 1

    def lock(self, dim: Dim, cause: int, index: Index | None = None) -> None:
        """Lock a dim, or some of its indices."""
        if dim in self._ids:
            self._locks.append((self._ids[dim], cause, index))

    def add(self, node: int, constraint: Constraint) -> None:
        """Take one constraint that the rule of `node` declared."""
        if isinstance(constraint, Tie):
            a, b = self._ids[constraint.a], self._ids[constraint.b]
            if constraint.ia is not None and constraint.ib is not None:
                self._ties.append((a, b, constraint.ia, constraint.ib))
            elif a != b:
                self._unite(a, b, node)
        elif isinstance(constraint, Lock):
            cause = self.cause(node, constraint.reason, constraint.option)
            self.lock(constraint.dim, cause, constraint.index)
        elif isinstance(constraint, Sized):
            self._sized.append((self._ids[constraint.dim], constraint.number.source, node))
        else:
            self._choices.append((node, constraint))

    def _find(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def _unite(self, a: int, b: int, node: int) -> None:
        a, b = self._find(a), self._find(b)
        if a == b:
            return
        if self._size[a] != self._size[b]:
            known = isinstance(self._size[a], int) and isinstance(self._size[b], int)
            reason = "the sizes of what it ties disagree" if known else "an axis of open size; give --shape"
            cause = self.cause(node, reason)
            self._locks += [(a, cause, None), (b, cause, None)]
            if known:  # indices of the one would not be indices of the other
                return
            if not isinstance(self._size[a], int):
                self._size[a] = self._size[b]
        self._parent[b] = a

    def solve(self, parameters: Iterable[Dim]) -> Solution:
        """Spread the locks, settle the choices, and number units and groups.

        Args:
            parameters: dims of the model's parameters; what touches none of them is no unit.
        """
        spread = Spread(self)
        for i, size in enumerate(self._size):
            if self._find(i) == i and not isinstance(size, int):
                text = f"an axis of open size {size!r}" if size else "an axis of open size; give --shape"
                spread.lock(i, self.cause(None, text))
            elif self._find(i) == i and size == 1:
                spread.lock(i, self.cause(None, "an axis of size one"))
        self._check_sized()
        for i, cause, index in self._locks:
            spread.lock(self._find(i), cause, index)
        for a, b, ia, ib in self._ties:
            spread.tie(Edge(self._find(a), self._find(b), ia, ib))
        spread.run()
        spread.settle(self._choices)
        with_parameters = {self._find(self._ids[d]) for d in parameters if d in self._ids}
        solution = self._units(spread, with_parameters)
        while apart := self._apart(solution):
            for cause, pair in apart:
                for dim in pair:
                    spread.lock(self.root(dim), cause)
            spread.run()
            solution = self._units(spread, with_parameters)
        return solution

    def _apart(self, solution: Solution) -> list[tuple[int, tuple[Dim, Dim]]]:
        """Axes of which one size is read, or written, that do not lose the same units."""

        def units(dim: Dim) -> NDArray[np.int32]:
            found = solution.unit_of[solution.class_of[dim]]
            return np.zeros(0, np.int32) if found is None else np.sort(found[found >= 0])

        return [
            (self.cause(node, reason), (dim, other))
            for node, dim, other, reason in self._follows
            if not np.array_equal(units(dim), units(other))
        ]

    def _check_sized(self) -> None:
        """A size written in the graph must be able to follow the cut."""
        leaves: dict[Leaf, list[Dim]] = {}
        for i, source, node in self._sized:
            root = self._find(i)
            if isinstance(source, Leaf):
                leaves.setdefault(source, []).append(self._dims[i])
            elif isinstance(source, SizeOf) and Dim(*source) in self._ids:
                self._follows.append((node, self._dims[i], Dim(*source), "its size is read off another axis"))
            else:
                self._locks.append((root, self.cause(node, "its size is computed in the graph"), None))
        for leaf, dims in leaves.items():
            self._follows += [(leaf.node, dims[0], d, "one constant is the size of several axes") for d in dims[1:]]

    def root(self, dim: Dim) -> int:
        """The class that stands for a dim."""
        return self._find(self._ids[dim])

    def size(self, root: int) -> int:
        """The size of a class; 1 where it is open (it is locked then)."""
        size = self._size[root]
        return size if isinstance(size, int) else 1

    def classes(self) -> dict[Dim, int]:
        """Dim -> class."""
        return {dim: self._find(i) for dim, i in self._ids.items()}

    def _units(self, spread: Spread, with_parameters: set[int]) -> Solution:
        """Connected components of what is free; a group is the units that touch the same classes equally often."""
        class_of = self.classes()
        roots = sorted(set(class_of.values()))
        number = {r: i for i, r in enumerate(roots)}
        free = [r for r in roots if not isinstance(spread.state.get(r), int)]
        sizes = np.array([self.size(r) for r in free], dtype=np.intp)
        start, label, count = spread.label(free, spread.edges)
        atoms = label.size

        row = np.repeat(np.arange(len(free)), sizes)  # class of each atom
        locked = np.zeros(atoms, dtype=bool)
        for r in free:
            if isinstance(state := spread.state.get(r), np.ndarray):
                locked[start[r] : start[r] + state.size] = state != 0
        holds = np.array([r in with_parameters for r in free], dtype=bool)
        is_unit = np.bincount(label, weights=holds[row], minlength=count) > 0
        is_unit &= np.bincount(label, weights=locked, minlength=count) == 0

        # A group's key: the multiset of classes that a unit touches, as a sum of random 64-bit words (Zobrist hashing).
        words = np.random.default_rng(0).integers(1, 2**63, size=len(free), dtype=np.uint64)
        keys = np.zeros(count, dtype=np.uint64)
        np.add.at(keys, label, words[row])
        units = np.flatnonzero(is_unit)
        _, first, group = np.unique(keys[units], return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))  # groups in the order of their first unit
        unit_number = np.full(count, -1, dtype=np.int32)
        unit_number[units] = np.arange(units.size)
        unit_of: list[NDArray[np.int32] | None] = [None] * len(roots)
        for r, size in zip(free, sizes.tolist(), strict=True):
            unit_of[number[r]] = unit_number[label[start[r] : start[r] + size]]
        return Solution(
            class_of={dim: number[r] for dim, r in class_of.items()},
            sizes=[self.size(r) for r in roots],
            unit_of=unit_of,
            group_of=rank[group].astype(np.int32),
            locks=[spread.state.get(r) for r in roots],
            causes=self.causes,
        )
