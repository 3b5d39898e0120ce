"""Closed forms: least squares from moments, and at what error.

Everything is in float64 and takes a stack of problems in the leading axes (one a group of a grouped convolution).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Item = TypeVar("Item")
Made = TypeVar("Made")


def ridge(gram: Floats, cross: Floats, prior: Floats, strength: float) -> Floats:
    """The W that minimises tr(W gram Wᵀ) - 2 tr(W crossᵀ) + strength · mean diagonal · ‖W - prior‖².

    The pull is the same on all features: those that hardly vary here stay at the prior. Were it in units of each one's
    own moment, the few rows in which they do would say what they do on other inputs, in which they may vary more.

    Args:
        gram: [..., F, F], moments of the features.
        cross: [..., O, F], of targets with features.
        prior: [..., O, F], what W is drawn to.
        strength: of the pull, in units of the mean diagonal.
    """
    return ridges(gram, cross, [prior], [strength])[0][0]


def ridges(
    gram: Floats, cross: Floats, priors: Sequence[Floats], strengths: Sequence[float], workers: int = 1
) -> list[list[Floats]]:
    """`ridge` for every prior at every strength: found[strength][prior]; a matrix is factored once a strength.

    So many strengths are tried at once as there are `workers`.
    """
    size, rows = gram.shape[-1], cross.shape[-2]
    mean = level(np.diagonal(gram, axis1=-2, axis2=-1))
    left = np.concatenate([cross - prior @ gram for prior in priors], axis=-2)

    def change(strength: float) -> Floats:
        damped = gram.copy()
        damped[..., np.arange(size), np.arange(size)] += strength * mean
        return solve(damped, left)

    changes = at_once(change, strengths, workers)
    return [[prior + change[..., n * rows : (n + 1) * rows, :] for n, prior in enumerate(priors)] for change in changes]


def level(diagonal: Floats) -> Floats:
    """[..., 1]: the mean of a diagonal, [..., F], which ridges are in units of."""
    return np.asarray(np.maximum(diagonal.mean(axis=-1, keepdims=True), np.finfo(float).tiny))


def at_once(do: Callable[[Item], Made], items: Iterable[Item], workers: int) -> list[Made]:
    """`do` for every item, for so many at a time; what comes out is the same for any number."""
    items = list(items)
    if workers == 1 or len(items) < 2:
        return [do(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(do, items))


def solve(symmetric: Floats, right: Floats) -> Floats:
    """X with X symmetric = right; the matrix is positive (semi)definite."""
    flat_s, flat_r = symmetric.reshape(-1, *symmetric.shape[-2:]), right.reshape(-1, *right.shape[-2:])
    found = [_solve(s, r) for s, r in zip(flat_s, flat_r, strict=True)]
    return np.asarray(np.stack(found).reshape(right.shape))


def _solve(symmetric: Floats, right: Floats) -> Floats:
    try:
        factor = scipy.linalg.cho_factor(symmetric, lower=True, check_finite=False)
        return np.asarray(scipy.linalg.cho_solve(factor, right.T, check_finite=False).T)
    except np.linalg.LinAlgError:  # singular to working precision: the smallest solution
        return np.asarray(np.linalg.lstsq(symmetric, right.T, rcond=None)[0].T)


def error(w: Floats, gram: Floats, cross: Floats, power: float) -> float:
    """Mean squared error Σ‖y - W x‖² from moments: power is that of the targets, tr(E yyᵀ)."""
    return float(np.sum((w @ gram - 2 * cross) * w) + power)
