"""The operators of a model as terms of its latency: by which widths each changes, and whose time a kernel's is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from onnxprune.graph import Node
from onnxprune.groups import Coupling
from onnxprune.latency.clock import Events
from onnxprune.products import multiplied
from onnxprune.rules.base import Dim

MOST = 3  # widths in a term; an operator with more of them is known by its first


def made(node: Node) -> str:
    """The value that a node is known by: the first that it makes."""
    return next((value for value in node.outputs if value), "")


@dataclass(frozen=True, eq=False)
class Operators:
    """The nodes of an analysed model, as what a latency is the sum of."""

    coupling: Coupling

    def classes(self, node: int) -> tuple[int, ...]:
        """The classes of dims whose widths decide what a node takes; those that cannot be cut are left out."""
        if node in self._linear:
            return self._cuttable(self._linear[node])
        return self.made(node)

    def parts(self, node: int) -> int:
        """Of how many products of its widths what a node takes is a sum."""
        return 1 << len(self.classes(node))

    def made(self, node: int) -> tuple[int, ...]:
        """The classes of dims that decide how much a node makes; those that cannot be cut are left out."""
        value, shapes = made(self.coupling.graph.nodes[node]), self.coupling.graph.shapes
        return self._cuttable(Dim(value, axis) for axis in range(len(shapes.get(value) or ())))

    def spent(self, events: Events) -> dict[int, list[float]]:
        """Node -> milliseconds of its kernels: its own, what is fused into it, and changes of layout around it.

        A kernel that is named after a node behind the one with the weights (a convolution that ends in the ReLU fused
        into it) is that one's: the way back goes through nodes without a kernel of their own.
        """
        own = [None if value is None else self._maker.get(value) for value in events.values]
        running = {node for node in own if node is not None}
        found = [None if node is None else self._origin(node, running) for node in own]
        for index, op in enumerate(events.ops):  # a layout is changed for the next kernel, or back after the last
            if found[index] is None and op == "ReorderInput":
                found[index] = next((n for n in found[index + 1 :] if n is not None), None)
        spent: dict[int, list[float]] = {}
        last = next((n for n in found if n is not None), 0)
        for node, ms in zip(found, events.ms.tolist(), strict=True):
            last = last if node is None else node
            spent.setdefault(last, []).append(ms)
        return spent

    def _origin(self, node: int, running: set[int]) -> int:
        at = node
        while at not in self._linear:
            makers = [self._maker.get(name) for name in self.coupling.graph.nodes[at].inputs]
            silent = [m for m in makers if m is not None and m not in running]
            if not silent:
                return node
            at = silent[0]
        return at

    @cached_property
    def _maker(self) -> dict[str, int]:
        nodes = self.coupling.graph.nodes
        return {value: node.index for node in nodes for value in node.outputs if value}

    @cached_property
    def _linear(self) -> dict[int, tuple[Dim, ...]]:
        """Contractions -> the dims that their multiply-accumulates are a product of."""
        found: dict[int, tuple[Dim, ...]] = {}
        for node, spec in self.coupling.linears:  # a recurrent cell has two
            known = found.get(node.index, ())
            found[node.index] = (*known, *(dim for dim in spec.cost if not known or dim not in known))
        return found | {node.index: dims for node, dims in multiplied(self.coupling)}

    def _cuttable(self, dims: Iterable[Dim]) -> tuple[int, ...]:
        solution = self.coupling.solution
        numbers = (solution.class_of.get(dim) for dim in dims)
        cut = (n for n in numbers if n is not None and solution.unit_of[n] is not None)
        return tuple(cut)[:MOST]
