"""Products of two computed tensors, as queries and keys meet: which axis is summed, and how the others pair up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Node
from onnxprune.groups import Coupling
from onnxprune.rules.base import Dim, NodeView, Unknown
from onnxprune.rules.einsum import terms_of

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Product:
    """A MatMul, Gemm or Einsum of two computed tensors that sums over one axis.

    Attributes:
        node: the operator.
        terms: for each operand, a label for each axis; axes of both that share one go together.
        inner: the label that is summed.
    """

    node: Node
    terms: tuple[str, str]
    inner: str

    def summed(self, slot: int) -> Dim:
        """The axis of an operand that is summed."""
        return Dim(self.node.inputs[slot], self.terms[slot].index(self.inner))

    def laid(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Values of the operands as [pairs, rows, channels]: every row of one meets every row of the other of its pair.

        Args:
            a, b: of the shapes of the operands; only the summed axes may differ.
        """
        shared = [c for c in self.terms[0] if c in self.terms[1] and c != self.inner]
        moved = []
        for term, value in zip(self.terms, (a, b), strict=True):
            own = [c for c in term if c not in shared and c != self.inner]
            moved.append(value.transpose([term.index(c) for c in (*shared, *own, self.inner)]))
        pairs = np.broadcast_shapes(*(m.shape[: len(shared)] for m in moved))
        wide = [np.broadcast_to(m, (*pairs, *m.shape[len(shared) :])) for m in moved]
        count = int(np.prod(pairs))
        x, y = (w.reshape(count, int(np.prod(w.shape[len(shared) : -1])), w.shape[-1]) for w in wide)
        return x, y


def products(coupling: Coupling) -> Iterator[Product]:
    """Every product of two computed tensors, in the order of the nodes."""
    for view in coupling.views:
        fixed = [name in coupling.graph.fixed for name in view.node.inputs[:2]]
        if view.key not in _TERMS or any(fixed) or len(fixed) < 2:
            continue
        try:
            a, b, out = _TERMS[view.key](view)
        except (Unknown, KeyError, ValueError):
            continue
        inner = [c for c in a if c in b and c not in out]
        if len(inner) == 1 and set(a) | set(b) <= {*out, *inner} and a and b:
            yield Product(view.node, (a, b), inner[0])


def multiplied(coupling: Coupling) -> Iterator[tuple[Node, tuple[Dim, ...]]]:
    """Products that are no layers', and the dims whose sizes make up their multiply-accumulates: one for each label."""
    layers = {node.index for node, _ in coupling.linears}
    for view in coupling.views:
        if view.key not in _TERMS or view.node.index in layers:
            continue
        dims: dict[str, Dim] = {}
        try:
            for slot, term in enumerate(_TERMS[view.key](view)[:2]):
                for label, dim, size in zip(term, view.xs(slot), view.shape(slot), strict=True):
                    if size != 1:
                        dims.setdefault(label, dim)
        except (Unknown, KeyError, ValueError):
            continue
        yield view.node, tuple(dims.values())


def _matmul(n: NodeView) -> tuple[str, str, str]:
    """[..., m, k] x [..., k, n]; a vector has k alone."""
    ranks = [len(n.shape(slot)) for slot in range(2)]
    batch = "ABCDEFGHIJ"[: max(0, max(ranks) - 2)]
    left, right = (batch[len(batch) - max(0, rank - 2) :] for rank in ranks)
    a, b = left + ("mk" if ranks[0] > 1 else "k"), right + ("kn" if ranks[1] > 1 else "k")
    return a, b, batch + "mn"


def _gemm(n: NodeView) -> tuple[str, str, str]:
    return "km" if n.attrs.get("transA", 0) else "mk", "nk" if n.attrs.get("transB", 0) else "kn", "mn"


def _einsum(n: NodeView) -> tuple[str, str, str]:
    terms, out = terms_of(n)
    a, b = terms
    return a, b, out


_TERMS = {"MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum}
