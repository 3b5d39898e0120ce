"""Normalisations with statistics per channel or per group of channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.rules.base import (
    Constraint,
    Edit,
    Kept,
    Lock,
    NodeView,
    SetAttr,
    Tie,
    fixup,
    keeps_zero,
    rule,
    size_of,
)

keeps_zero("all", "BatchNormalization", "InstanceNormalization", slots=(1, 2))

NORMALISED = "the axis is normalised over"


@rule("BatchNormalization")
def batch_norm(n: NodeView) -> Iterator[Constraint]:
    """Scale, bias, mean and variance [C] go with axis 1 of X. In training mode the statistics are those of X itself."""
    training = n.attrs.get("training_mode", 0) or (n.opset < 7 and not n.attrs.get("is_test", 0))
    for axis, (x, y) in enumerate(zip(n.xs(0), n.ys(), strict=True)):
        yield Tie(x, y)
        if training and axis != 1:
            yield Lock(x, NORMALISED)
    for slot in range(1, 5):
        yield Tie(n.x(slot, 0), n.y(1))
    for slot in list(n.outputs())[1:]:
        yield Tie(n.y(0, slot), n.y(1))


@rule("InstanceNormalization")
def instance_norm(n: NodeView) -> Iterator[Constraint]:
    """Each channel is normalised by itself, over its spatial axes."""
    yield Tie(n.x(0, 0), n.y(0))
    yield Tie(n.x(0, 1), n.y(1))
    for slot in (1, 2):
        yield Tie(n.x(slot, 0), n.y(1))
    for x, y in zip(n.xs(0)[2:], n.ys()[2:], strict=True):
        yield Tie(x, y)
        if not n.options.inexact:  # a GroupNormalization written out has its channels here
            yield Lock(x, NORMALISED, option="--allow-inexact")


@rule("GroupNormalization")
def group_norm(n: NodeView) -> Iterator[Constraint]:
    """Whole groups can go. Scale and bias are [C] from opset 21 on, [groups] before."""
    channels = size_of(n.shape(0)[1], "the channels")
    index = np.arange(channels)
    width = channels // n.attrs["num_groups"]
    yield Tie(n.x(0, 0), n.y(0))
    yield Tie(n.x(0, 1), n.y(1))
    yield Tie(n.x(0, 1), n.x(0, 1), index, index // width * width)
    for slot in (1, 2):
        if n.shape(slot)[0] == channels:
            yield Tie(n.x(slot, 0), n.x(0, 1))
        else:
            yield Tie(n.x(0, 1), n.x(slot, 0), index, index // width)
    for dim in (*n.xs(0)[2:], *n.ys()[2:]):
        yield Lock(dim, NORMALISED)


@fixup("GroupNormalization")
def group_norm_groups(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The number of groups that remain."""
    groups = n.attrs["num_groups"]
    width = size_of(n.shape(0)[1], "the channels") // groups
    remaining = kept(n.x(0, 1)).size // width
    if remaining != groups:
        yield SetAttr("num_groups", remaining)


@rule("LRN")
def local_response_norm(n: NodeView) -> Iterator[Constraint]:
    """A channel is divided by its neighbours."""
    for axis, (x, y) in enumerate(zip(n.xs(0), n.ys(), strict=True)):
        yield Lock(x, "LRN divides a channel by its neighbours") if axis == 1 else Tie(x, y)
