"""Einsum: every label is an axis of all operands that carry it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from onnxprune.rules.base import Constraint, Dim, Linear, Lock, NodeView, Tie, Unknown, free, keeps_zero, linear, rule
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


@linear("Einsum")
def einsum_linear(n: NodeView) -> Linear:
    """`...i,oi->...o`: one operand is a matrix of weights, which puts one label in the place of another."""
    terms, out = terms_of(n)
    weights = [slot for slot in range(len(terms)) if n.is_weight(slot)]
    if len(terms) != 2 or len(weights) != 1:
        raise Unknown("no layer: one of two operands has to be weights")
    w, x = weights[0], 1 - weights[0]
    read, made = (set(terms[w]) & set(terms[x]) - set(out)), (set(terms[w]) & set(out) - set(terms[x]))
    if len(terms[w]) != 2 or len(read) != 1 or len(made) != 1:
        raise Unknown("no layer: the weights are no matrix from one label to another")
    (i,), (o,) = read, made
    if terms[x].replace(i, o) != out:
        raise Unknown("no layer: the other labels change places")
    w_in, w_out = (n.xs(w)[terms[w].index(label)] for label in (i, o))
    return Linear(n.xs(x)[terms[x].index(i)], w_in, w_out, n.y(out.index(o)), (w_in, *n.ys()), 1.0)


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
