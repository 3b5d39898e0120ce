"""DepthToSpace and SpaceToDepth (pixel shuffle and unshuffle): a channel owns one block of positions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.rules.base import Constraint, Lock, NodeView, Tie, keeps_zero, rule, size_of

keeps_zero("all", "DepthToSpace", "SpaceToDepth", slots=(0,))


@rule("DepthToSpace", "SpaceToDepth")
def depth_space(n: NodeView) -> Iterator[Constraint]:
    """[N, C*b*b, H, W] <-> [N, C, b*H, b*W]; the deep side is (b, b, C), or (C, b, b) in CRD mode."""
    deep, shallow, deep_shape = n.x(0, 1), n.y(1), n.shape(0)
    if n.node.op == "SpaceToDepth":
        deep, shallow, deep_shape = n.y(1), n.x(0, 1), n.out_shape()
    index = np.arange(size_of(deep_shape[1], "the channels"))
    block = n.attrs["blocksize"] ** 2
    crd = n.attrs.get("mode", "DCR") == "CRD"
    yield Tie(n.x(0, 0), n.y(0))
    yield Tie(deep, shallow, index, index // block if crd else index % (index.size // block))
    for dim in (*n.xs(0)[2:], *n.ys()[2:]):
        yield Lock(dim, "the axis holds the blocks of the shuffle")
