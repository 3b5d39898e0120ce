"""Criteria that look at what the consumers of channels read; they need data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from onnxprune.calibrate import Statistics
from onnxprune.consumers import Consumer
from onnxprune.criteria.base import Context, Scores, criterion
from onnxprune.curves import curves
from onnxprune.instrument import Want

# A consumer and what it reads -> [channels], what each is worth to it, and the measure of its result to divide by.
Worth: TypeAlias = Callable[[Consumer, Statistics], tuple[Scores, float]]

RESOLUTION = 1e-5  # a variance that is less of the mean square is the rounding of sums in float32


@criterion("obs", sees=Want.PAIRS)
def obs(context: Context) -> Scores:
    """Error of the consumers without the unit, the others making up for it (Optimal Brain Surgeon, see `curves`)."""
    assert context.moments is not None
    scores = np.full(context.coupling.units, np.nan)
    none = np.full(context.coupling.units, np.nan)
    for curve in curves(context.coupling, context.readers, context.moments, none):
        if np.isfinite(curve.error).all() and curve.error[-1] > 0:
            scores[curve.order] = np.maximum.accumulate(np.diff(curve.error))
    return scores


@criterion("wanda", sees=Want.PAIRS)
def wanda(context: Context) -> Scores:
    """Absolute weights of the consumers times the norm of what they read (Sun et al. 2024, Wanda)."""

    def worth(reader: Consumer, stats: Statistics) -> tuple[Scores, float]:
        absolute = np.abs(reader.weights).sum(axis=(1, 3)).ravel()
        return absolute * np.sqrt(_mean_square(stats)), max(float(_terms(reader, _second(stats)).sum()), 0.0) ** 0.5

    return _over_consumers(context, worth)


@criterion("flap", sees=Want.PAIRS)
def flap(context: Context) -> Scores:
    """Variance of what the consumers read times their squared weights (An et al. 2024, FLAP)."""

    def worth(reader: Consumer, stats: Statistics) -> tuple[Scores, float]:
        squares = np.square(reader.weights).sum(axis=(1, 3)).ravel()
        power = float(_terms(reader, stats.variance if stats.second is None else stats.covariance).sum())
        return squares * stats.variance, max(power, RESOLUTION * float(squares @ _mean_square(stats)))

    return _over_consumers(context, worth)


@criterion("reconstruction", sees=Want.PAIRS)
def reconstruction(context: Context) -> Scores:
    """Error of the consumers without the unit, nothing making up for it (He et al. 2017; Luo et al. 2017, ThiNet)."""

    def worth(reader: Consumer, stats: Statistics) -> tuple[Scores, float]:
        terms = _terms(reader, _second(stats))
        unit = reader.units.reshape(terms.shape[:2])
        alone = terms if terms.ndim == 2 else (terms * (unit[:, :, None] == unit[:, None, :])).sum(axis=2)
        return alone.ravel(), float(terms.sum())

    return _over_consumers(context, worth)


@criterion("apoz", sees=Want.ZEROS)
def apoz(context: Context) -> Scores:
    """Share of places where what the consumers read is not zero (Hu et al. 2016, average percentage of zeros)."""

    def worth(reader: Consumer, stats: Statistics) -> tuple[Scores, float]:
        assert stats.zeros is not None
        return 1.0 - stats.zeros / max(stats.count, 1), 1.0

    return _over_consumers(context, worth, mean=True)


@criterion("entropy", sees=Want.HISTOGRAM)
def entropy(context: Context) -> Scores:
    """Entropy of what the consumers read (Luo and Wu 2017), of values at sampled places instead of means of maps."""

    def worth(reader: Consumer, stats: Statistics) -> tuple[Scores, float]:
        assert stats.histogram is not None
        return stats.histogram.entropy, 1.0

    return _over_consumers(context, worth, mean=True)


def _over_consumers(context: Context, worth: Worth, mean: bool = False) -> Scores:
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


def _terms(reader: Consumer, moment: Scores) -> Scores:
    """What the power of a consumer's result is the sum of, its taps taken to read independently.

    Args:
        reader: the consumer.
        moment: [channels, channels] of what it reads, or [channels] where pairs are not known.

    Returns:
        [groups, channels of a group, channels of a group], or [groups, channels of a group].
    """
    groups, _, each, _ = reader.weights.shape
    columns = np.moveaxis(reader.weights, 2, 1).reshape(groups, each, -1)
    if moment.ndim == 1:
        return np.asarray(np.square(columns).sum(axis=2) * moment.reshape(groups, each))
    blocks = np.einsum("gcgd->gcd", moment.reshape(groups, each, groups, each))
    return np.asarray(columns @ columns.swapaxes(1, 2) * blocks)


def _mean_square(stats: Statistics) -> Scores:
    return stats.squares / max(stats.count, 1)


def _second(stats: Statistics) -> Scores:
    """The mean of x xᵀ; of x² where pairs were not kept."""
    return _mean_square(stats) if stats.second is None else stats.second / max(stats.rows, 1)
