"""From ties, locks and choices to units.

Three levels, each cheaper than the next: dims tied index by index share one class (union-find); locks spread between
classes along the other ties as masks; only what is still free becomes atoms, whose connected components are the units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.rules.base import Alternative, Choice, Constraint, Dim, Index, Lock, Sized, Tie
from onnxprune.shapeflow import Leaf, SizeOf

Mask = NDArray[np.int32]


@dataclass(frozen=True)
class Cause:
    """Why something is locked: the node (its index; None for the model's own inputs and outputs) and the reason."""

    node: int | None
    reason: str
    option: str | None = None


@dataclass(frozen=True)
class Edge:
    """A tie between classes that is not index by index."""

    a: int
    b: int
    ia: Index
    ib: Index


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
        self._ids = {dim: i for i, dim in enumerate(sizes)}
        self._size: list[int | str | None] = list(sizes.values())
        self._parent = list(range(len(self._size)))
        self._ties: list[tuple[int, int, Index, Index]] = []
        self._locks: list[tuple[int, int, Index | None]] = []
        self._sized: list[tuple[int, Leaf | SizeOf | None, int]] = []
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
        self._parent[b] = a
        if self._size[a] != self._size[b]:
            known = isinstance(self._size[a], int) and isinstance(self._size[b], int)
            reason = "the sizes of what it ties disagree" if known else "an axis of open size; give --shape"
            self._locks.append((a, self.cause(node, reason), None))
            if not isinstance(self._size[a], int):
                self._size[a] = self._size[b]

    def solve(self, parameters: Iterable[Dim]) -> Solution:
        """Spread the locks, settle the choices, and number units and groups.

        Args:
            parameters: dims of the model's parameters; what touches none of them is no unit.
        """
        spread = _Spread(self)
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
        return spread.components({self._find(self._ids[d]) for d in parameters if d in self._ids})

    def _check_sized(self) -> None:
        """A size written in the graph must be able to follow the cut."""
        leaves: dict[Leaf, set[int]] = {}
        for i, source, node in self._sized:
            root = self._find(i)
            if isinstance(source, Leaf):
                leaves.setdefault(source, set()).add(root)
            elif isinstance(source, SizeOf) and Dim(*source) in self._ids:
                other = self._find(self._ids[Dim(*source)])
                if other != root:
                    cause = self.cause(node, "its size is read off another axis")
                    self._locks += [(root, cause, None), (other, cause, None)]
            else:
                self._locks.append((root, self.cause(node, "its size is computed in the graph"), None))
        for leaf, roots in leaves.items():
            if len(roots) > 1:
                cause = self.cause(leaf.node, "one constant is the size of several axes")
                self._locks += [(root, cause, None) for root in roots]

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


class _Spread:
    """Locks on their way through the ties, and the choices that they settle."""

    def __init__(self, solver: Solver) -> None:
        self._solver = solver
        self._state: dict[int, int | Mask] = {}
        self._edges: list[Edge] = []
        self._at: dict[int, list[Edge]] = {}
        self._queue: list[int] = []
        self._version: dict[int, int] = {}
        self._cut: set[int] = set()  # classes that a committed alternative cuts

    def lock(self, root: int, cause: int, index: Index | None = None) -> None:
        state = self._state.get(root)
        if isinstance(state, int):
            return
        if index is None:
            self._state[root] = cause
            self._changed(root)
        else:
            self._mark(root, index, np.full(index.size, cause, dtype=np.int32))

    def tie(self, edge: Edge) -> None:
        self._edges.append(edge)
        self._at.setdefault(edge.a, []).append(edge)
        if edge.b != edge.a:
            self._at.setdefault(edge.b, []).append(edge)
        if edge.a in self._state:
            self._queue.append(edge.a)
        if edge.b in self._state:
            self._queue.append(edge.b)

    def run(self) -> None:
        while self._queue:
            root = self._queue.pop()
            for edge in self._at.get(root, ()):
                if edge.a == root:
                    self._send(edge.a, edge.ia, edge.b, edge.ib)
                if edge.b == root:
                    self._send(edge.b, edge.ib, edge.a, edge.ia)

    def _send(self, source: int, i: Index, target: int, j: Index) -> None:
        state = self._state[source]
        if isinstance(self._state.get(target), int):
            return
        if isinstance(state, int):
            self._mark(target, j, np.full(j.size, state, dtype=np.int32))
            return
        causes = state[i]
        locked = causes != 0
        if locked.any():
            self._mark(target, j[locked], causes[locked])

    def _mark(self, root: int, index: Index, causes: Mask) -> None:
        state = self._state.get(root)
        if isinstance(state, int):
            return
        if state is None:
            state = np.zeros(self._solver.size(root), dtype=np.int32)
        fresh = state[index] == 0
        if not fresh.any():
            return
        state[index[fresh]] = causes[fresh]
        self._state[root] = int(state[0]) if state.all() else state
        self._changed(root)

    def _changed(self, root: int) -> None:
        self._version[root] = self._version.get(root, 0) + 1
        self._queue.append(root)

    # Choices

    def settle(self, choices: list[tuple[int, Choice]]) -> None:
        """Commit what is forced until nothing is; then the preferred alternative of the first open choice; repeat."""
        pending = choices
        seen: dict[int, tuple[tuple[int, ...], list[Alternative]]] = {}
        while pending:
            waiting: list[tuple[int, Choice]] = []
            for node, choice in pending:
                live = self._live(choice, seen)
                if len(live) > 1:
                    waiting.append((node, choice))
                else:
                    self._commit(node, choice, live[0] if live else None)
            if len(waiting) == len(pending):
                node, choice = waiting.pop(0)
                self._commit(node, choice, self._prefer(self._live(choice, seen), choice))
            pending = waiting

    def _live(self, choice: Choice, seen: dict[int, tuple[tuple[int, ...], list[Alternative]]]) -> list[Alternative]:
        roots = [self._solver.root(d) for d in choice.dims]
        versions = tuple(self._version.get(r, 0) for r in roots)
        known = seen.get(id(choice))
        if known is None or known[0] != versions:
            known = (versions, [a for a in choice.alternatives if self._is_live(a)])
            seen[id(choice)] = known
        return known[1]

    def _is_live(self, alternative: Alternative) -> bool:
        """Whether any index could still go if this alternative alone were added."""
        root = self._solver.root
        if all(isinstance(self._state.get(root(d)), int) for d in alternative.cuts):
            return False
        masks: dict[int, NDArray[np.bool_]] = {}

        def mask(dim: Dim) -> NDArray[np.bool_]:
            r = root(dim)
            if r not in masks:
                state = self._state.get(r)
                size = self._solver.size(r)
                masks[r] = np.full(size, state is not None) if not isinstance(state, np.ndarray) else state != 0
            return masks[r]

        for constraint in alternative.constraints:
            if isinstance(constraint, Lock):
                mask(constraint.dim)[:] = True
        ties = [c for c in alternative.constraints if isinstance(c, Tie)]
        moving = True
        while moving:
            moving = False
            for t in ties:
                a, b, ia, ib = mask(t.a), mask(t.b), t.ia, t.ib
                both = a[ia] | b[ib]
                moving |= bool((both & ~(a[ia] & b[ib])).any())
                a[ia[both] if ia is not None else both] = True
                b[ib[both] if ib is not None else both] = True
        return any(not mask(d).all() for d in alternative.cuts)

    def _prefer(self, live: list[Alternative], choice: Choice) -> Alternative:
        """Of those that leave most axes cuttable: what another choice has cut already (the heads of Q, for V), else
        what leaves most room."""
        open_ = [self._cuttable(a, choice) for a in live]
        best = [a for a, mine in zip(live, open_, strict=True) if not any(mine < other for other in open_)]
        root = self._solver.root
        joined = [a for a in best if any(root(d) in self._cut for d in a.cuts)]
        return joined[0] if joined else prefer(best)

    def _cuttable(self, alternative: Alternative, choice: Choice) -> set[int]:
        """Classes of the choice in which two or more units would remain, with all that they are tied to now."""
        added = [
            Edge(self._solver.root(c.a), self._solver.root(c.b), c.ia, c.ib)
            for c in alternative.constraints
            if isinstance(c, Tie) and c.ia is not None and c.ib is not None
        ]
        roots = {self._solver.root(d) for d in choice.dims}
        reached, queue, edges = set(roots), list(roots), {id(e): e for e in added}
        while queue:
            for edge in self._at.get(queue.pop(), ()):
                edges[id(edge)] = edge
                fresh = {r for r in (edge.a, edge.b) if not isinstance(self._state.get(r), int)} - reached
                reached |= fresh
                queue += fresh
        free = sorted(r for r in reached if not isinstance(self._state.get(r), int))
        start, label, count = self._label(free, [e for e in edges.values() if e.a in reached and e.b in reached])
        locked = np.zeros(count, dtype=bool)
        for constraint in alternative.constraints:
            if isinstance(constraint, Lock) and (r := self._solver.root(constraint.dim)) in start:
                locked[label[start[r] : start[r] + self._solver.size(r)]] = True
        for r in free:
            if isinstance(state := self._state.get(r), np.ndarray):
                locked[label[start[r] : start[r] + state.size][state != 0]] = True
        parts = {r: np.unique(label[start[r] : start[r] + self._solver.size(r)]) for r in roots if r in start}
        return {r for r, labels in parts.items() if (~locked[labels]).sum() > 1}

    def _label(self, roots: list[int], edges: list[Edge]) -> tuple[dict[int, int], NDArray[np.int32], int]:
        """Number the atoms of some classes: where each class starts, the component of each atom, how many there are."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        sizes = [self._solver.size(r) for r in roots]
        start = dict(zip(roots, np.concatenate([[0], np.cumsum(sizes)]).astype(int).tolist(), strict=False))
        none = np.zeros(0, dtype=np.intp)
        joined = [e for e in edges if e.a in start and e.b in start]
        left = np.concatenate([none, *(e.ia + start[e.a] for e in joined)])
        right = np.concatenate([none, *(e.ib + start[e.b] for e in joined)])
        ones, atoms = np.ones(left.size, dtype=np.int8), sum(sizes)
        count, label = connected_components(coo_array((ones, (left, right)), shape=(atoms, atoms)), directed=False)
        return start, label, int(count)

    def _commit(self, node: int, choice: Choice, alternative: Alternative | None) -> None:
        if alternative is None:
            cause = self._solver.cause(node, "no way to cut this axis survives its other constraints")
            for dim in choice.dims:
                self.lock(self._solver.root(dim), cause)
        else:
            self._cut.update(self._solver.root(d) for d in alternative.cuts)
            for c in alternative.constraints:
                if isinstance(c, Lock):
                    cause = self._solver.cause(node, c.reason, c.option)
                    self.lock(self._solver.root(c.dim), cause, c.index)
                else:
                    a, b = self._solver.root(c.a), self._solver.root(c.b)
                    whole: Any = np.arange(self._solver.size(a))
                    self.tie(Edge(a, b, whole if c.ia is None else c.ia, whole if c.ib is None else c.ib))
        self.run()

    # Units

    def components(self, with_parameters: set[int]) -> Solution:
        """Connected components of what is free; a group is the units that touch the same classes equally often."""
        class_of = self._solver.classes()
        roots = sorted(set(class_of.values()))
        number = {r: i for i, r in enumerate(roots)}
        free = [r for r in roots if not isinstance(self._state.get(r), int)]
        sizes = np.array([self._solver.size(r) for r in free], dtype=np.intp)
        start, label, count = self._label(free, self._edges)
        atoms = label.size

        row = np.repeat(np.arange(len(free)), sizes)  # class of each atom
        locked = np.zeros(atoms, dtype=bool)
        for r in free:
            if isinstance(state := self._state.get(r), np.ndarray):
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
            sizes=[self._solver.size(r) for r in roots],
            unit_of=unit_of,
            group_of=rank[group].astype(np.int32),
            locks=[self._state.get(r) for r in roots],
            causes=self._solver.causes,
        )


def prefer(alternatives: list[Alternative]) -> Alternative:
    """The first alternative, unless it leaves no two widths and a later one does: then the one with the most."""
    if alternatives[0].levels > 1:
        return alternatives[0]
    return max(alternatives, key=lambda a: a.levels)
