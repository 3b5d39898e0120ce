"""How the elements of a value are distributed, channel by channel, as far as that is known without data.

An element is taken for a function of one standard normal variable, given at a grid of its values. So the clipped
Gaussian after a ReLU, and x * sigmoid(x), are what they are, and means and variances are sums over the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.rules.base import Unknown

Floats = NDArray[np.float64]

# The trapezoidal rule is nearly exact for a Gaussian (Trefethen, Weideman 2014); a kink costs a thousandth of sigma.
GRID = np.linspace(-6.0, 6.0, 65)
WEIGHTS = np.exp(-np.square(GRID) / 2) / np.exp(-np.square(GRID) / 2).sum()
LARGEST = 1 << 25  # numbers that are worked with at once


@dataclass(frozen=True, eq=False)
class Law:
    """The law of a value.

    Attributes:
        table: [65, *form], the elements where the variable has the values of `GRID`; [1, *form] of constants. The form
            broadcasts to the shape of the value; NaN: not known.
        root: laws of one root are functions of the same variables, entry by entry; the others are independent.
    """

    table: Floats
    root: object = field(default_factory=object)

    @property
    def form(self) -> tuple[int, ...]:
        """The shape of an entry for each distinguished element."""
        return self.table.shape[1:]

    @property
    def mean(self) -> Floats:
        """[*form]."""
        return np.asarray(self.table[0] if len(self.table) == 1 else np.tensordot(WEIGHTS, self.table, axes=1))

    @property
    def variance(self) -> Floats:
        """[*form]; exactly zero for constants."""
        off = self.table - self.table[:1]
        if len(off) == 1:
            return np.asarray(off[0])
        mean, square = (np.tensordot(WEIGHTS, t, axes=1) for t in (off, np.square(off)))
        return np.asarray(np.maximum(square - np.square(mean), 0.0))

    def along(self, axis: int, size: int) -> tuple[Floats, Floats]:
        """[size], [size]: mean and variance along one axis, of all that is there along the others."""
        mean, variance = (np.moveaxis(m, axis, 0).reshape(m.shape[axis], -1) for m in (self.mean, self.variance))
        variance = variance.mean(axis=1) + mean.var(axis=1)
        return np.broadcast_to(mean.mean(axis=1), size), np.broadcast_to(variance, size)

    def moved(self, how: Callable[[Floats], Any]) -> Law:
        """Entries in other places; `how` is done to each [*form]."""
        return Law(np.stack([how(entry) for entry in self.table]))


def normal(mean: Floats, variance: Floats) -> Law:
    """The law of normal elements; where no variance is more than zero, of constants."""
    if not np.any(variance > 0):
        return Law(mean[None])
    return Law(mean + np.sqrt(variance) * GRID.reshape(-1, *[1] * mean.ndim))


def unknown(rank: int) -> Law:
    """Nothing is known."""
    return Law(np.full((1,) * (rank + 1), np.nan))


def combine(function: Callable[..., Any], a: Law, b: Law) -> Law:
    """The law of an element-wise function of two values.

    Laws of one root are combined exactly. Others are taken to be independent, and the result to be normal: sums of
    many are.

    Raises:
        Unknown: there is too much to compute.
    """
    rank = max(len(a.form), len(b.form))
    x, y = (law.table.reshape(len(law.table), *[1] * (rank - len(law.form)), *law.form) for law in (a, b))
    if len(x) == 1 or len(y) == 1 or a.root is b.root:
        return Law(_applied(function, x, y), (a if len(x) > 1 else b).root)
    table = _applied(function, x[:, None], y[None])
    mean, square = (np.einsum("i,j,ij...->...", WEIGHTS, WEIGHTS, t) for t in (table, np.square(table)))
    return normal(mean, np.maximum(square - np.square(mean), 0.0))


def _applied(function: Callable[..., Any], x: Floats, y: Floats) -> Floats:
    if np.prod(np.broadcast_shapes(x.shape, y.shape)) > LARGEST:
        raise Unknown("too many entries")
    return np.asarray(function(x, y))
