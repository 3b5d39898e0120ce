"""Criteria that look at channels as maps; they need data."""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.base import Context, Scores, criterion
from onnxprune.instrument import Want


@criterion("hrank", sees=Want.RANKS)
def hrank(context: Context) -> Scores:
    """Average rank of the feature maps (Lin et al. 2020, HRank); channels without two spatial axes stay whole.

    The mean over all values in which the channels of a unit are maps last (see `observe.maps_of`): for a convolution
    what it reads, for a classifier behind a pooling what is pooled, for heads their matrix of tokens and dimensions.
    """
    assert context.moments is not None
    total, maps = np.zeros((2, context.coupling.units))
    for dim, stats in context.moments.items():
        units = context.coupling.unit_of(dim)
        if stats.ranks is None or not stats.maps or units is None:
            continue
        free = units >= 0
        total += np.bincount(units[free], weights=stats.ranks[free] / stats.maps, minlength=maps.size)
        maps += np.bincount(units[free], minlength=maps.size)
    return np.where(maps > 0, total / np.maximum(maps, 1), np.nan)
