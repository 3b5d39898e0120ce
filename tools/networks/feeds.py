"""Inputs for a network: two, of different sizes where it leaves sizes open."""

from __future__ import annotations

from onnx import ModelProto

from onnxprune.feeds import Feed, random_feeds
from tools.networks.sizes import size_under


def feeds(model: ModelProto, seed: int) -> list[Feed]:
    """Open sizes say in their names what they may be."""
    made = []
    for number in (0, 1):
        infos = {i.name: i.type.tensor_type.shape.dim for i in model.graph.input}
        shapes = {name: tuple(size_under(d, number) for d in dims) for name, dims in infos.items()}
        made += random_feeds(model, seed + number, 1, shapes)
    return made
