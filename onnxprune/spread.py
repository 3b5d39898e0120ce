"""How locks spread through the ties, how choices are settled by them, and what is left free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.rules.base import Alternative, Choice, Dim, Index, Lock, Tie

Mask = NDArray[np.int32]
NO_WAY = "no way to cut this axis survives its other constraints"


@dataclass(frozen=True)
class Edge:
    """A tie between classes that is not index by index."""

    a: int
    b: int
    ia: Index
    ib: Index


class Classes(Protocol):
    """What spreading needs to know of the classes: which one stands for a dim, their sizes, a new cause's number."""

    def root(self, dim: Dim) -> int:
        """The class that stands for a dim."""

    def size(self, root: int) -> int:
        """Indices of a class."""

    def cause(self, node: int | None, reason: str, option: str | None = None) -> int:
        """Register why something is locked."""


class Spread:
    """Locks on their way through the ties, and the choices that they settle."""

    def __init__(self, solver: Classes) -> None:
        """Nothing is locked or tied yet."""
        self._solver = solver
        self.state: dict[int, int | Mask] = {}
        self.edges: list[Edge] = []
        self._at: dict[int, list[Edge]] = {}
        self._queue: list[int] = []
        self._version: dict[int, int] = {}
        self._cut: set[int] = set()  # classes that a committed alternative cuts
        self._near: set[int] = set()  # these, and what is tied to them

    def lock(self, root: int, cause: int, index: Index | None = None) -> None:
        """Lock a class, or some of its indices."""
        state = self.state.get(root)
        if isinstance(state, int):
            return
        if index is None:
            self.state[root] = cause
            self._changed(root)
        else:
            self._mark(root, index, np.full(index.size, cause, dtype=np.int32))

    def tie(self, edge: Edge) -> None:
        """Add a tie; `run` spreads what is locked along it."""
        self.edges.append(edge)
        self._at.setdefault(edge.a, []).append(edge)
        if edge.b != edge.a:
            self._at.setdefault(edge.b, []).append(edge)
        if edge.a in self.state:
            self._queue.append(edge.a)
        if edge.b in self.state:
            self._queue.append(edge.b)

    def run(self) -> None:
        """Spread every lock as far as it goes."""
        while self._queue:
            root = self._queue.pop()
            for edge in self._at.get(root, ()):
                if edge.a == root:
                    self._send(edge.a, edge.ia, edge.b, edge.ib)
                if edge.b == root:
                    self._send(edge.b, edge.ib, edge.a, edge.ia)

    def _send(self, source: int, i: Index, target: int, j: Index) -> None:
        state = self.state[source]
        if isinstance(self.state.get(target), int):
            return
        if isinstance(state, int):
            self._mark(target, j, np.full(j.size, state, dtype=np.int32))
            return
        causes = state[i]
        locked = causes != 0
        if locked.any():
            self._mark(target, j[locked], causes[locked])

    def _mark(self, root: int, index: Index, causes: Mask) -> None:
        state = self.state.get(root)
        if isinstance(state, int):
            return
        if state is None:
            state = np.zeros(self._solver.size(root), dtype=np.int32)
        fresh = state[index] == 0
        if not fresh.any():
            return
        state[index[fresh]] = causes[fresh]
        self.state[root] = int(state[0]) if state.all() else state
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
                # What is tied to an axis that another choice cuts comes first: it has something to go by.
                near = (w for w in waiting if any(self._solver.root(d) in self._near for d in w[1].dims))
                node, choice = next(near, waiting[0])
                waiting = [w for w in waiting if w[1] is not choice]
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
        if all(isinstance(self.state.get(root(d)), int) for d in alternative.cuts):
            return False
        masks: dict[int, NDArray[np.bool_]] = {}

        def mask(dim: Dim) -> NDArray[np.bool_]:
            r = root(dim)
            if r not in masks:
                state = self.state.get(r)
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

    def _blocker(self, choice: Choice) -> int | None:
        """The cause that an axis which was free until now inherits: that of a locked axis it would be cut with."""
        for alternative in choice.alternatives:
            dims = {d for c in alternative.constraints if isinstance(c, Tie) for d in (c.a, c.b)}
            states = [self.state.get(self._solver.root(d)) for d in sorted(dims)]
            locked = [s for s in states if isinstance(s, int)]
            if locked and len(locked) < len(states):
                return locked[0]
        return None

    def _prefer(self, live: list[Alternative], choice: Choice) -> Alternative:
        """What spares the axes that other choices cut (the heads of Q, for V), leaves most axes cuttable, and most of
        them (heads, where Q, K and V share an axis of which only V could be cut inside); then what has most room."""
        open_ = [self._cuttable(a, choice) for a in live]
        spared = [len(free.keys() & self._cut) for free in open_]
        ours = {self._solver.root(d) for d in choice.counted or choice.dims}
        share = [max((n for r, n in free.items() if r in ours), default=0) for free in open_]
        best = [
            a
            for a, free, kept, most in zip(live, open_, spared, share, strict=True)
            if kept == max(spared)
            and not any(free.keys() & ours < other.keys() & ours for other in open_)
            and 2 * most >= max(share)
        ]
        return prefer(best or live)

    def _cuttable(self, alternative: Alternative, choice: Choice) -> dict[int, int]:
        """Classes in which two or more units would remain, with all that they are tied to now: how many indices."""
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
                fresh = {r for r in (edge.a, edge.b) if not isinstance(self.state.get(r), int)} - reached
                reached |= fresh
                queue += fresh
        free = sorted(r for r in reached if not isinstance(self.state.get(r), int))
        start, label, count = self.label(free, [e for e in edges.values() if e.a in reached and e.b in reached])
        locked = np.zeros(count, dtype=bool)
        for constraint in alternative.constraints:
            if isinstance(constraint, Lock) and (r := self._solver.root(constraint.dim)) in start:
                locked[label[start[r] : start[r] + self._solver.size(r)]] = True
        for r in free:
            if isinstance(state := self.state.get(r), np.ndarray):
                locked[label[start[r] : start[r] + state.size][state != 0]] = True
        parts = {r: label[start[r] : start[r] + self._solver.size(r)] for r in free}
        left = {r: labels[~locked[labels]] for r, labels in parts.items()}
        return {r: labels.size for r, labels in left.items() if np.unique(labels).size > 1}

    def label(self, roots: list[int], edges: list[Edge]) -> tuple[dict[int, int], NDArray[np.int32], int]:
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
            cause = self._blocker(choice) or self._solver.cause(node, NO_WAY)
            for dim in choice.dims:
                self.lock(self._solver.root(dim), cause)
        else:
            cuts = {self._solver.root(d) for d in alternative.cuts}
            self._cut |= cuts
            for c in alternative.constraints:
                if isinstance(c, Lock):
                    cause = self._solver.cause(node, c.reason, c.option)
                    self.lock(self._solver.root(c.dim), cause, c.index)
                else:
                    a, b = self._solver.root(c.a), self._solver.root(c.b)
                    whole: Any = np.arange(self._solver.size(a))
                    self.tie(Edge(a, b, whole if c.ia is None else c.ia, whole if c.ib is None else c.ib))
                    cuts |= {a, b} if self._near & {a, b} else set()
            self._approach(cuts)
        self.run()

    def _approach(self, roots: set[int]) -> None:
        """Follow the ties from classes that are near."""
        queue = list(roots)
        while queue:
            root = queue.pop()
            if not isinstance(self.state.get(root), int):
                self._near.add(root)
                queue += [r for e in self._at.get(root, ()) for r in (e.a, e.b) if r not in self._near]


def prefer(alternatives: list[Alternative]) -> Alternative:
    """The first alternative, unless it leaves no two widths and a later one does: then the one with the most."""
    if alternatives[0].levels > 1:
        return alternatives[0]
    return max(alternatives, key=lambda a: a.levels)
