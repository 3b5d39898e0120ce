"""Recovery without data: what removed channels are on average goes into the biases of those who read them.

Bias correction from the statistics that the model has of itself: Nagel et al. 2019, Data-Free Quantization through
Weight Equalization and Bias Correction. Channels whose expected value is not known are left alone. Beside zero padding
less arrives than in the middle; the bias is right for the middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.consumers import Consumer, consumers
from onnxprune.coupling import couple
from onnxprune.expected.analysis import expectations, taps_met
from onnxprune.expected.law import Floats
from onnxprune.folds import weighed
from onnxprune.patch import NOTHING, Patch
from onnxprune.recovery import Pair
from onnxprune.rules.base import Index


@dataclass(frozen=True)
class Layer:
    """A layer that lost channels. `method`: "bias" or "none"; `known`: the lost channels with an expected value."""

    node: str
    method: str
    lost: int
    known: int


@dataclass(frozen=True, eq=False)
class _Loss:
    """What a layer lost: `gone` and `known` are [channels of its input], `amount` [rows that it still has]."""

    reader: Consumer
    gone: NDArray[np.bool_]
    known: NDArray[np.bool_]
    amount: Floats


def fold_expected(pair: Pair) -> tuple[Patch, list[Layer]]:
    """The biases that make up for the expected values of what a cut took, and what was done to each layer.

    Args:
        pair: the original, whose weights say what is expected, and its cut.
    """
    losses = _losses(pair)
    patch, places = NOTHING, dict[str, Consumer]()
    if any(loss.known.any() for loss in losses):
        cut = couple(pair.cut, pair.original.options)
        places = {reader.node.outputs[0]: reader for reader in consumers(cut)}
    layers = []
    for loss in losses:
        mine = places.get(loss.reader.node.outputs[0])
        able = bool(loss.known.any()) and mine is not None and mine.bias is not None
        if able and mine is not None:
            patch |= mine.shifted(loss.amount)
        known = int(np.count_nonzero(loss.known))
        layers.append(Layer(loss.reader.node.label, "bias" if able else "none", int(loss.gone.sum()), known))
    return patch, layers


def _losses(pair: Pair) -> list[_Loss]:
    """The layers of the original that lost channels which they add up."""
    laws, found = expectations(pair.original), []
    for reader in consumers(pair.original):
        if isinstance(pair.kept(reader.spec.w_in), slice):
            continue
        gone = np.ones(pair.original.size(reader.spec.x), dtype=bool)
        gone[pair.kept(reader.spec.x)] = False
        mean, _ = laws.of(reader.x.value).along(reader.x.axis, gone.size)
        known = gone & ~np.isnan(mean)
        amount = _amount(reader, np.flatnonzero(known), mean)[pair.kept(reader.y)] if known.any() else np.zeros(0)
        found.append(_Loss(reader, gone, known, amount))
    return found


def _amount(reader: Consumer, channels: Index, mean: Floats) -> Floats:
    """[rows]: what some channels of a layer's input add to it on average."""
    rows = reader.each.rows({})
    assert rows is not None
    factor = reader.each.alpha * taps_met(reader.node)
    return factor * weighed(rows, reader.groups, channels, mean[channels])
