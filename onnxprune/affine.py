"""Scales and shifts of channels, and the contractions with constant weights that can take them in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.folds import constant_value
from onnxprune.graph import Graph, Node
from onnxprune.tensors import FLOATS

Array = NDArray[Any]
Floats = NDArray[np.float64]

ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Neg"})
CONTRACTIONS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class Affine(NamedTuple):
    """y = scale * x + shift for every channel: vectors [channels], or [1] for all of them."""

    scale: Floats
    shift: Floats

    def then(self, other: Affine) -> Affine:
        """This first, then the other."""
        return Affine(self.scale * other.scale, self.shift * other.scale + other.shift)


NOTHING = Affine(np.ones(1), np.zeros(1))


class Axis(NamedTuple):
    """Where channels are in a value: its rank (None: not known), their axis from the end, and how many they are."""

    rank: int | None
    place: int
    size: int


def affine_of(graph: Graph, node: Node, axis: Axis) -> tuple[str, Affine] | None:
    """What a node makes of channels, and of which value; None if it is anything but a scale and a shift for each."""
    if node.domain:
        return None
    if node.op == "BatchNormalization":
        found = _normalised(graph, node, axis)
    elif node.op in ELEMENTWISE:
        found = _elementwise(graph, node, axis)
    else:
        found = None
    return found if found is not None and all(np.isfinite(part).all() for part in found[1]) else None


def _normalised(graph: Graph, node: Node, axis: Axis) -> tuple[str, Affine] | None:
    if trains(graph, node) or axis.rank is None or axis.rank + axis.place != 1 or not node.attrs.get("spatial", 1):
        return None
    values = [constant_value(graph, name, {}) for name in node.inputs[1:5]]
    if any(v is None or v.shape != (axis.size,) for v in values):
        return None
    gamma, beta, mean, variance = (v.astype(np.float64) for v in values if v is not None)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    return node.inputs[0], Affine(scale, beta - mean * scale)


def trains(graph: Graph, node: Node) -> bool:
    """Whether a BatchNormalization takes its statistics from the batch."""
    if graph.opset < 7 and not node.attrs.get("is_test", 0):
        return True
    return bool(node.attrs.get("training_mode", 0)) or any(node.outputs[1:])


def _elementwise(graph: Graph, node: Node, axis: Axis) -> tuple[str, Affine] | None:
    if graph.opset < 7:  # broadcasting was another one
        return None
    if node.op == "Neg":
        return node.inputs[0], Affine(-np.ones(1), np.zeros(1))
    for slot in (1, 0):
        constant = constant_value(graph, node.inputs[slot], {})
        value = None if constant is None else _by_channel(constant, axis)
        if value is not None:
            made = _operation(node.op, value, first=slot == 0)
            return None if made is None else (node.inputs[1 - slot], made)
    return None


def _operation(op: str, value: Floats, first: bool) -> Affine | None:
    """`x op value`, or `value op x` where the constant comes first."""
    if op == "Mul":
        return Affine(value, np.zeros(1))
    if op == "Add":
        return Affine(np.ones(1), value)
    if op == "Sub":
        return Affine(-np.ones(1), value) if first else Affine(np.ones(1), -value)
    if first:
        return None
    with np.errstate(all="ignore"):
        return Affine(1 / value, np.zeros(1))


def _by_channel(constant: Array, axis: Axis) -> Floats | None:
    """A constant as [channels] or [1]; None where it broadcasts in another way."""
    if constant.dtype.kind in "iub" or (constant.ndim > (axis.rank or 1)):
        return None
    if constant.size == 1:
        return constant.reshape(1).astype(np.float64)
    if constant.ndim < -axis.place or constant.shape[axis.place] != axis.size or constant.size != axis.size:
        return None
    return constant.reshape(-1).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Taker:
    """A contraction with constant weights: y = alpha W x + beta b.

    Attributes:
        graph: the model.
        node: its operator.
        shape: of the weights, as the operator reads them.
        data_type: of the weights, as the operator reads them.
        bias: [outputs] or [1], without beta; None: it reads none.
    """

    graph: Graph
    node: Node
    shape: tuple[int, ...]
    data_type: int
    bias: Floats | None

    @property
    def weights(self) -> Array:
        """As the operator reads them; read anew each time."""
        value = constant_value(self.graph, self.node.inputs[1], {})
        assert value is not None
        return value

    @property
    def groups(self) -> int:
        """Groups of channels that do not meet."""
        return int(self.node.attrs.get("group", 1))

    @property
    def alpha(self) -> float:
        """Gemm's factor of the product."""
        return float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0

    @property
    def beta(self) -> float:
        """Gemm's factor of the bias."""
        return float(self.node.attrs.get("beta", 1.0)) if self.node.op == "Gemm" else 1.0

    @cached_property
    def read(self) -> Axis:
        """The channels that it reads."""
        return self._axis(self.shape[0] if self._inputs_first else self.shape[1] * self.groups)

    @cached_property
    def made(self) -> Axis:
        """The channels that it makes."""
        return self._axis(self.shape[1] * self.groups if self._inputs_first else self.shape[0])

    @property
    def _inputs_first(self) -> bool:
        """Whether the first axis of the weights is that of the inputs."""
        return self.node.op in ("ConvTranspose", "MatMul") or (
            self.node.op == "Gemm" and not self.node.attrs.get("transB", 0)
        )

    @property
    def exposed(self) -> bool:
        """Whether every tap of every output meets x, not the zeros around it: then x may be shifted."""
        attrs = self.node.attrs
        if not self.node.op.startswith("Conv"):
            return True
        window, auto = prod(self.shape[2:]), attrs.get("auto_pad", "NOTSET")
        if self.node.op == "ConvTranspose":  # at its borders fewer taps meet x
            around = ("pads", "output_padding", "output_shape")
            spread = any(s != 1 for s in attrs.get("strides") or ())
            return window == 1 and auto == "NOTSET" and not spread and not any(any(attrs.get(n) or ()) for n in around)
        return auto == "VALID" or (window == 1 if auto != "NOTSET" else not any(attrs.get("pads") or ()))

    def matrix(self, weights: Array) -> Array:
        """A view of weights as [groups, outputs, inputs, taps]."""
        op, shape = self.node.op, weights.shape
        if op == "Conv":
            return weights.reshape(self.groups, shape[0] // self.groups, shape[1], -1)
        if op == "ConvTranspose":
            return weights.reshape(self.groups, shape[0] // self.groups, shape[1], -1).swapaxes(1, 2)
        return (weights.T if self._inputs_first else weights)[None, :, :, None]

    def scaled(self, before: Affine, after: Affine) -> Array:
        """The weights with what comes before and after taken in, in their type."""
        weights = self.weights.astype(np.float64)
        view = self.matrix(weights)
        view *= _laid(before.scale, (view.shape[0], 1, view.shape[2], 1))
        view *= _laid(after.scale, (view.shape[0], view.shape[1], 1, 1))
        with np.errstate(over="ignore"):
            return weights.astype(self.weights.dtype)

    def shifted(self, before: Affine, after: Affine) -> Floats:
        """[outputs]: the bias with what comes before and after taken in, to be multiplied by beta."""
        view = self.matrix(self.weights)
        total = np.zeros(self.made.size) if self.bias is None else self.beta * self.bias
        if before.shift.any():
            taps = view.sum(axis=3, dtype=np.float64)
            shift = np.broadcast_to(before.shift, (self.read.size,)).reshape(view.shape[0], view.shape[2], 1)
            total = total + self.alpha * (taps @ shift).reshape(-1)
        return np.broadcast_to(total * after.scale + after.shift, (self.made.size,)) / self.beta

    def _axis(self, size: int) -> Axis:
        if self.node.op != "MatMul":
            return Axis(len(self.shape), 1 - len(self.shape), size)
        shape = self.graph.shapes.get(self.node.inputs[0])
        return Axis(None if shape is None else len(shape), -1, size)


def taker_of(graph: Graph, node: Node) -> Taker | str:
    """A contraction as one that can take in scales and shifts, or what is in the way."""
    stored = _stored(graph, node.inputs[1])
    weights = None if stored is None else constant_value(graph, node.inputs[1], {})
    if stored is None or weights is None:
        return "its weights are inputs, computed, quantised or one number"
    if node.op in ("Gemm", "MatMul") and weights.ndim != 2:
        return "its weights are no matrix"
    if node.op == "Gemm" and (node.attrs.get("transA", 0) or not node.attrs.get("beta", 1.0)):
        return "its input is transposed, or its bias has no weight"
    if node.op == "MatMul" and len(graph.shapes.get(node.inputs[0]) or (0, 0)) < 2:
        return "its input is a vector"
    bias = None
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = constant_value(graph, node.inputs[2], {})
        if bias is None or bias.size not in (1, *bias.shape[-1:]):
            return "its bias is computed, or differs from row to row"
        bias = bias.reshape(-1).astype(np.float64)
    return Taker(graph, node, weights.shape, stored, bias)


def _stored(graph: Graph, name: str) -> int | None:
    """The type of float weights that are constants but for their place and type; None for others."""
    cast = 0
    while name not in graph.constants:
        node = graph.producer.get(name)
        if node is None or node.op == "DequantizeLinear" or not node.inputs:
            return None
        cast = cast or (node.attrs["to"] if node.op == "Cast" else 0)
        name = node.inputs[0]
    if name in graph.filled or graph.constants[name].data_type not in FLOATS:
        return None
    return cast or int(graph.constants[name].data_type)


def _laid(vector: Floats, shape: tuple[int, ...]) -> Floats:
    """A vector of channels over the groups and rows of a matrix; one number as it is."""
    return vector if vector.size == 1 else vector.reshape(shape)
