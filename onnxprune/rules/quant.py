"""QuantizeLinear and DequantizeLinear, per tensor and per channel."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.base import Constraint, NodeView, Tie, Unknown, keeps_zero, rule

keeps_zero("all", "DequantizeLinear", slots=(0,))


@rule("QuantizeLinear", "DequantizeLinear")
def quantize(n: NodeView) -> Iterator[Constraint]:
    """Element-wise; a vector of scales (and zero points) goes with `axis`."""
    if n.attrs.get("block_size", 0):
        raise Unknown("blocked quantisation shares a scale between neighbours")
    for x, y in zip(n.xs(0), n.ys(), strict=True):
        yield Tie(x, y)
    for slot in (1, 2):
        if n.has(slot) and len(n.shape(slot)) == 1 and n.shape(slot) != (1,):
            yield Tie(n.x(slot, 0), n.x(0, n.attrs.get("axis", 1)))
