"""Resize and Upsample: axes that keep their size pass."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import Constraint, Lock, NodeView, Sized, Tie, keeps_zero, rule

keeps_zero("all", "Resize", "Upsample", slots=(0,))


def _unscaled(n: NodeView, axis: int) -> bool:
    """Whether no scale other than 1 is applied to an axis: sizes may agree by rounding."""
    slot = 1 if n.node.op == "Upsample" or n.opset < 11 else 2
    scales = n.attrs.get("scales", n.const(slot))
    if scales is None or not len(scales):
        return not n.has(slot) or scales is not None
    axes = [a % len(n.shape(0)) for a in n.attrs.get("axes", range(len(n.shape(0))))]
    return axis not in axes or float(scales[axes.index(axis)]) == 1.0


@rule("Resize", "Upsample")
def resize(n: NodeView) -> Iterator[Constraint]:
    """An axis of equal size in and out is copied; the others are interpolated."""
    cropped = n.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    sizes = n.numbers(3) if n.node.op == "Resize" and n.has(3) else None
    axes = n.attrs.get("axes", range(len(n.shape(0))))
    written = dict(zip((a % len(n.shape(0)) for a in axes), sizes, strict=False)) if sizes else {}
    # With a policy, what is written for an axis is no more than a bound.
    cropped |= n.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    for axis, (x, y) in enumerate(zip(n.xs(0), n.ys(), strict=True)):
        if cropped or not _unscaled(n, axis) or n.shape(0)[axis] != n.out_shape()[axis]:
            yield Lock(x, "the axis is resized")
            yield Lock(y, "the axis is resized")
            continue
        yield Tie(x, y)
        if axis in written:
            yield Sized(y, written[axis])
        elif n.node.op == "Resize" and n.has(3) and sizes is None:
            yield Lock(x, "the target size is computed")
