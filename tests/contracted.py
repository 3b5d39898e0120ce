"""Tiny networks whose channels are contracted, and what ONNX Runtime computes in them: for tests of criteria."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from onnxprune.coupling import couple
from onnxprune.criteria.base import CRITERIA, Context, sight_of
from onnxprune.graph import load
from onnxprune.groups import Coupling
from onnxprune.observe import observe
from onnxprune.parts import Engine
from onnxprune.rules.base import Dim
from onnxprune.runtime import run, session
from onnxprune.testing import Builder, close

Array = NDArray[Any]
Feeds = list[dict[str, Array]]


class Layer(NamedTuple):
    """A consumer: its weight and result are called `name` and `name.y`."""

    name: str
    x: str
    groups: int = 1


class Net(NamedTuple):
    """A model, and the consumers of the channels that `a` makes."""

    model: ModelProto
    layers: tuple[Layer, ...]


def start(channels: int, bias: bool = True) -> tuple[Builder, str]:
    b = Builder()
    y = b.conv(b.input("x", 4, 3, 6, 5), channels, name="a", bias=bias)
    return b, b.op("Relu", y, name="r")


def convolve(b: Builder, layer: Layer, out: int, kernel: int = 1, scale: float = 1.0) -> str:
    """The layer without a bias, its weights scaled."""
    shape = (out, b.shape(layer.x)[1] // layer.groups, kernel, kernel)
    w = b.const((b.rng.standard_normal(shape) * scale).astype(np.float32), layer.name)
    return b.op("Conv", layer.x, w, name=f"{layer.name}.y", group=layer.groups, pads=[kernel // 2] * 4)


def two(kernel: int = 1, groups: int = 1, scale: float = 100.0) -> Net:
    """A consumer, and one whose results are `scale` times as large."""
    b, y = start(8)
    layers = Layer("b", y), Layer("c", y, groups)
    ys = [convolve(b, layers[0], 6, kernel), convolve(b, layers[1], 4, kernel, scale)]
    return Net(b.model(*(close(b, b.op("Relu", y), name=f"out{i}") for i, y in enumerate(ys))), layers)


def flat() -> Net:
    """A unit owns 30 columns of a Gemm."""
    b, y = start(4)
    y = b.op("Flatten", y, name="rows")
    w = b.weight(7, b.shape(y)[1], name="b")
    return Net(b.model(b.op("Gemm", y, w, transB=1, name="b.y")), (Layer("b", y),))


def depthwise() -> Net:
    """A depthwise convolution reads the same channels as a layer in which they meet, and lies before another."""
    b, y = start(8)
    layers = Layer("b", b.op("Relu", b.conv(y, 8, group=8), name="d")), Layer("c", y)
    return Net(b.model(*(b.op("Relu", convolve(b, layer, 6, 3)) for layer in layers)), layers)


CASES: dict[str, Callable[[], Net]] = {
    "1x1": two,
    "3x3": lambda: two(3),
    "grouped": lambda: two(groups=2),
    "grouped-3x3": lambda: two(3, groups=2),
    "flat": flat,
    "depthwise": depthwise,
}
EXACT = ("1x1", "grouped", "flat")  # one tap: nothing is approximate


def feeds(count: int = 3) -> Feeds:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((4, 3, 6, 5)).astype(np.float32)} for _ in range(count)]


def scores(name: str, model: ModelProto) -> tuple[Coupling, Array]:
    coupling = couple(load(model))
    want = sight_of(name)
    assert want is not None
    seen = observe(coupling, feeds(), Engine(threads=1), want)
    return coupling, CRITERIA.get(name)(Context(coupling, readers=seen.readers, moments=seen.moments))


def values(model: ModelProto, name: str) -> Array:
    """What the model computes there on all inputs: [places, channels]."""
    full = ModelProto()
    full.CopyFrom(model)
    del full.graph.output[:]
    full.graph.output.append(helper.make_empty_tensor_value_info(name))
    ready = session(full, threads=1, optimize=False)
    made = np.concatenate([run(ready, feed)[name] for feed in feeds()])
    return np.moveaxis(made, 1, -1).reshape(-1, made.shape[1]).astype(np.float64)


def wide(weights: Array, groups: int) -> Array:
    """[outputs, channels, taps] of a grouped convolution, with zeros for channels of other groups."""
    out, each = weights.shape[:2]
    made = np.zeros((out, each * groups, int(np.prod(weights.shape[2:]))))
    for o in range(out):
        first = o // (out // groups) * each
        made[o, first : first + each] = weights[o].reshape(each, -1)
    return made


def power(w: Array, x: Array) -> float:
    """The mean square of the result, tap by tap."""
    return float(sum(np.square(x @ w[:, :, t].T).sum(axis=1).mean() for t in range(w.shape[2])))


def own(coupling: Coupling, layer: Layer, unit: int) -> Array:
    units = coupling.unit_of(Dim(layer.x, 1))
    assert units is not None
    return np.flatnonzero(units == unit)


def of_a(coupling: Coupling) -> Array:
    """The units that `a` makes."""
    return next(g.units for g in coupling.groups if any(m.constant == "a" and m.role == "out" for m in g.members))
