"""Convolutions: dense, grouped, depthwise and transposed, over any number of spatial axes.

A grouped convolution can lose whole groups (fewer groups of the same width) or the same offsets in every group
(narrower groups): a choice. Depthwise is the case where a group has one input channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, prod

import numpy as np

from onnxprune.rules.base import (
    Alternative,
    Choice,
    Constraint,
    Dim,
    Edit,
    Kept,
    Linear,
    Lock,
    NodeView,
    SetAttr,
    Tie,
    fixup,
    keeps_zero,
    linear,
    rule,
    size_of,
)

WINDOW = "the axis is convolved"
COMPUTED = "the weights are computed from data: nothing proves that a removed index adds zero"

keeps_zero("all", "Conv", "ConvTranspose", slots=(1, 2))


@rule("Conv", "ConvTranspose")
def conv(n: NodeView) -> Iterator[Constraint]:
    """X [N, C, ...], W [M, C/g, k...] (transposed: [C, M/g, k...]), B [M] -> Y [N, M, ...]."""
    transposed = n.node.op == "ConvTranspose"
    x, y = n.x(0, 1), n.y(1)
    full, part = n.x(1, 0), n.x(1, 1)  # the axis of W that spans all groups, and the one inside a group
    yield Tie(n.x(0, 0), n.y(0))
    for dim in (*n.xs(0)[2:], *n.ys()[2:], *n.xs(1)[2:]):
        yield Lock(dim, WINDOW)
    outer, inner = (x, y) if transposed else (y, x)  # the channels that run along `full` and along `part`
    yield Tie(outer, full)
    if n.has(2):
        yield Tie(n.x(2, 0), y)
    groups = n.attrs.get("group", 1)
    if groups > 1:
        yield from _grouped(n, groups, outer, inner, full, part)
    else:
        yield Tie(inner, part)
        if not (n.zero(x) or n.zero(full if transposed else part)):
            yield Lock(x, COMPUTED)


def _grouped(n: NodeView, groups: int, outer: Dim, inner: Dim, full: Dim, part: Dim) -> Iterator[Constraint]:
    for size in (n.shape(0)[1], n.out_shape()[1]):
        size_of(size, "the channels")
    wide = size_of(n.shape(1)[0], "the weights") // groups  # indices of `full` in a group
    narrow = size_of(n.shape(1)[1], "the weights")  # indices of `part`, = indices of `inner` in a group
    total, across = np.arange(groups * wide), np.arange(groups * narrow)
    contracted = part if n.node.op == "Conv" else full
    if wide == narrow == 1:
        yield Tie(outer, inner)
        yield Lock(part, "a group has one channel")
        return
    whole_groups = Alternative(
        "whole groups",
        (
            Tie(full, full, total, total // wide * wide),
            Tie(inner, full, across, across // narrow * wide),
            Lock(part, "whole groups are cut"),
        ),
        cuts=(full,),
        levels=groups // (n.options.align // gcd(n.options.align, wide, narrow)),
    )
    inside: list[Tie | Lock] = [
        Tie(full, full, total, total % wide),
        Tie(inner, part, across, across % narrow),
    ]
    if narrow == 1:
        inside.append(Lock(inner, "a group has one channel"))
    elif not (n.zero(n.x(0, 1)) or n.zero(contracted)):
        inside.append(Lock(contracted, COMPUTED))
    if wide == 1:
        inside.append(Lock(full, "a group has one channel"))
    same_offsets = Alternative(
        "the same offsets in every group",
        tuple(inside),
        cuts=(full, part),
        levels=max(wide, narrow) // n.options.align,
    )
    # Offsets cannot reach the side that has one channel a group: whole groups then cut more.
    ways = (whole_groups, same_offsets) if 1 in (wide, narrow) else (same_offsets, whole_groups)
    yield Choice(ways, (outer, inner, full, part), counted=(outer, inner))


@fixup("Conv", "ConvTranspose")
def conv_group(n: NodeView, kept: Kept) -> Iterator[Edit]:
    """The number of groups that remain."""
    groups = n.attrs.get("group", 1)
    channels = kept(n.y(1) if n.node.op == "ConvTranspose" else n.x(0, 1)).size
    remaining = channels // kept(n.x(1, 1)).size
    if groups > 1 and remaining != groups:
        yield SetAttr("group", remaining)


@linear("Conv", "ConvTranspose")
def conv_linear(n: NodeView) -> Linear:
    """MACs: outputs (transposed: inputs) x kernel volume x channels in x channels out, per group."""
    transposed = n.node.op == "ConvTranspose"
    places = n.shape(0) if transposed else n.out_shape()
    macs = prod(s for s in (*places[2:], *n.shape(1)[2:]) if isinstance(s, int))
    full, part = n.x(1, 0), n.x(1, 1)
    pads = n.attrs.get("pads") or ()
    window = n.xs(0)[2:] if transposed else n.ys()[2:]
    return Linear(
        x=n.x(0, 1),
        w_in=full if transposed else part,
        w_out=part if transposed else full,
        y=n.y(1),
        cost=(
            full,
            part,
            n.y(0),
            *(d for d, size in zip(window, places[2:], strict=True) if not isinstance(size, int)),
        ),
        macs=float(macs),
        bias=n.names[2] if n.has(2) else None,
        bias_slot=2,
        groups=n.attrs.get("group", 1),
        padded=transposed or any(pads) or n.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"),
    )
