"""Criteria that look at the values that consumers of channels read, and at no weights; they need data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.calibrate import Statistics
from onnxprune.criteria.base import Context, Scores, criterion
from onnxprune.criteria.reading import RESOLUTION, mean_square, over_consumers
from onnxprune.instrument import Want


@criterion("activation_mean", sees=Want.ABSOLUTE)
def activation_mean(context: Context) -> Scores:
    """Mean absolute value of what the consumers read (Molchanov et al. 2017, mean activation)."""

    def worth(stats: Statistics) -> Scores:
        assert stats.absolute is not None
        return stats.absolute / max(stats.count, 1)

    return _mean(context, worth)


@criterion("activation_l2", sees=Want.SUMS)
def activation_l2(context: Context) -> Scores:
    """Root mean square of what the consumers read (Molchanov et al. 2017; Wanda's factor of the activations)."""
    return _mean(context, lambda stats: np.sqrt(mean_square(stats)))


@criterion("variance", sees=Want.SUMS)
def variance(context: Context) -> Scores:
    """Variance of what the consumers read (Polyak and Wolf 2015, Inbound Pruning): biases make up for a constant."""

    def worth(stats: Statistics) -> Scores:
        return np.where(stats.variance > RESOLUTION * mean_square(stats), stats.variance, 0.0)

    return _mean(context, worth)


@criterion("apoz", sees=Want.ZEROS)
def apoz(context: Context) -> Scores:
    """Share of places where what the consumers read is not zero (Hu et al. 2016, average percentage of zeros)."""

    def worth(stats: Statistics) -> Scores:
        assert stats.zeros is not None
        return 1.0 - stats.zeros / max(stats.count, 1)

    return _mean(context, worth)


@criterion("entropy", sees=Want.HISTOGRAM)
def entropy(context: Context) -> Scores:
    """Entropy of what the consumers read (Luo and Wu 2017), of values at sampled places instead of means of maps."""

    def worth(stats: Statistics) -> Scores:
        assert stats.histogram is not None
        return stats.histogram.entropy

    return _mean(context, worth)


def _mean(context: Context, worth: Callable[[Statistics], Scores]) -> Scores:
    """The mean over the channels of a unit that consumers read."""
    return over_consumers(context, lambda reader, stats: (worth(stats), 1.0), mean=True)
