"""A share of all weights as a share of each layer: what has the lowest scores goes, wherever it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.sparsity.patterns import Array

INFINITY = 0x7F800000  # as bits; those of floats that are not negative are in the order of the floats


def shares(scores: Sequence[Array], weights: Sequence[int], share: float) -> list[float]:
    """The share of each layer that goes, so that `share` goes of all weights.

    The score at which it does is found by halving, so that nothing is sorted or copied; of those that have just this
    score the same part goes in every layer.

    Args:
        scores: of the tiles of each layer, float32 and not negative.
        weights: of each layer, as many for each tile.
        share: of all.
    """
    each = [n / s.size for s, n in zip(scores, weights, strict=True)]
    target = share * sum(weights)

    def below(score: Array) -> float:
        return sum(np.count_nonzero(s < score) * n for s, n in zip(scores, each, strict=True))

    low, high = 0, INFINITY
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if below(_float(middle)) <= target else (low, middle - 1)
    score = _float(low)
    equal = sum(np.count_nonzero(s == score) * n for s, n in zip(scores, each, strict=True))
    part = (target - below(score)) / equal if equal else 0.0
    return [float((s < score).mean() + part * (s == score).mean()) for s in scores]


def _float(bits: int) -> Array:
    return np.array(bits, np.uint32).view(np.float32)
