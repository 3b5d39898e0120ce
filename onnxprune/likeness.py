"""Whether data look like what a model was trained on, as far as the model can tell.

Where BatchNormalization is left, its running statistics say what its input was like in training. The divergence of
what the data make of it is taken for each channel, of normal distributions (Kullback, Leibler 1951), and the median
over channels and layers counts: other subjects move some channels, black images nearly all. Wrong preprocessing hardly
shows behind the first layers, which correct it. It does there, if another usual range of pixels fits far better.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, permutations

import numpy as np

from onnxprune.calibrate import Statistics, calibrate
from onnxprune.errors import DataError, ModelError
from onnxprune.feeds import Array, Feed, is_float, rows
from onnxprune.graph import Graph, Node, is_big
from onnxprune.instrument import Want
from onnxprune.parts import Engine
from onnxprune.rules.base import Dim
from onnxprune.samples import thinned

FIRST, FEW = 512, 8  # inputs among which is drawn; those that are looked at, at least, if there are as many
FAR = 0.8  # nats: photographs 0.02, clothes or faces to a model of photographs 0.2, noise 0.5, black images 1.2
MISFIT, BETTER = 0.25, 5.0  # the first layer's divergence, and how many times less it is in another range
SLACK = 0.7  # by which pixels may leave their range: ImageNet's deviation differs with the colour
PLACES = 16  # of which a variance says something
RANGES = {  # from pixels of 0 to 255: x * scale + offset
    "0 to 255": (1.0, 0.0),
    "0 to 1": (1 / 255, 0.0),
    "-1 to 1": (1 / 127.5, -1.0),
    "ImageNet's mean and deviation": (1 / (255 * 0.226), -0.449 / 0.226),
}


def likeness(graph: Graph, data: Iterable[Feed], engine: Engine) -> list[str]:
    """What the user should know about the data, a line each; nothing where all is well or the model does not run.

    Args:
        graph: the model.
        data: inputs; a few of them are looked at.
        engine: where it runs.
    """
    norms = [node for node in graph.nodes if tells(graph, node)]
    read = [dim for node in graph.nodes for dim in _read(graph, node)]
    wanted = dict.fromkeys([*read, *(Dim(node.inputs[0], 1) for node in norms)], Want.SUMS)
    if not wanted or is_big(graph):
        return []
    feeds, _ = thinned(islice(data, FIRST), 2 * FEW)  # from all over: folders are often sorted
    try:
        seen = calibrate(graph, feeds, wanted, engine)
    except DataError as error:
        return [str(error)]
    except ModelError:
        return []
    found = []
    norms = [node for node in norms if seen[Dim(node.inputs[0], 1)].count >= PLACES]
    far = [_divergence(graph, node, seen) for node in norms]
    fitting = _fitting(graph, norms[0], feeds, engine, far[0]) if far and far[0] > MISFIT else None
    if fitting or (far and np.median(far) > FAR):
        hint = f": as {fitting[0]} brought to {fitting[1]} they would" if fitting else ""
        found.append(
            f"the data do not look like what the model was trained on{hint}; check --preprocess, or the inputs"
        )
    if sum(map(rows, feeds)) > 1 and (_same(feeds) or _constant(graph, [(dim, seen[dim]) for dim in read])):
        found.append("all layers read the same, whatever the input: the inputs do not differ, or the model is dead")
    return found


def tells(graph: Graph, node: Node) -> bool:
    """Whether a node has statistics from training."""
    if node.op != "BatchNormalization" or node.domain or node.attrs.get("training_mode", 0):
        return False
    return all(name in graph.constants for name in node.inputs[3:5]) and _usable(graph, Dim(node.inputs[0], 1))


def _read(graph: Graph, node: Node) -> Iterator[Dim]:
    """What a contraction reads, if that is computed."""
    axis = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1 - node.attrs.get("transA", 0), "MatMul": -1}.get(node.op)
    rank = len(graph.shapes.get(node.inputs[0]) or ()) if node.inputs else 0
    if axis is not None and not node.domain and rank > 1:
        dim = Dim(node.inputs[0], axis % rank)
        if _usable(graph, dim):
            yield dim


def _usable(graph: Graph, dim: Dim) -> bool:
    shape = graph.shapes.get(dim.value) or ()
    computed = dim.value not in graph.constants and dim.value not in graph.fixed
    return computed and dim.axis < len(shape) and isinstance(shape[dim.axis], int)


def _divergence(graph: Graph, node: Node, seen: Mapping[Dim, Statistics]) -> float:
    """The median over channels of the divergence from the running statistics, in nats."""
    found = seen[Dim(node.inputs[0], 1)]
    mean, variance = (graph.array(name).astype(np.float64) for name in node.inputs[3:5])
    epsilon = node.attrs.get("epsilon", 1e-5)
    ratio = (found.variance + epsilon) / (variance + epsilon)
    shift = np.square(found.mean - mean) / (variance + epsilon)
    return float(np.median((ratio + shift - 1 - np.log(ratio)) / 2))


def _fitting(graph: Graph, node: Node, feeds: Sequence[Feed], engine: Engine, given: float) -> tuple[str, str] | None:
    """The range that images are in, and the one in which they would fit a node's statistics far better, if any."""

    def divergence(here: str, there: str) -> float:
        (scale, offset), (other, shift) = RANGES[here], RANGES[there]
        gain = other / scale
        moved = [
            {n: (v * gain + (shift - offset * gain)).astype(v.dtype) if _image(v) else v for n, v in feed.items()}
            for feed in feeds
        ]
        try:
            return _divergence(graph, node, calibrate(graph, moved, {Dim(node.inputs[0], 1): Want.SUMS}, engine))
        except DataError:  # too large for half precision
            return np.inf

    if not any(map(_image, feeds[0].values())):
        return None
    values = [v for feed in feeds for v in feed.values() if _image(v)]
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    inside = {
        n for n, (scale, offset) in RANGES.items() if offset <= low + SLACK and high - SLACK <= 255 * scale + offset
    }
    tried = {pair: divergence(*pair) for pair in permutations(RANGES, 2) if pair[0] in inside}
    if not tried:
        return None
    best = min(tried, key=lambda pair: tried[pair])
    return best if tried[best] * BETTER < given else None


def _image(value: Array) -> bool:
    return value.ndim == 4 and is_float(value.dtype)


def _same(feeds: Sequence[Feed]) -> bool:
    return len(feeds) > 1 and all(np.array_equal(f[n], v) for f in feeds for n, v in feeds[0].items())


def _constant(graph: Graph, read: Sequence[tuple[Dim, Statistics]]) -> bool:
    """Whether nothing varies in what layers read; of the model's inputs only where nothing else is read."""
    inner = [stats for dim, stats in read if dim.value not in graph.inputs] or [stats for _, stats in read]
    return bool(inner) and all((s.variance <= 1e-6 * s.squares / max(s.count, 1)).all() for s in inner)
