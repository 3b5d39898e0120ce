"""Closed forms: least squares from moments, which channels can be written by others, and at what error.

Everything is in float64 and takes a stack of problems in the leading axes (one a group of a grouped convolution).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ridge(gram: Floats, cross: Floats, prior: Floats, strength: float) -> Floats:
    """The W that minimises tr(W gram Wᵀ) - 2 tr(W crossᵀ) + strength · mean diagonal · ‖W - prior‖².

    Args:
        gram: [..., F, F], moments of the features.
        cross: [..., O, F], of targets with features.
        prior: [..., O, F], what W is drawn to.
        strength: of the pull, in units of the mean diagonal.
    """
    size = gram.shape[-1]
    pull = strength * np.maximum(np.trace(gram, axis1=-2, axis2=-1) / max(size, 1), np.finfo(float).tiny)
    regular = gram + pull[..., None, None] * np.eye(size)
    left = cross - prior @ gram
    return prior + solve(regular, left)


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


def chosen(
    candidates: Sequence[Any], gram: Floats, cross: Floats, power: float, weights: Sequence[Floats]
) -> tuple[Any, float]:
    """The candidate whose weights have the least error on moments of other samples."""
    errors = [error(w, gram, cross, power) for w in weights]
    best = int(np.argmin(errors))
    return candidates[best], errors[best]


def written_by(sigma: Floats, kept: NDArray[np.intp], strength: float = 1e-2) -> Floats:
    """B [..., C, kept]: how the kept channels best write all channels, in the sense of a covariance [..., C, C]."""
    inner = sigma[..., kept[:, None], kept]
    size = kept.size
    pull = strength * np.trace(sigma, axis1=-2, axis2=-1) / max(sigma.shape[-1], 1)
    pull = np.maximum(pull, np.finfo(float).tiny)
    identity = np.broadcast_to(np.eye(sigma.shape[-1])[:, kept], (*sigma.shape[:-1], size))
    # Drawn to the channels themselves: a kept channel that nothing else needs is left as it is.
    left = sigma[..., :, kept] - identity @ inner
    return np.asarray(identity + solve(inner + pull[..., None, None] * np.eye(size), left))
