"""NumPy broadcasting as ties: shared by the element-wise ops, MatMul's batch axes and Gemm's bias."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxprune.rules.base import Constraint, Dim, NodeView, Tie


def tie_broadcast(
    n: NodeView,
    x: Sequence[Dim],
    x_shape: Sequence[int | str | None],
    y: Sequence[Dim],
    y_shape: Sequence[int | str | None],
) -> Iterator[Constraint]:
    """Tie every axis of x that is not stretched to the axis of y that it is aligned with (from the right).

    A size-1 axis against a wider one carries nothing along it. Open sizes are tied too: they lock each other.
    """
    offset = len(y) - len(x)
    for i, dim in enumerate(x):
        if x_shape[i] != 1 or y_shape[i + offset] == 1:
            yield Tie(dim, y[i + offset])
