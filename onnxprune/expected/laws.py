"""The laws of a model's values, and what operators do to them: a registry, a function for each family of operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from onnxprune.expected.law import GRID, LARGEST, Law, unknown
from onnxprune.folds import constant_value
from onnxprune.groups import Coupling
from onnxprune.rules.base import NodeView

ENTRIES = LARGEST // len(GRID)  # of a constant that is computed with


class Laws:
    """What is known, value by value; filled in the order of the nodes (see `expectations`)."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self._laws: dict[str, Law] = {}

    def of(self, name: str) -> Law:
        """The law of a value: a constant, what was `set`, or unknown."""
        if name in self._laws:
            return self._laws[name]
        graph = self.coupling.graph
        shape = graph.shapes.get(name) or ()
        small = all(isinstance(size, int) for size in shape) and prod(s for s in shape if isinstance(s, int)) <= ENTRIES
        value = constant_value(graph, name, {}) if small else None
        known = value is not None and value.dtype.kind not in "OSUc"
        return Law(value.astype(np.float64)[None]) if value is not None and known else unknown(len(shape))

    def set(self, name: str, law: Law) -> None:
        """Keep the law of a value."""
        self._laws[name] = law

    def x(self, view: NodeView, slot: int) -> Law:
        """The law of a node's input."""
        return self.of(view.node.inputs[slot])


Expects = Callable[[Laws, NodeView], Sequence[Law]]
EXPECTS: dict[str, Expects] = {}


def expects(*ops: str) -> Callable[[Expects], Expects]:
    """Register what some operators do to laws; after all others nothing is known."""

    def add(function: Expects) -> Expects:
        EXPECTS.update(dict.fromkeys(ops, function))
        return function

    return add
