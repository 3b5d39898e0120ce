"""Folds: what a lossless plan does to the weights that stay, before the cut.

Two things leave the function of a model alone: the columns of channels that are equal, or in a fixed proportion, can
be summed into one of them; and a channel that is constant can be moved into its consumers' biases. The plan says which
(`Plan.folds`, JSON):

    {"add":  [[constant, axis, [from, ...], [to, ...], [factor, ...]], ...],  # in this order; then
     "bias": [[output of the consumer, [channel, ...], [its constant, ...]], ...]}

so that a replay, here or on a re-export, computes the same numbers. Sums run in float64 and are cast back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxprune.errors import PlanError
from onnxprune.graph import Graph, Node
from onnxprune.groups import Coupling
from onnxprune.rules.base import Index, Linear
from onnxprune.sums import Sums, chunks
from onnxprune.tensors import FLOATS

Array = NDArray[Any]
Floats = NDArray[np.float64]
Weights = Mapping[str, Array]

# The operators that folds go into.
KINDS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
# Ops through which the axes of a constant can be followed, and all behind which one is found.
PLAIN = frozenset({"Identity", "Transpose", "Cast"})
CHAIN = PLAIN | {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "DequantizeLinear"}


@dataclass(frozen=True)
class Bias:
    """Where an amount per output can be added: inside a constant that nobody else reads, or (None) as a new input."""

    constant: str | None
    value: Array


@dataclass(frozen=True, eq=False)
class Contraction:
    """A Conv, Gemm or MatMul with weights: y = alpha * W x + beta * bias.

    `columns`: the constant, and its axis, whose slices belong to the channels of x; None where they cannot be summed.
    `place`: where an amount for each output can be added; None: nowhere.
    """

    coupling: Coupling
    node: Node
    spec: Linear
    columns: tuple[str, int] | None
    place: Bias | None
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def bias(self) -> Bias | None:
        """Where constants of x can go: not where there are zeros around x, which they do not reach."""
        return None if self.spec.padded else self.place

    def rows(self, weights: Weights) -> Array | None:
        """The weights as [output, input of its group, the rest], or None where they are not known."""
        w = constant_value(self.coupling.graph, _name(self.coupling, self.spec.w_in.value), weights)
        if w is None:
            return None
        w = w if w.dtype in (np.float32, np.float64) else w.astype(np.float32)
        groups, narrow = self.spec.groups, self.spec.w_in.axis
        if groups > 1 and narrow == 0:  # ConvTranspose: the groups lie along the input axis
            w = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1).swapaxes(1, 2)
            return w.reshape(-1, *w.shape[2:])
        if not self.spec.w_out.value:
            return np.moveaxis(w, narrow, 0).reshape(1, w.shape[narrow], -1)
        w = np.moveaxis(w, (self.spec.w_out.axis, narrow), (0, 1))
        return w.reshape(*w.shape[:2], -1)


@dataclass(frozen=True, eq=False)
class Folded:
    """Weights after the folds, full size: constants by name, new biases by the consumer's node index (input 2)."""

    weights: Sums
    biases: dict[int, Array] = field(default_factory=dict)


def foldable(coupling: Coupling) -> list[tuple[Node, Linear]]:
    """The linear nodes that folds can go into."""
    return [(node, spec) for node, spec in coupling.linears if node.op in KINDS and not node.domain]


def contraction(coupling: Coupling, node: Node, spec: Linear) -> Contraction:
    """How a linear node reads its weights, and what may be folded into them."""
    alpha, beta = (float(node.attrs.get(n, 1.0)) if node.op == "Gemm" else 1.0 for n in ("alpha", "beta"))
    columns, dtype = _columns(coupling, spec)
    place = None if dtype is None or beta == 0 else _place(coupling, node, spec, dtype)
    return Contraction(coupling, node, spec, columns, place, alpha, beta)


def constant_value(graph: Graph, name: str, weights: Weights) -> Array | None:
    """A constant, or what Transpose, Cast, Reshape, DequantizeLinear... make of one; None for anything else."""
    if name in graph.constants:
        return weights[name] if name in weights else graph.array(name)
    node = graph.producer.get(name)
    if node is None or node.domain or node.op not in CHAIN:
        return None
    value = constant_value(graph, node.inputs[0], weights)
    shape = graph.shapes.get(name)
    if value is None or node.op == "Identity":
        return value
    if node.op == "Transpose":
        return value.transpose(node.attrs.get("perm"))
    if node.op == "Cast":
        return value.astype(helper.tensor_dtype_to_np_dtype(node.attrs["to"]))
    if node.op == "DequantizeLinear":
        return _dequantised(graph, node, value)
    known = [s for s in shape or () if isinstance(s, int)]
    whole = shape is not None and len(known) == len(shape) and int(np.prod(known)) == value.size
    return value.reshape(known) if whole else None


def replay(coupling: Coupling, folds: Mapping[str, Any]) -> Folded:
    """The weights that a plan's folds change; large ones are computed when they are asked for.

    Raises:
        PlanError: the folds are not for this model.
    """
    folded = Folded(Sums(coupling.graph))
    with _of_this_model(coupling):
        for constant, axis, source, target, factor in folds.get("add", ()):
            where, factors = _indices(source, target, [0] * len(factor)), np.array(factor, np.float64)
            folded.weights.add(constant, axis, where[0], where[1], factors)
        specs = {node.outputs[0]: (node, spec) for node, spec in foldable(coupling)}
        for output, channels, values in folds.get("bias", ()):
            index, _ = _indices(channels, [0] * len(values))
            _add_bias(contraction(coupling, *specs[output]), index, np.array(values, np.float64), folded)
    return folded


def readers(coupling: Coupling, folds: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """`Coupling.uses` without the uses of shared biases that a fold replaces by a bias of their own.

    Raises:
        PlanError: the folds are not for this model.
    """
    gone: set[str] = set()
    with _of_this_model(coupling):
        for output, *_ in folds.get("bias", ()):
            names = coupling.views[coupling.graph.producer[output].index].names
            gone |= {name for name in names[2:3] if name in coupling.source}
    return {constant: tuple(u for u in uses if u not in gone) for constant, uses in coupling.uses.items()}


@contextmanager
def _of_this_model(coupling: Coupling) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise PlanError(f"{coupling.graph.name}: the plan's folds do not fit this model; use its own model") from error


def _indices(*lists: Any) -> tuple[Index, ...]:
    arrays = tuple(np.array(each, dtype=np.intp) for each in lists)
    if any(a.ndim != 1 or a.size != arrays[0].size or (a < 0).any() for a in arrays):
        raise ValueError("not lists of indices")
    return arrays


def weighed(
    rows: Array, groups: int, channels: Index, values: Floats, of: Callable[[Array], Array] = np.asarray
) -> Floats:
    """[output]: the sum of W over `channels`, each times its value; the channels count over all groups.

    Args:
        rows: W, [output, input of its group, the rest].
        groups: of channels.
        channels: that are summed over.
        values: of each.
        of: what is summed in the place of W, element by element; it sees a part of W at a time.
    """
    if groups == 1:
        found = np.empty(len(rows))
        for part in chunks(len(rows), channels.size * rows.shape[2]):
            found[part] = (of(rows[part, channels]).sum(axis=2, dtype=np.float64) * values).sum(axis=1)
        return found
    each = np.zeros(groups * rows.shape[1])
    each[channels] = values
    taps = of(rows).sum(axis=2, dtype=np.float64).reshape(groups, -1, rows.shape[1])
    return np.asarray((taps * each.reshape(groups, 1, -1)).sum(axis=2).reshape(-1))


def exclusive(graph: Graph, name: str) -> bool:
    """Whether one input of one node is all that reads a value."""
    return len(graph.consumers.get(name, ())) == 1 and name not in graph.captured and name not in graph.outputs


def _name(coupling: Coupling, use: str) -> str:
    return coupling.source.get(use, use)


def _add_bias(each: Contraction, channels: Index, values: Floats, folded: Folded) -> None:
    bias, rows = each.bias, each.rows(folded.weights)
    if bias is None or rows is None:
        raise ValueError("no bias to fold into")
    amount = each.alpha / each.beta * weighed(rows, each.spec.groups, channels, values)
    before = bias.value if bias.constant is None else folded.weights.get(bias.constant, bias.value)
    after = (before.astype(np.float64) + amount.reshape(before.shape)).astype(before.dtype)
    if bias.constant is None:
        folded.biases[each.node.index] = after
    else:
        folded.weights.put(bias.constant, after)


def _columns(coupling: Coupling, spec: Linear) -> tuple[tuple[str, int] | None, Any]:
    """The constant and the axis behind `w_in`, if only this node reads it; and the type of the weights.

    That is None where they are quantised or computed: then nothing can be folded.
    """
    graph, name, axis = coupling.graph, _name(coupling, spec.w_in.value), spec.w_in.axis
    plain, cast = exclusive(graph, name), 0
    while name not in graph.constants:
        node = graph.producer.get(name)
        if node is None or node.op not in CHAIN or node.op == "DequantizeLinear":
            return None, None
        plain &= node.op in PLAIN and exclusive(graph, node.inputs[0])
        cast = cast or (node.attrs["to"] if node.op == "Cast" else 0)
        if plain and node.op == "Transpose":
            axis = (node.attrs.get("perm") or range(len(graph.shapes.get(name) or ()))[::-1])[axis]
        name = node.inputs[0]
    stored = graph.constants[name].data_type
    if stored not in FLOATS:
        return None, None
    return (name, axis) if plain else None, helper.tensor_dtype_to_np_dtype(cast or stored)


def _place(coupling: Coupling, node: Node, spec: Linear, dtype: Any) -> Bias | None:
    """Where an amount per output of a linear node can be added, or None."""
    graph = coupling.graph
    size = coupling.size(spec.y) if spec.y.value else 1
    if spec.bias_slot is None:
        return _following_add(graph, node, spec, size)
    if spec.bias is None:
        return Bias(None, np.zeros(size, dtype))
    name = node.inputs[spec.bias_slot]
    value = constant_value(graph, name, {})
    if value is None or value.shape not in ((size,), (1, size)):
        return None
    return Bias(name if name in graph.constants and exclusive(graph, name) else None, value)


def _following_add(graph: Graph, node: Node, spec: Linear, size: int) -> Bias | None:
    """The constant vector that is added to a MatMul, and to nothing else, right after it."""
    y = node.outputs[0]
    if not exclusive(graph, y) or not spec.y.value or len(graph.shapes.get(spec.w_in.value) or ()) != 2:
        return None
    reader, slot = graph.consumers[y][0]
    if reader.op != "Add" or reader.domain or len(reader.inputs) != 2:
        return None
    name = reader.inputs[1 - slot]
    if name not in graph.constants or not exclusive(graph, name):
        return None
    place = spec.y.axis - len(graph.shapes.get(y) or ())
    dims = graph.constants[name].dims
    if len(dims) < -place or dims[place] != size or graph.size(name) != size:
        return None
    return Bias(name, graph.array(name))


def _dequantised(graph: Graph, node: Node, value: Array) -> Array | None:
    if node.attrs.get("block_size", 0) or any(n not in graph.constants for n in node.inputs[1:] if n):
        return None
    shape = [1] * value.ndim
    factors = [graph.array(n) for n in node.inputs[1:] if n]
    if factors[0].size > 1:
        shape[node.attrs.get("axis", 1) % value.ndim] = -1
    scale, *zero = (f.reshape(shape) if value.ndim else f for f in factors)
    shifted = value.astype(np.float32) - (zero[0].astype(np.float32) if zero else 0)
    return np.asarray(shifted * scale.astype(np.float32))
