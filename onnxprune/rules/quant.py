"""QuantizeLinear and DequantizeLinear, per tensor and per channel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.rules.base import Constraint, NodeView, Tie, Unknown, keeps_zero, rule, size_of

keeps_zero("all", "DequantizeLinear", slots=(0,))


@rule("QuantizeLinear", "DequantizeLinear")
def quantize(n: NodeView) -> Iterator[Constraint]:
    """Element-wise; a vector of scales (and zero points) goes with `axis`."""
    if n.attrs.get("block_size", 0):
        yield from _blocked(n, n.attrs["block_size"])
        return
    for x, y in zip(n.xs(0), n.ys(), strict=True):
        yield Tie(x, y)
    for slot in (1, 2):
        if n.has(slot) and len(n.shape(slot)) == 1 and n.shape(slot) != (1,):
            yield Tie(n.x(slot, 0), n.x(0, n.attrs.get("axis", 1)))


def _blocked(n: NodeView, block: int) -> Iterator[Constraint]:
    """Along `axis` neighbours share a scale, so a block goes as a whole."""
    if n.has(2):
        raise Unknown("blocked quantisation with zero points")
    blocked = n.attrs.get("axis", 1) % len(n.shape(0))
    for axis, (x, y) in enumerate(zip(n.xs(0), n.ys(), strict=True)):
        yield Tie(x, y)
        if axis == blocked:
            index = np.arange(size_of(n.shape(0)[axis], "a blocked axis"))
            for dim in (x, y):
                yield Tie(dim, n.x(1, axis), index, index // block)
        else:
            yield Tie(x, n.x(1, axis))
