"""Detectors: boxes are picked by data, channels under them pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from onnxprune.rules.base import (
    Constraint,
    Dim,
    Linear,
    Lock,
    NodeView,
    Tie,
    Unknown,
    fixup,
    keeps_zero,
    linear,
    rule,
    size_of,
)
from onnxprune.rules.conv import WINDOW, conv, conv_group, conv_linear

AS_CONV = (0, 1, 3)  # X, W and B of a DeformConv

keeps_zero("all", "RoiAlign", "MaxRoiPool", slots=(0,))
keeps_zero("all", "DeformConv", slots=(1, 3))


def _lock(dims: Iterable[Dim], reason: str) -> Iterator[Constraint]:
    for dim in dims:
        yield Lock(dim, reason)


@rule("NonMaxSuppression")
def non_max_suppression(n: NodeView) -> Iterator[Constraint]:
    """Boxes [N, boxes, 4] and scores [N, classes, boxes] are compared with each other; numbers of boxes come out."""
    yield from _lock((*n.xs(0), *n.xs(1), *n.ys()), "NonMaxSuppression compares all boxes, and numbers them")


@rule("RoiAlign", "MaxRoiPool")
def roi(n: NodeView) -> Iterator[Constraint]:
    """X [N, C, H, W] is read inside each of the boxes [R, 4 or 5] -> Y [R, C, h, w]."""
    yield Tie(n.x(0, 1), n.y(1))
    yield from _lock((n.x(0, 0), *n.xs(0)[2:]), "data say which of these indices are read")
    yield from _lock((n.x(1, 1), *n.ys()[2:]), "the coordinates of a box, and what is read inside of it")
    yield Tie(n.x(1, 0), n.y(0))
    if n.has(2):
        yield Tie(n.x(2, 0), n.y(0))


@rule("DeformConv")
def deform_conv(n: NodeView) -> Iterator[Constraint]:
    """A convolution of X by W whose taps are moved by offsets [N, groups x taps x 2, ...] and scaled by a mask."""
    yield from conv(n.as_op("Conv", AS_CONV))
    for slot in (2, 4):
        if n.has(slot):
            yield Tie(n.x(slot, 0), n.y(0))
            yield Lock(n.x(slot, 1), "one channel for each tap of the kernel")
            yield from _lock(n.xs(slot)[2:], WINDOW)
    # Channels share offsets in runs of equal length: all runs lose the same places.
    moved = n.attrs.get("offset_group", 1)
    if moved > 1:
        channels = np.arange(size_of(n.shape(0)[1], "the channels"))
        if channels.size % moved:
            raise Unknown("the channels do not divide into groups of offsets")
        yield Tie(n.x(0, 1), n.x(0, 1), channels, channels % (channels.size // moved))


fixup("DeformConv")(conv_group)


@linear("DeformConv")
def deform_conv_linear(n: NodeView) -> Linear:
    """As of a convolution; taps that are moved outside read zeros."""
    spec = conv_linear(n.as_op("Conv", AS_CONV))
    assert isinstance(spec, Linear)
    return replace(spec, bias_slot=3, padded=True)
