"""Histograms of channels in one pass over their values, whose range is known only at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

Floats = NDArray[np.float64]

BINS = 64  # that entropy is told from
FINE = 8 * BINS  # that values are counted in: where a range grows, counts move by half of such a bin at most


@dataclass(frozen=True, eq=False)
class Histogram:
    """Values counted, for every channel in bins of the same width between its least and its greatest.

    Attributes:
        low, high: [channels], the least and the greatest value; infinite where there was none.
        counts: [channels, FINE].
    """

    low: Floats
    high: Floats
    counts: Floats

    @staticmethod
    def empty(channels: int) -> Histogram:
        """Of no values."""
        return Histogram(np.full(channels, np.inf), np.full(channels, -np.inf), np.zeros((channels, FINE)))

    def joined(self, values: NDArray[Any]) -> Histogram:
        """With more values, [places, channels], all finite."""
        if not len(values):
            return self
        low, high = np.minimum(self.low, values.min(axis=0)), np.maximum(self.high, values.max(axis=0))
        counts = self.counts.copy()
        moved = np.flatnonzero((self.low <= self.high) & ((low < self.low) | (high > self.high)))
        centres = self.low[moved] + (self.high - self.low)[moved] * ((np.arange(FINE)[:, None] + 0.5) / FINE)
        counts[moved] = _counted(centres, low[moved], high[moved], counts[moved].T)
        return Histogram(low, high, counts + _counted(values, low, high))

    @property
    def entropy(self) -> Floats:
        """[channels], over `BINS` bins, in nats: 0 where all values are in one, log(BINS) where each has as many."""
        counts = self.counts.reshape(len(self.counts), BINS, -1).sum(axis=2)
        return np.asarray(entr(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)).sum(axis=1))


def _counted(values: NDArray[Any], low: Floats, high: Floats, weights: Floats | None = None) -> Floats:
    """Values in bins.

    Args:
        values: [places, channels].
        low, high: [channels], the range.
        weights: [places, channels], how often each value counts; None: once.

    Returns:
        [channels, FINE].
    """
    channels = values.shape[1]
    width = np.where(high > low, high - low, 1.0)
    bins = np.minimum((values - low) / width * FINE, FINE - 1).astype(np.intp)
    index = bins + np.arange(channels) * FINE
    counts = np.bincount(index.ravel(), None if weights is None else weights.ravel(), channels * FINE)
    return np.asarray(counts.reshape(channels, FINE), dtype=np.float64)
