"""Which axes carry zeros: where a removed index is zero in the masked original, a sum does not miss it.

A contraction of two computed tensors has no weights to cut; it is exact only if a zero still arrives from the producer
on at least one side. The flow marks every axis on which that holds, in the order of the nodes, from what the ops
declare.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from onnxprune.rules.base import ZERO, Choice, Constraint, Dim, NodeView, Tie, Unknown, Zero


class ZeroFlow:
    """The marked axes so far."""

    def __init__(self, constants: Iterable[Dim]) -> None:
        """`constants`: the axes of parameters, whose removed slices are zero by definition."""
        self._zero = set(constants)

    def __call__(self, dim: Dim) -> bool:
        """Whether an axis is marked."""
        return dim in self._zero

    def visit(self, view: NodeView, declared: Iterable[Constraint]) -> None:
        """Mark the outputs of a node, whose rule declared these constraints."""
        declaration = ZERO.find(view.key)
        if declaration is None or not _holds(declaration, view):
            return
        slots = declaration.slots or tuple(range(len(view.node.inputs)))
        slots = tuple(s for s in slots if view.has(s))
        slot_of = {view.names[s]: s for s in slots}
        ties: dict[Dim, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
        outputs = set(view.node.outputs)
        for a, b in _pairs(declared):
            for y, x in ((a, b), (b, a)):
                if y.value in outputs and x.value in slot_of:
                    ties[y][slot_of[x.value]].append(x in self._zero)
        for y, operands in ties.items():
            flags = [all(operands[s]) if s in operands else False for s in slots]
            if any(flags) if declaration.need == "any" else all(flags):
                self._zero.add(y)


def _holds(declaration: Zero, view: NodeView) -> bool:
    try:
        return declaration.when is None or declaration.when(view)
    except (Unknown, IndexError, KeyError, ValueError, TypeError):
        return False  # a node that is not as its schema says


def _pairs(declared: Iterable[Constraint]) -> Iterable[tuple[Dim, Dim]]:
    for constraint in declared:
        if isinstance(constraint, Tie):
            yield constraint.a, constraint.b
        elif isinstance(constraint, Choice):
            yield from ((a, b) for a in constraint.dims for b in constraint.dims if a.value != b.value)
