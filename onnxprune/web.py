"""The ties of a model once more, and the shortest way through them from a locked axis to what locks it.

The analysis keeps for each index the number of the cause that locked it, but not how the lock got there. That is found
again on demand: the rules are asked once more, and a lock is followed back along ties whose ends have the same cause.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune.groups import Coupling
from onnxprune.rules.base import RULES, Alternative, Choice, Constraint, Dim, Index, NodeView, Tie, Unknown

ONE = "an axis of size one"


@dataclass(frozen=True)
class Link:
    """A tie as seen from one of its ends. `way`: the alternative that it belongs to."""

    node: int
    to: Dim
    here: Index | None
    there: Index | None
    way: str = ""


@dataclass(frozen=True)
class Decision:
    """What became of a choice: the alternative that holds, or None where nothing is left to cut."""

    node: int
    choice: Choice
    taken: Alternative | None


@dataclass(eq=False)
class Web:
    """The ties of a model once more, from the rules, with what the analysis found out about them."""

    coupling: Coupling

    @cached_property
    def links(self) -> dict[Dim, list[Link]]:
        """Dim -> what it is tied to."""
        found: dict[Dim, list[Link]] = defaultdict(list)
        for node, tie, way in self._ties():
            found[tie.a].append(Link(node, tie.b, tie.ia, tie.ib, way))
            found[tie.b].append(Link(node, tie.a, tie.ib, tie.ia, way))
        return found

    @cached_property
    def decisions(self) -> list[Decision]:
        """Every choice of the model."""
        return [
            Decision(view.node.index, c, self._taken(c))
            for view, declared in self._declared
            for c in declared
            if isinstance(c, Choice)
        ]

    def causes(self, dim: Dim) -> dict[int, Index | None]:
        """What locks an axis: the number of each cause with the indices that it locks (None: all)."""
        number = self.coupling.solution.class_of.get(dim)
        state = None if number is None else self.coupling.solution.locks[number]
        if state is None:
            return {}
        if not isinstance(state, np.ndarray):
            return {state: None}
        return {int(c): np.flatnonzero(state == c) for c in dict.fromkeys(state.tolist()) if c}

    def path(self, start: Dim, cause: int) -> list[tuple[Dim, Link | None]]:
        """The way from an axis to one that the cause locks by itself: each axis with the link that leads to it."""
        return self._walk(start, cause, any_cause=False) or self._walk(start, cause, any_cause=True) or [(start, None)]

    @cached_property
    def _declared(self) -> list[tuple[NodeView, list[Constraint]]]:
        return [(view, _constraints(view)) for view in self.coupling.views]

    def _ties(self) -> Iterator[tuple[int, Tie, str]]:
        for view, declared in self._declared:
            yield from ((view.node.index, c, "") for c in declared if isinstance(c, Tie))
        for decision in self.decisions:
            # Where nothing is left, every way was open once, and a lock may have come along any of them.
            for way in [decision.taken] if decision.taken else decision.choice.alternatives:
                yield from ((decision.node, c, way.name) for c in way.constraints if isinstance(c, Tie))

    def _units(self, dim: Dim) -> NDArray[np.int32]:
        units = self.coupling.unit_of(dim)
        return np.full(self.coupling.size(dim), -1, dtype=np.int32) if units is None else units

    def _taken(self, choice: Choice) -> Alternative | None:
        """The alternative whose ties join equal units and whose locks hold."""

        def holds(way: Alternative) -> bool:
            for c in way.constraints:
                if isinstance(c, Tie):
                    a, b = self._units(c.a), self._units(c.b)
                    if not np.array_equal(a if c.ia is None else a[c.ia], b if c.ib is None else b[c.ib]):
                        return False
                elif (self._units(c.dim)[slice(None) if c.index is None else c.index] >= 0).any():
                    return False
            return any((self._units(dim) >= 0).any() for dim in way.cuts)

        return next((way for way in choice.alternatives if holds(way)), None)

    def _walk(self, start: Dim, cause: int, any_cause: bool) -> list[tuple[Dim, Link | None]]:
        """Breadth first; what is found first is nearest."""
        came: dict[Dim, tuple[Dim, Link] | None] = {start: None}
        queue, second = [start], None
        for dim in queue:  # it grows meanwhile
            if self._is_origin(dim, cause):
                return _back(came, dim)
            second = second or (dim if self._is_size(dim, cause) else None)
            for link in self.links.get(dim, ()):
                if link.to not in came and self._carries(dim, link, None if any_cause else cause):
                    came[link.to] = (dim, link)
                    queue.append(link.to)
        return _back(came, second) if second else []

    def _carries(self, dim: Dim, link: Link, cause: int | None) -> bool:
        """Whether a lock may have gone along a link: both ends of it are locked, by that cause if one is given."""
        here, there = self._locked(dim, cause), self._locked(link.to, cause)
        if link.here is None or link.there is None:
            return bool(here.any() and there.any())
        return bool((here[link.here] & there[link.there]).any())

    def _locked(self, dim: Dim, cause: int | None) -> NDArray[np.bool_]:
        mask = np.zeros(self.coupling.size(dim), dtype=bool)
        for number, index in self.causes(dim).items():
            if cause in (None, number):
                mask[slice(None) if index is None else index] = True
        return mask

    def _is_origin(self, dim: Dim, number: int) -> bool:
        """Whether a cause applies to an axis itself: its node has the tensor, or it is an input of the model, say."""
        graph, cause = self.coupling.graph, self.coupling.solution.causes[number]
        if number not in self.causes(dim):
            return False
        if cause.node is not None:
            node = graph.nodes[cause.node]
            return dim.value in (*self.coupling.views[cause.node].names, *node.outputs, *node.captures)
        ends = {"a graph input": graph.inputs, "a graph output": graph.outputs}.get(cause.reason)
        if ends is not None:
            return dim.value in ends
        size = (graph.shapes.get(self.coupling.source.get(dim.value, dim.value)) or {dim.axis: None})[dim.axis]
        return size == 1 if cause.reason == ONE else not isinstance(size, int) or dim.value in graph.constants

    def _is_size(self, dim: Dim, number: int) -> bool:
        """Whether an axis is locked because its size is used elsewhere, by a node that does not see the tensor."""
        return number in self.causes(dim) and dim in self._sizes

    @cached_property
    def _sizes(self) -> set[Dim]:
        flow = self.coupling.views[0].flow
        return {Dim(*used.size) for used in flow.used} | {sized.dim for _, sized in self.coupling.sized}


def _constraints(view: NodeView) -> list[Constraint]:
    """What a rule declares; nothing where it gives up."""
    run = RULES.find(view.key)
    try:
        return list(run(view)) if run else []
    except (Unknown, IndexError, KeyError, ValueError, TypeError, ZeroDivisionError):
        return []


def _back(came: dict[Dim, tuple[Dim, Link] | None], end: Dim) -> list[tuple[Dim, Link | None]]:
    """From the start to an end."""
    steps: list[tuple[Dim, Link | None]] = []
    step = came[end]
    while step is not None:
        steps.append((end, step[1]))
        end = step[0]
        step = came[end]
    return [(end, None), *reversed(steps)]
