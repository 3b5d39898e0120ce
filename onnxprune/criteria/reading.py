"""What criteria have in common that look at what the consumers of channels read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from onnxprune.calibrate import Statistics
from onnxprune.consumers import Consumer
from onnxprune.criteria.base import Context, Scores

# A consumer and what it reads -> [channels], what each is worth to it, and the measure of its result to divide by.
Worth: TypeAlias = Callable[[Consumer, Statistics], tuple[Scores, float]]

RESOLUTION = 1e-5  # a variance that is less of the mean square is the rounding of sums in float32


def over_consumers(context: Context, worth: Worth, mean: bool = False) -> Scores:
    """What the channels of a unit are worth to all consumers; NaN for units that none reads.

    Depthwise convolutions do not count: what they read is a channel of the same unit. A consumer whose result is
    nothing adds nothing.

    Args:
        context: the analysis and the data.
        worth: of the channels that a consumer reads.
        mean: over the channels of a unit, each as often as it is read, instead of the sum.
    """
    assert context.moments is not None
    total, read = np.zeros((2, context.coupling.units))
    for reader in context.readers:
        if not reader.mixes or reader.x not in context.moments:
            continue
        values, measure = worth(reader, context.moments[reader.x])
        free = reader.units >= 0
        read += np.bincount(reader.units[free], minlength=read.size)
        if measure > 0:
            total += np.bincount(reader.units[free], weights=values[free] / measure, minlength=read.size)
    return np.where(read > 0, total / np.maximum(read, 1) if mean else total, np.nan)


def terms_of(reader: Consumer, moment: Scores) -> Scores:
    """What the power of a consumer's result is the sum of, its taps taken to read independently.

    Args:
        reader: the consumer.
        moment: [channels, channels] of what it reads, or [channels] where pairs are not known.

    Returns:
        [groups, channels of a group, channels of a group], or [groups, channels of a group].
    """
    groups, _, each, _ = reader.shape
    columns = np.moveaxis(reader.weights, 2, 1).reshape(groups, each, -1)
    if moment.ndim == 1:
        return np.asarray(np.square(columns).sum(axis=2) * moment.reshape(groups, each))
    blocks = np.einsum("gcgd->gcd", moment.reshape(groups, each, groups, each))
    return np.asarray(columns @ columns.swapaxes(1, 2) * blocks)


def mean_square(stats: Statistics) -> Scores:
    """[channels]: the mean of x²."""
    return stats.squares / max(stats.count, 1)


def second_of(stats: Statistics) -> Scores:
    """The mean of x xᵀ; of x² where pairs were not kept."""
    return mean_square(stats) if stats.second is None else stats.second / max(stats.rows, 1)
