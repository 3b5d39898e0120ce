"""The row-major regrouping of axes, solved by common factors.

`[6, 4] -> [2, 12]` keeps the order of 24 elements. Cutting both shapes at every place where either is cut gives the
common factors (2, 3, 4); a cut that stays a box on both sides removes indices of exactly one factor. So each factor is
an alternative: the axes that contain it lose those indices, every other axis of the block stays whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise, takewhile
from math import prod
from operator import mul

import numpy as np

from onnxprune.rules.base import Alternative, Choice, Constraint, Dim, Index, Lock, NodeView, Tie
from onnxprune.sizes import LARGEST, Size, factor, product, quotient

REGROUPED = "Reshape merges or splits it with an axis that is cut"
OPEN = "Reshape regroups an axis of open size; give --shape"


@dataclass(frozen=True)
class Block:
    """Consecutive input axes that become consecutive output axes."""

    x: tuple[int, ...]
    y: tuple[int, ...]


def regroup(n: NodeView) -> Iterator[Constraint]:
    """Ties and choices between the axes of input 0 and output 0. Axes of size one carry nothing."""
    shape, out = named(n.xs(0), n.shape(0)), named(n.ys(), n.out_shape())
    for dim, size in (*zip(n.xs(0), shape, strict=True), *zip(n.ys(), out, strict=True)):
        if size == 1:
            yield Lock(dim, "an axis of size one")
    for block in blocks(shape, out):
        xs, ys = [n.x(0, a) for a in block.x], [n.y(a) for a in block.y]
        if len(xs) == len(ys) == 1:
            yield Tie(xs[0], ys[0])
            continue
        x_sizes, y_sizes = [shape[a] for a in block.x], [out[a] for a in block.y]
        choice = _choice(n, xs, ys, x_sizes, y_sizes)
        if choice is not None:
            yield choice
            continue
        for dim in (*xs, *ys):
            yield Lock(dim, OPEN)


def named(dims: Sequence[Dim], shape: Sequence[int | str | None]) -> list[Size]:
    """A shape in which what is not known has a name of its own."""
    return [f"{dim.value}[{dim.axis}]" if size is None else size for dim, size in zip(dims, shape, strict=True)]


def blocks(x: Sequence[Size], y: Sequence[Size]) -> list[Block]:
    """Match the axes in runs of equal product, from both ends; what stays between the ends is one block."""
    xs = [a for a, s in enumerate(x) if s != 1]
    ys = [a for a, s in enumerate(y) if s != 1]
    head = _runs(xs, ys, x, y)
    xs, ys = xs[sum(len(b.x) for b in head) :], ys[sum(len(b.y) for b in head) :]
    tail = [Block(b.x[::-1], b.y[::-1]) for b in _runs(xs[::-1], ys[::-1], x, y)]
    xs = xs[: len(xs) - sum(len(b.x) for b in tail)]
    ys = ys[: len(ys) - sum(len(b.y) for b in tail)]
    middle = [Block(tuple(xs), tuple(ys))] if xs or ys else []
    return head + middle + tail[::-1]


def _runs(xs: Sequence[int], ys: Sequence[int], x: Sequence[Size], y: Sequence[Size]) -> list[Block]:
    found: list[Block] = []
    i = j = 0
    while i < len(xs) and j < len(ys):
        if x[xs[i]] == y[ys[j]]:
            found.append(Block((xs[i],), (ys[j],)))
            i, j = i + 1, j + 1
            continue
        run = _run(xs[i:], ys[j:], x, y)
        if run is None:
            break
        found.append(run)
        i, j = i + len(run.x), j + len(run.y)
    return found


def _run(xs: Sequence[int], ys: Sequence[int], x: Sequence[Size], y: Sequence[Size]) -> Block | None:
    """The shortest runs with the same product."""
    i = j = 1
    while True:
        left, right = product(x[k] for k in xs[:i]), product(y[k] for k in ys[:j])
        if left == right:
            return Block(tuple(xs[:i]), tuple(ys[:j]))
        if _shorter(left, right):
            i += 1
        else:
            j += 1
        if i > len(xs) or j > len(ys):
            return None


def _shorter(a: Size, b: Size) -> bool:
    """Which of two products to extend: the one that divides the other, or else the smaller."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    return quotient(b, a) is not None or (quotient(a, b) is None and factor(a) < factor(b))


def _choice(
    n: NodeView, xs: Sequence[Dim], ys: Sequence[Dim], x_sizes: Sequence[Size], y_sizes: Sequence[Size]
) -> Choice | None:
    if not xs or not ys:
        return None
    if product(x_sizes) != product(y_sizes):
        return _outer_choice(n, xs, ys, x_sizes, y_sizes)
    ends = _chain([1, *accumulate(reversed(x_sizes), _times), *accumulate(reversed(y_sizes), _times)])
    if ends is None:
        return None
    # Factors from the innermost out: (stride, size). What is open cannot be cut, only what lies beside it.
    factors = [(n.instance(a), quotient(b, a)) for a, b in pairwise(ends)]
    dims = [*_spans(n, xs, x_sizes), *_spans(n, ys, y_sizes)]
    if any(
        length > LARGEST
        for (_, _, length), size in zip(dims, (*x_sizes, *y_sizes), strict=True)
        if isinstance(size, str)
    ):
        return None
    ways = [_cut(n, dims, stride, size) for stride, size in factors if isinstance(size, int)]
    return Choice(tuple(ways), tuple(d for d, _, _ in dims)) if ways else None


def _chain(ends: Iterable[Size]) -> list[Size] | None:
    """Sizes in an order in which each divides the next, or None."""
    found: list[Size] = []
    for end in set(ends):
        at = sum(quotient(end, f) is not None for f in found)
        found.insert(at, end)
    return found if all(quotient(b, a) is not None for a, b in pairwise(found)) else None


def _times(a: Size, b: Size) -> Size:
    return product([a, b])


def _outer_choice(
    n: NodeView, xs: Sequence[Dim], ys: Sequence[Dim], x_sizes: Sequence[Size], y_sizes: Sequence[Size]
) -> Choice | None:
    """`[8, H, W] -> [4, ?]`: before the first open size, both sides count the same outermost digits."""
    leading = []
    for dims, sizes in ((xs, x_sizes), (ys, y_sizes)):
        known = [s for s in takewhile(lambda s: isinstance(s, int), sizes) if isinstance(s, int)]
        leading.append((dims[: len(known)], known))
    ends = sorted({1, *(end for _, known in leading for end in accumulate(known, mul))})
    if any(b % a for a, b in pairwise(ends)):
        return None
    shared = min(prod(known) for _, known in leading)
    spans = [
        (dim, ends[-1] // end, size)
        for dims, known in leading
        for dim, end, size in zip(dims, accumulate(known, mul), known, strict=True)
    ]
    factors = [(ends[-1] // b, b // a) for a, b in pairwise(ends) if b <= shared]
    if not factors:
        return None
    inner = tuple(Lock(dim, OPEN) for dim in (*xs, *ys) if all(dim != d for d, _, _ in spans))
    ways = [_cut(n, spans, s, f) for s, f in reversed(factors)]
    return Choice(tuple(replace(w, constraints=w.constraints + inner) for w in ways), (*xs, *ys))


def _spans(n: NodeView, dims: Sequence[Dim], sizes: Sequence[Size]) -> list[tuple[Dim, int, int]]:
    """Each dim with its stride in the block and its size."""
    lengths = [n.instance(s) for s in sizes]
    strides = [*accumulate(reversed(lengths), mul, initial=1)][:-1][::-1]
    return list(zip(dims, strides, lengths, strict=True))


def _cut(n: NodeView, dims: Sequence[tuple[Dim, int, int]], stride: int, size: int) -> Alternative:
    """The alternative in which indices of the factor with this stride and size go."""
    inside: list[tuple[Dim, Index]] = []
    constraints: list[Tie | Lock] = []
    for dim, start, length in dims:
        if start <= stride and stride * size <= start * length:
            inside.append((dim, np.arange(length) // (stride // start) % size))
        else:
            constraints.append(Lock(dim, REGROUPED))
    inside.sort(key=lambda pair: pair[1].size)  # the axis that is the factor itself, where there is one
    (first, digits), rest = inside[0], inside[1:]
    representative = np.unique(digits, return_index=True)[1]
    if digits.size > size:
        constraints.append(Tie(first, first, np.arange(digits.size), representative[digits]))
    constraints += [Tie(dim, first, np.arange(d.size), representative[d]) for dim, d in rest]
    return Alternative(f"factor {size}", tuple(constraints), cuts=(first,), levels=max(1, size // n.options.align))
