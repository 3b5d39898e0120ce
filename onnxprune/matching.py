"""Generated images brought to the range that a model was trained on, as far as its first BatchNormalization tells.

Where only linear layers lie before it, what it reads is linear in the image: gain and offset of the pixels follow from
its running statistics in closed form (Haroush et al. 2020, The Knowledge Within, match such statistics by gradients).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from onnxprune.calibrate import Statistics, calibrate
from onnxprune.data import Feeds
from onnxprune.errors import DataError, ModelError
from onnxprune.feeds import Feed, is_float
from onnxprune.graph import Graph, Node, is_big
from onnxprune.instrument import Want
from onnxprune.likeness import tells
from onnxprune.parts import Engine
from onnxprune.rules.base import Dim

FEW = 8  # images that are looked at
LINEAR = frozenset({"Conv", "Transpose", "Identity", "Cast", "Sub", "Add", "Mul", "Div"})


def matched(graph: Graph, data: Feeds, engine: Engine) -> Feeds:
    """The same feeds, their image with another gain and offset; as they are where the model does not tell.

    Args:
        graph: the model.
        data: generated feeds, images of zero mean and unit variance.
        engine: where it runs.
    """
    for node in graph.nodes:
        if tells(graph, node) and (image := _image_before(graph, node)) is not None:
            break
    else:
        return data
    feeds, dim = list(islice(data.samples(), FEW)), Dim(node.inputs[0], 1)
    if is_big(graph) or not feeds or not is_float(feeds[0][image].dtype):
        return data

    def seen(some: list[Feed]) -> Statistics:
        return calibrate(graph, some, {dim: Want.SUMS}, engine)[dim]

    try:
        made = seen(feeds)
        black, white = (seen([_moved(feeds[0], image, 0.0, shade)]) for shade in (0.0, 1.0))
    except (DataError, ModelError):
        return data
    mean, variance = (graph.array(name).astype(np.float64) for name in node.inputs[3:5])
    varies = made.variance > 1e-9 * max(made.variance.max(initial=0.0), np.finfo(float).tiny)
    if not varies.any():
        return data
    gain = float(np.sqrt(np.median(variance[varies] / made.variance[varies])))
    weight = 1.0 / (variance + np.finfo(np.float32).eps)
    per_unit = white.mean - black.mean
    wanted = mean - black.mean - gain * (made.mean - black.mean)
    power = float(weight @ np.square(per_unit))
    offset = float(weight @ (per_unit * wanted)) / power if power > 0 else 0.0

    def stream(batch: int | None) -> Iterator[Feed]:
        return (_moved(feed, image, gain, offset) for feed in data.stream(batch))

    return replace(data, stream=stream)


def _moved(feed: Feed, image: str, gain: float, offset: float) -> Feed:
    return {n: (v * gain + offset).astype(v.dtype) if n == image else v for n, v in feed.items()}


def _image_before(graph: Graph, norm: Node) -> str | None:
    """The 4-D input that a norm reads through linear layers alone."""
    name = norm.inputs[0]
    while name not in graph.inputs:
        node = graph.producer.get(name)
        if node is None or node.op not in LINEAR or node.domain:
            return None
        computed = [n for n in node.inputs if n and n not in graph.constants and n not in graph.fixed]
        if len(computed) != 1 or (node.op == "Div" and node.inputs[0] != computed[0]):
            return None
        name = computed[0]
    return name if len(graph.shapes.get(name) or ()) == 4 else None
