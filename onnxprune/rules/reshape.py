"""Ops that keep the order of the elements and regroup the axes: Reshape, Flatten, Squeeze, Unsqueeze."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxprune.number import Leaf, Number, SizeOf
from onnxprune.rules.base import Constraint, Lock, NodeView, Sized, Tie, Unknown, keeps_zero, rule
from onnxprune.rules.regroup import regroup

keeps_zero("all", "Reshape", "Flatten", "Squeeze", "Unsqueeze", slots=(0,))


@rule("Reshape")
def reshape(n: NodeView) -> Iterator[Constraint]:
    """Axes merge and split; the numbers of the target shape follow the cut."""
    yield from regroup(n)
    numbers = n.numbers(1)
    copies = not n.attrs.get("allowzero", 0)
    computed = n.const(1) is None  # what takes its place is written for zeros that copy
    for axis, y in enumerate(n.ys()):
        if numbers is None:
            yield Lock(y, "the target shape is computed")
            continue
        number = numbers[axis]
        ours = computed and number.source == Leaf(n.node.index, 1, axis)
        if number.value == 0 and (copies or ours):
            yield from _copied(n, axis)
        if number.value not in (0, -1) or ours:
            yield Sized(y, number)


def _copied(n: NodeView, axis: int) -> Iterator[Constraint]:
    """A 0 copies the input's size at the same place: right after a cut only where the two are cut alike."""
    yield Sized(n.y(axis), Number(None, SizeOf(n.names[0], axis)))


@rule("Flatten")
def flatten(n: NodeView) -> Iterator[Constraint]:
    """[a, b, c, d] -> [a*b, c*d]."""
    yield from regroup(n)


@rule("Unsqueeze")
def unsqueeze(n: NodeView) -> Iterator[Constraint]:
    """Axes of size one appear."""
    axes = n.ints(1, "axes")
    if axes is None:
        raise Unknown("the new axes are computed")
    rank = len(n.out_shape())
    new = {axis % rank for axis in axes}
    yield from _in_order(n, range(len(n.shape(0))), [a for a in range(rank) if a not in new])


@rule("Squeeze")
def squeeze(n: NodeView) -> Iterator[Constraint]:
    """Axes of size one vanish. Where the axes are not named, no other axis may become one of size one."""
    if not n.has(1) and "axes" not in n.attrs:
        gone = {axis for axis, size in enumerate(n.shape(0)) if size == 1}
        if len(n.shape(0)) - len(gone) != len(n.out_shape()):
            raise Unknown("which axes are squeezed is not known")
        for axis, x in enumerate(n.xs(0)):
            if axis not in gone:
                yield Lock(x, "Squeeze without axes depends on every size")
    else:
        axes = n.ints(1, "axes")
        if axes is None:
            raise Unknown("the squeezed axes are computed")
        gone = {axis % len(n.shape(0)) for axis in axes}
    yield from _in_order(n, [a for a in range(len(n.shape(0))) if a not in gone], range(len(n.out_shape())))


def _in_order(n: NodeView, xs: Sequence[int], ys: Sequence[int]) -> Iterator[Constraint]:
    for a, b in zip(xs, ys, strict=True):
        yield Tie(n.x(0, a), n.y(b))
