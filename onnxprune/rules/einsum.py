"""Einsum: every label is an axis of all operands that carry it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from onnxprune.rules.base import Constraint, Dim, Lock, NodeView, Tie, Unknown, free, keeps_zero, rule
from onnxprune.rules.matmul import contract

keeps_zero("any", "Einsum")


@rule("Einsum")
def einsum(n: NodeView) -> Iterator[Constraint]:
    """`bhqd,bhkd->bhqk`: labels of the output pass, the others are contracted between the operands that have them."""
    terms, out = terms_of(n)
    carriers: dict[str, list[Dim]] = defaultdict(list)
    for slot, labels in enumerate(terms):
        if len(set(labels)) < len(labels):
            raise Unknown("Einsum takes a diagonal")
        for label, dim, size in zip(labels, n.xs(slot), n.shape(slot), strict=True):
            if size == 1:
                yield free(dim)  # an axis of size one, broadcast or not, carries nothing
            else:
                carriers[label].append(dim)
    places = dict(zip(out, n.ys(), strict=True))
    for label, dims in carriers.items():
        for dim in dims:
            yield Tie(dims[0], dim)
        if label in places:
            yield Tie(places[label], dims[0])
            for dim in dims[1:]:
                yield Tie(places[label], dim)
        elif len(dims) == 2:
            yield from contract(n, *dims)
        else:
            yield Lock(dims[0], "Einsum sums over the axis")
    for label, y in places.items():
        if label not in carriers:
            yield free(y)


def terms_of(n: NodeView) -> tuple[list[str], str]:
    """Labels of each operand and of the output; an ellipsis becomes capital letters that are free."""
    equation = n.attrs["equation"].replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(n.node.inputs):
        raise Unknown("Einsum's equation does not fit its inputs")
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    widest = 0
    for slot, term in enumerate(terms):
        if "..." in term:
            count = len(n.shape(slot)) - (len(term) - 3)
            widest = max(widest, count)
            terms[slot] = term.replace("...", "".join(free[:count][::-1]))
    if not arrow:
        once = sorted(c for c in set("".join(terms)) if "".join(terms).count(c) == 1 and c not in free)
        right = "..." * bool(widest) + "".join(once)
    return terms, right.replace("...", "".join(free[:widest][::-1]))
