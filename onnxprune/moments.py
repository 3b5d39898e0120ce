"""Rows of features and targets: weights that are fitted to them, and how far off fitted weights are.

Many rows become moments, which take no more room however many there are; rows that are fewer than their features are
kept as they are, and weights are fitted in their space (see `dual`): it comes to the same.

Products are taken in the type of the rows, about an origin near their mean, and summed in float64: of features that
hardly vary about a large mean, nothing but rounding would be left otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.dual import Space, Weights, at, changed, dense, product, space
from onnxprune.solve import at_once, error, ridges

Array = NDArray[Any]
Floats = NDArray[np.float64]

AT_ONCE = 1024  # rows that are multiplied together, at least
COLUMNS = 256  # of a product that a thread computes
GROWTH = 4.0  # the most that a result grows to vary as the original's; one that nearly stands still stays as it is


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and covariances over rows.

    Attributes:
        count: rows.
        x, y: [groups, F] and [groups, O], means of features and targets.
        xx, yx: [groups, F, F] and [groups, O, F], covariances.
        yy: [groups, O], variances.
    """

    count: int
    x: Floats
    y: Floats
    xx: Floats
    yx: Floats
    yy: Floats

    def __add__(self, other: Moments) -> Moments:
        """Of all rows (Chan et al. 1983)."""
        count = self.count + other.count
        a, b = self.count / count, other.count / count
        x, y = other.x - self.x, other.y - self.y
        return Moments(
            count,
            self.x + b * x,
            self.y + b * y,
            a * self.xx + b * other.xx + a * b * x[:, :, None] * x[:, None, :],
            a * self.yx + b * other.yx + a * b * y[:, :, None] * x[:, None, :],
            a * self.yy + b * other.yy + a * b * np.square(y),
        )

    def only(self, targets: slice) -> Moments:
        """With some of the targets."""
        return replace(self, y=self.y[:, targets], yx=self.yx[:, targets], yy=self.yy[:, targets])

    def second(self, free: bool) -> tuple[Floats, Floats]:
        """Means of x xᵀ and y xᵀ; about the means of x and y where a bias is free."""
        if free:
            return self.xx, self.yx
        return self.xx + self.x[:, :, None] * self.x[:, None, :], self.yx + self.y[:, :, None] * self.x[:, None, :]

    def ridges(
        self,
        priors: Sequence[Weights],
        strengths: Sequence[float],
        free: bool,
        through: Array | None = None,
        workers: int = 1,
    ) -> list[list[Weights]]:
        """Least squares drawn to every prior at every strength (see `solve.ridges`): found[strength][prior].

        Args:
            priors: what W is drawn to.
            strengths: of the pull.
            free: there is a bias besides.
            through: [groups, P, O], if P mixtures of the targets are to be written in their place.
            workers: strengths that are tried at once.
        """
        gram, cross = self.second(free)
        cross = cross if through is None else through.astype(np.float64, copy=False) @ cross
        return [[*found] for found in ridges(gram, cross, [_exact(p) for p in priors], strengths, workers)]

    def offset(self, w: Weights) -> Floats:
        """[groups, O]: the bias with which W is right in the mean."""
        return np.asarray(self.y - at(w, self.x))

    def error(self, w: Weights, offset: Floats) -> float:
        """Mean of ‖y - W x - offset‖²."""
        missed = error(_exact(w), self.xx, self.yx, float(self.yy.sum()))
        return missed + float(np.square(self.offset(w) - offset).sum())

    def power(self, free: bool) -> float:
        """Mean of ‖y‖², about its mean where a bias is free."""
        return float(self.yy.sum() + (0.0 if free else np.square(self.y).sum()))

    def faded(self, w: Weights) -> Floats:
        """[groups, O]: by what W x has to grow to vary as much as the targets do (Jordan et al. 2023, REPAIR)."""
        each = _exact(w)
        return _growth(self.yy, np.einsum("gof,gof->go", each @ self.xx, each))


@dataclass(eq=False)
class Sums:
    """Sums over rows that come in batches, each [rows, groups, F] and [rows, groups, O].

    Attributes:
        workers: threads that multiply.
        count: rows so far.
    """

    workers: int = 1
    count: int = 0
    _waiting: list[Array] = field(default_factory=list)
    _features: int = 0
    _origin: Any = None  # [groups, F + O]
    _first: Any = 0.0  # [groups, F + O], as the others about the origin
    _second: Any = 0.0  # [groups, F + O, F], of which blocks above the diagonal are not there
    _squares: Any = 0.0  # [groups, O]

    def add(self, features: Array, targets: Array) -> None:
        """More rows."""
        self._features = features.shape[2]
        self._waiting.append(np.concatenate([features, targets], axis=2))
        self.count += len(features)
        if sum(map(len, self._waiting)) >= AT_ONCE:
            self._multiply()

    def _multiply(self) -> None:
        rows = np.ascontiguousarray(np.moveaxis(np.concatenate(self._waiting), 0, 1))
        self._waiting.clear()
        size = self._features
        if self._origin is None:
            self._origin = rows.mean(axis=1, dtype=np.float64).astype(rows.dtype)
            self._second = np.zeros((*self._origin.shape, size))
        rows -= self._origin[:, None, :]
        self._first = self._first + rows.sum(axis=1, dtype=np.float64)
        self._squares = self._squares + np.square(rows[..., size:], dtype=np.float64).sum(axis=1)

        def block(start: int) -> None:
            span = slice(start, min(start + COLUMNS, size))
            self._second[:, start:, span] += rows[..., start:].swapaxes(1, 2) @ rows[..., span]

        at_once(block, range(0, size, COLUMNS), self.workers)

    def moments(self) -> Moments:
        """Of all rows, of which there must be some; the sums, which may be large, are used up."""
        if self._waiting:
            self._multiply()
        size, mean, second = self._features, self._first / self.count, self._second
        self._second = None
        for start in range(0, size, COLUMNS):
            stop = min(start + COLUMNS, size)
            block = second[:, start:, start:stop]
            block /= self.count
            block -= mean[:, start:, None] * mean[:, None, start:stop]
            second[:, start:stop, stop:size] = second[:, stop:size, start:stop].swapaxes(1, 2)
        x, y = np.split(self._origin + mean, [size], axis=1)
        yy = np.maximum(self._squares / self.count - np.square(mean[:, size:]), 0.0)
        return Moments(self.count, x, y, second[:, :size], second[:, size:], yy)


class _Features:
    """[groups, rows, F] of every batch, and what is known of them together; shared by what differs in targets alone."""

    def __init__(self, batches: list[Array]) -> None:
        self.batches = batches
        self._spaces: dict[bool, Space] = {}

    @cached_property
    def mean(self) -> Floats:
        total = sum(x.sum(axis=1, dtype=np.float64) for x in self.batches)
        return np.asarray(total / sum(x.shape[1] for x in self.batches))

    def space(self, free: bool) -> Space:
        """About the mean where a bias is free."""
        if free not in self._spaces:
            origin = self.mean if free else np.zeros_like(self.mean)
            self._spaces[free] = space(np.concatenate(self.batches, axis=1), origin)
        return self._spaces[free]


class Rows:
    """Rows that are kept: to judge a few weights takes less by rows than by moments, and rounds less."""

    def __init__(self, features: Sequence[Array] = (), targets: Sequence[Array] = ()) -> None:
        """Rows, if there are some: [groups, rows, F] and [groups, rows, O] of every batch."""
        self._features, self._y = _Features([*features]), [*targets]

    @property
    def count(self) -> int:
        """Rows so far."""
        return sum(x.shape[1] for x in self._features.batches)

    def add(self, features: Array, targets: Array) -> None:
        """More rows, as `Sums.add`; only before anything is asked."""
        self._features.batches.append(np.moveaxis(features, 0, 1))
        self._y.append(np.moveaxis(targets, 0, 1))

    def __add__(self, other: Rows) -> Rows:
        """All rows."""
        return Rows([*self._features.batches, *other._features.batches], [*self._y, *other._y])

    def only(self, targets: slice) -> Rows:
        """With some of the targets."""
        found = Rows([], [y[..., targets] for y in self._y])
        found._features = self._features
        return found

    def sums(self, workers: int = 1) -> Sums:
        """The sums over them, to which more may be added."""
        sums = Sums(workers)
        for x, y in zip(self._features.batches, self._y, strict=True):
            sums.add(x.swapaxes(0, 1), y.swapaxes(0, 1))
        return sums

    def ridges(
        self,
        priors: Sequence[Weights],
        strengths: Sequence[float],
        free: bool,
        through: Array | None = None,
        workers: int = 1,
    ) -> list[list[Weights]]:
        """As that of `Moments`, in the space of the rows."""
        y = np.concatenate([*(self._targets() if free else self._y)], axis=1)
        y = y if through is None else product(through, y)
        missed = [y - np.concatenate([*self._made(prior, free)], axis=1) for prior in priors]
        return [[*found] for found in changed(self._features.space(free), missed, priors, strengths, workers)]

    @cached_property
    def _mean(self) -> Floats:
        """[groups, O], of the targets."""
        return np.asarray(sum(y.sum(axis=1, dtype=np.float64) for y in self._y)) / self.count

    def offset(self, w: Weights) -> Floats:
        """As that of `Moments`."""
        return np.asarray(self._mean - at(w, self._features.mean))

    def error(self, w: Weights, offset: Floats) -> float:
        """As that of `Moments`."""
        missed = (y - made for y, made in zip(self._targets(), self._made(w), strict=True))
        return float(self._squares(missed).sum() + np.square(self.offset(w) - offset).sum())

    def power(self, free: bool) -> float:
        """As that of `Moments`."""
        return float(self._squares(self._targets()).sum() + (0.0 if free else np.square(self._mean).sum()))

    def faded(self, w: Weights) -> Floats:
        """As that of `Moments`."""
        return _growth(self._squares(self._targets()), self._squares(self._made(w)))

    def _targets(self) -> Iterator[Array]:
        """Of every batch, about their mean."""
        return (y - self._mean[:, None].astype(y.dtype) for y in self._y)

    def _made(self, w: Weights, centred: bool = True) -> Iterator[Array]:
        """W x of every batch, about its mean unless that is not asked for."""
        mean = self._features.mean[:, None]
        return (product(w, x - mean.astype(x.dtype) if centred else x) for x in self._features.batches)

    def _squares(self, batches: Iterable[Array]) -> Floats:
        """[groups, O]: means over all rows."""
        return np.asarray(sum(np.square(rows, dtype=np.float64).sum(axis=1) for rows in batches)) / self.count


def _exact(w: Weights) -> Floats:
    """[groups, O, F], in float64."""
    return dense(w).astype(np.float64, copy=False)


def _growth(wanted: Floats, made: Floats) -> Floats:
    """By what results have to grow to vary as much as is wanted; those that nearly stand still stay as they are."""
    ratio = np.divide(wanted, made, out=np.ones_like(made), where=made > wanted / GROWTH**2)
    return np.asarray(np.sqrt(np.maximum(ratio, 1.0)))
