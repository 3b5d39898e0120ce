"""The closed world of the search: what reads units in another way than weights do keeps them."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

import numpy as np

from onnxprune.lossless.facts import Facts
from onnxprune.lossless.reading import Mask
from onnxprune.lossless.transfer import SUM, TRANSFERS, reduced_axes
from onnxprune.rules.base import Dim, NodeView, Unknown

# Operators whose outputs depend, index by index, on the same indices of the inputs alone; and those that mix some axes,
# all from this one on.
PARALLEL = frozenset(TRANSFERS) | {"CastLike", "Constant", "GroupNormalization", "IsInf", "IsNaN", "Shape"}
MIXING: Mapping[str, int] = {
    "Softmax": -1,
    "LogSoftmax": -1,
    "Hardmax": -1,
    "LayerNormalization": -1,
    "RMSNormalization": -1,
    "LpNormalization": -1,
}


def fixed_units(facts: Facts, contractions: Container[int]) -> Mask:
    """[units]: True where something other than weights, or an operator that is not known here, reads a unit.

    Args:
        facts: of all values.
        contractions: indices of the nodes that read with weights.
    """
    fixed = np.zeros(facts.coupling.units, dtype=bool)
    for view in facts.coupling.views:
        if view.node.index in contractions:
            continue
        try:
            sums = list(_sums(view))
        except Unknown:
            sums = [(dim,) for dim in _all(facts, view)]
        for sides in sums:
            silent = _silent(facts, sides) if view.node.op in (*SUM, "MatMul") else np.zeros(1, dtype=bool)
            for side in sides:
                units = facts.coupling.unit_of(side)
                if units is not None:
                    fixed[units[~silent & (units >= 0)]] = True
        if view.node.domain or view.node.op not in PARALLEL | set(MIXING):
            for dim in _all(facts, view):
                units = facts.coupling.unit_of(dim)
                if units is not None:
                    fixed[units[units >= 0]] = True
    return fixed


def _sums(view: NodeView) -> Iterator[tuple[Dim, ...]]:
    """The axes of a node's inputs that it mixes; of a product of two tensors, both sides."""
    op = view.node.op if not view.node.domain else ""
    if op == "MatMul":
        a, b = view.xs(0), view.xs(1)
        yield a[-1], b[-2] if len(b) > 1 else b[0]
    elif op.startswith("Reduce") and op in TRANSFERS:
        yield from ((view.x(0, axis),) for axis in reduced_axes(view))
    elif op in MIXING:
        last = 1 if op.endswith("max") and view.opset < 13 else MIXING[op]
        yield from ((dim,) for dim in view.xs(0)[view.attrs.get("axis", last) % len(view.shape(0)) :])


def _all(facts: Facts, view: NodeView) -> list[Dim]:
    return [Dim(name, axis) for name in view.names for axis in range(len(facts.form(name)))]


def _silent(facts: Facts, sides: tuple[Dim, ...]) -> Mask:
    """[index]: whether it adds nothing to a sum, because it is zero on (one of) the sides."""
    silent = np.zeros(1, dtype=bool)
    for value, axis in sides:
        zero = facts.of(value) == 0
        silent = silent | zero.all(axis=tuple(a for a in range(zero.ndim) if a != axis))
    return silent
