"""Least squares where rows are fewer than features, in the space of the rows: nothing is as large as F x F.

With the features X [n, F], about their mean where a bias is free, R [n, O] what the targets are beyond the results of a
prior, and the pull s d of `solve.ridges` (d the mean moment of a feature), the change of the weights is (push-through
identity; Saunders et al. 1998)

    RᵀX/n (XᵀX/n + s d I)^-1 = Rᵀ (XXᵀ/(n d) + sI)^-1/n  X/d

of which the last factor is the same for all priors and strengths: a repair is its first factors, [O, n], until it is
chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.solve import at_once, level, solve
from onnxprune.sums import chunks

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Near:
    """Weights that differ by low rank from others that need not be copied: W = base + Σ left right.

    Attributes:
        base: [groups, O, F].
        terms: left, [groups, O, n], and right, [groups, n, F].
    """

    base: Array
    terms: tuple[tuple[Floats, Array], ...]


Weights: TypeAlias = Array | Near  # [groups, O, F]


def dense(w: Weights) -> Array:
    """W, in the type of what it differs from."""
    if not isinstance(w, Near):
        return w
    made = w.base.copy()
    for part in chunks(made.shape[2], made.shape[0] * made.shape[1]):
        for left, right in w.terms:
            made[..., part] += left @ right[..., part]
    return made


def product(w: Weights, x: Array) -> Array:
    """[groups, rows, O]: W x of rows, [groups, rows, F]; W is multiplied in the type of the rows."""
    if not isinstance(w, Near):
        return np.asarray(x @ w.swapaxes(1, 2).astype(x.dtype, copy=False))
    found = product(w.base, x)
    for left, right in w.terms:
        found = found + product(right, x) @ left.swapaxes(1, 2)
    return found


def at(w: Weights, point: Floats) -> Floats:
    """[groups, O]: W x at one point, [groups, F], in float64, though there is seldom room for all of W."""
    if not isinstance(w, Near):
        found = np.empty(w.shape[:2])
        for part in chunks(w.shape[1], w.shape[0] * w.shape[2]):
            found[:, part] = np.einsum("gof,gf->go", w[:, part].astype(np.float64, copy=False), point)
        return found
    found = at(w.base, point)
    for left, right in w.terms:
        found += np.einsum("gon,gn->go", left, at(right, point))
    return found


def scaled(w: Weights, factor: Floats) -> Array:
    """W, each of its results, [groups, O], times a factor."""
    if not isinstance(w, Near):
        return np.asarray(w * factor[:, :, None])
    made = dense(w)
    made *= factor[:, :, None].astype(made.dtype)
    return made


class Space(NamedTuple):
    """Rows, and their products with each other.

    Attributes:
        right: [groups, n, F], X/d in the type of the rows.
        gram: [groups, n, n], XXᵀ/(n d).
    """

    right: Array
    gram: Floats


def space(x: Array, origin: Floats) -> Space:
    """Of rows, [groups, n, F], about an origin, [groups, F]."""
    groups, count, size = x.shape
    right, gram = np.empty_like(x), np.zeros((groups, count, count))
    parts = list(chunks(size, groups * count))
    own = np.concatenate([np.square(x[..., p] - origin[:, None, p]).mean(axis=1) for p in parts], axis=1)
    mean = level(own)
    for part in parts:
        about = x[..., part] - origin[:, None, part]
        over = about / mean[:, None]
        gram += about @ over.swapaxes(1, 2)
        right[..., part] = over
    return Space(right, gram / count)


def changed(
    where: Space, missed: Sequence[Array], priors: Sequence[Weights], strengths: Sequence[float], workers: int
) -> list[list[Near]]:
    """`solve.ridges` by rows: found[strength][prior].

    Args:
        where: the rows.
        missed: for each prior [groups, n, O], what the targets are beyond its results.
        priors: what W is drawn to.
        strengths: of the pull.
        workers: strengths that are tried at once.
    """
    count, outputs = missed[0].shape[1:]
    asked = np.concatenate([m.swapaxes(1, 2) for m in missed], axis=1).astype(np.float64, copy=False)

    def lefts(strength: float) -> Floats:
        return np.asarray(solve(where.gram + strength * np.eye(count), asked) / count)

    found = at_once(lefts, strengths, workers)
    return [
        [_nearer(prior, left[:, n * outputs : (n + 1) * outputs], where.right) for n, prior in enumerate(priors)]
        for left in found
    ]


def _nearer(prior: Weights, left: Floats, right: Array) -> Near:
    base, terms = (prior.base, prior.terms) if isinstance(prior, Near) else (prior, ())
    return Near(base, (*terms, (left, right)))
