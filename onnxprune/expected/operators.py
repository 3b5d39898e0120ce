"""What operators do to laws: element by element, normalisation, pooling.

BatchNormalization is where laws come from: its statistics say that a channel is N(beta, gamma²) after it, whatever came
before (Nagel et al. 2019, Data-Free Quantization through Weight Equalization and Bias Correction).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from math import prod

import numpy as np

from onnxprune.expected.law import Floats, Law, combine, normal
from onnxprune.expected.laws import Laws, expects
from onnxprune.lossless.elementwise import NARY, UNARY, nary, unary
from onnxprune.lossless.transfer import reduced_axes
from onnxprune.rules.base import NodeView, Unknown

# Element by element


@expects(*UNARY)
def _unary(f: Laws, n: NodeView) -> Sequence[Law]:
    x = f.x(n, 0)
    return [Law(unary(n.node.op, x.table, n.attrs), x.root)]


@expects(*NARY)
def _nary(f: Laws, n: NodeView) -> Sequence[Law]:
    if "axis" in n.attrs:
        raise Unknown("broadcasting before opset 7")
    op = "Sum" if n.node.op == "Mean" else n.node.op
    whole = reduce(partial(combine, _operator(op)), (f.x(n, slot) for slot in range(len(n.node.inputs))))
    return [Law(whole.table / len(n.node.inputs), whole.root) if n.node.op == "Mean" else whole]


@expects("Clip")
def _clip(f: Laws, n: NodeView) -> Sequence[Law]:
    x = f.x(n, 0)
    for slot, attr, op in ((1, "min", "Max"), (2, "max", "Min")):
        if n.has(slot) or attr in n.attrs:
            limit = f.x(n, slot) if n.has(slot) else Law(np.full((1,), float(n.attrs[attr])))
            x = combine(_operator(op), x, limit)
    return [x]


@expects("Dropout")
def _dropout(f: Laws, n: NodeView) -> Sequence[Law]:
    if n.has(2) and (n.const(2) is None or n.const(2)):
        raise Unknown("training")
    return [f.x(n, 0)]


def _operator(op: str) -> partial[Floats]:
    def apply(op: str, x: Floats, y: Floats) -> Floats:
        return nary(op, [x, y])

    return partial(apply, op)


# Normalisation


@expects("BatchNormalization")
def _batch_norm(f: Laws, n: NodeView) -> Sequence[Law]:
    """A constant is computed; anything else is what the statistics say."""
    if n.attrs.get("training_mode", 0):
        raise Unknown("training")
    x, (scale, bias, mean, var) = f.x(n, 0), (_channels(f, n, slot) for slot in range(1, 5))
    deviation = np.sqrt(np.maximum(var, 0.0) + n.attrs.get("epsilon", 1e-5))
    constant = x.variance == 0
    centre = np.where(constant, (x.mean - mean) * scale / deviation + bias, bias)
    spread = np.where(constant, 0.0, np.square(scale / deviation) * var)
    return [normal(centre, spread)]


@expects("InstanceNormalization")
def _instance_norm(f: Laws, n: NodeView) -> Sequence[Law]:
    """Every channel of every sample has the mean and the variance that it is given."""
    scale, bias = _channels(f, n, 1), _channels(f, n, 2)
    return [normal(bias, np.square(scale))]


def _channels(f: Laws, n: NodeView, slot: int) -> Floats:
    """A vector of constants that goes along axis 1 of the first input."""
    return f.x(n, slot).mean.reshape([-1 if axis == 1 else 1 for axis in range(len(n.shape(0)))])


# Axes that are not channels


@expects("MaxPool", "AveragePool", "Resize", "Upsample")
def _pool(f: Laws, n: NodeView) -> Sequence[Law]:
    """Neighbours are alike, so that a window is about what each of them is."""
    x = f.x(n, 0)
    if any(size != 1 for size in (*x.form[:1], *x.form[2:])):
        raise Unknown("places that differ")
    return [Law(x.table)]


@expects("GlobalAveragePool")
def _global_pool(f: Laws, n: NodeView) -> Sequence[Law]:
    return [_averaged(f.x(n, 0), n, range(2, len(n.shape(0))))]


@expects("ReduceMean")
def _reduce_mean(f: Laws, n: NodeView) -> Sequence[Law]:
    axes = reduced_axes(n)
    y = _averaged(f.x(n, 0), n, axes)
    return [y if n.attrs.get("keepdims", 1) else y.moved(lambda entry: entry.squeeze(tuple(axes)))]


def _averaged(x: Law, n: NodeView, axes: Sequence[int]) -> Law:
    """The mean over places that are independent; where their number is open it is large."""
    sizes = [n.shape(0)[axis] for axis in axes]
    places = prod(size for size in sizes if isinstance(size, int))
    variance = x.variance / places if all(isinstance(size, int) for size in sizes) else np.zeros_like(x.variance)
    mean = x.mean
    for axis in axes:
        mean, variance = mean.mean(axis=axis, keepdims=True), variance.mean(axis=axis, keepdims=True)
    return normal(mean, np.where(np.isnan(mean), np.nan, variance))
