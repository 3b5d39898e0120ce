"""Rows of features and targets: their moments, which weights are fitted to, and how far off fitted weights are.

Products are taken in the type of the rows, about an origin near their mean, and summed in float64: of features that
hardly vary about a large mean, nothing but rounding would be left otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.solve import at_once, error

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

    def offset(self, w: Floats) -> Floats:
        """[groups, O]: the bias with which W is right in the mean."""
        return np.asarray(self.y - np.einsum("gof,gf->go", w, self.x))

    def error(self, w: Floats, offset: Floats) -> float:
        """Mean of ‖y - W x - offset‖²."""
        return error(w, self.xx, self.yx, float(self.yy.sum())) + float(np.square(self.offset(w) - offset).sum())

    def power(self, free: bool) -> float:
        """Mean of ‖y‖², about its mean where a bias is free."""
        return float(self.yy.sum() + (0.0 if free else np.square(self.y).sum()))

    def faded(self, w: Floats) -> Floats:
        """[groups, O]: by what W x has to grow to vary as much as the targets do (Jordan et al. 2023, REPAIR)."""
        return _growth(self.yy, np.einsum("gof,gof->go", w @ self.xx, w))


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


@dataclass(eq=False)
class Rows:
    """Rows that are kept: to judge a few weights takes less by rows than by moments, and rounds less.

    Attributes:
        workers: threads that multiply, where moments are asked for.
        count: rows so far.
    """

    workers: int = 1
    count: int = 0
    _batches: list[tuple[Array, Array]] = field(default_factory=list)  # [groups, rows, F] and [groups, rows, O]

    def add(self, features: Array, targets: Array) -> None:
        """More rows, as `Sums.add`; only before anything is asked."""
        self.count += len(features)
        self._batches.append((np.moveaxis(features, 0, 1), np.moveaxis(targets, 0, 1)))

    def __add__(self, other: Rows) -> Rows:
        """All rows."""
        return Rows(self.workers, self.count + other.count, [*self._batches, *other._batches])

    def only(self, targets: slice) -> Rows:
        """With some of the targets."""
        return Rows(self.workers, self.count, [(x, y[..., targets]) for x, y in self._batches])

    def moments(self) -> Moments:
        """Of all rows; there must be some."""
        sums = Sums(self.workers)
        for x, y in self._batches:
            sums.add(x.swapaxes(0, 1), y.swapaxes(0, 1))
        return sums.moments()

    def second(self, free: bool) -> tuple[Floats, Floats]:
        """As that of `Moments`."""
        return self.moments().second(free)

    @cached_property
    def means(self) -> tuple[Floats, Floats]:
        """[groups, F] and [groups, O], of features and targets."""
        totals = ((x.sum(axis=1, dtype=np.float64), y.sum(axis=1, dtype=np.float64)) for x, y in self._batches)
        x, y = (np.asarray(sum(each)) / self.count for each in zip(*totals, strict=True))
        return x, y

    def offset(self, w: Floats) -> Floats:
        """As that of `Moments`."""
        x, y = self.means
        return np.asarray(y - np.einsum("gof,gf->go", w, x))

    def error(self, w: Floats, offset: Floats) -> float:
        """As that of `Moments`."""
        missed = (y - made for y, made in zip(self._targets(), self._made(w), strict=True))
        return float(self._squares(missed).sum() + np.square(self.offset(w) - offset).sum())

    def power(self, free: bool) -> float:
        """As that of `Moments`."""
        return float(self._squares(self._targets()).sum() + (0.0 if free else np.square(self.means[1]).sum()))

    def faded(self, w: Floats) -> Floats:
        """As that of `Moments`."""
        return _growth(self._squares(self._targets()), self._squares(self._made(w)))

    def _targets(self) -> Iterator[Array]:
        """Of every batch, about their mean."""
        return (y - self.means[1][:, None].astype(y.dtype) for _, y in self._batches)

    def _made(self, w: Floats) -> Iterator[Array]:
        """W x of every batch, about its mean."""
        mean, turned = self.means[0][:, None], w.swapaxes(1, 2)
        return ((x - mean.astype(x.dtype)) @ turned.astype(x.dtype) for x, _ in self._batches)

    def _squares(self, batches: Iterable[Array]) -> Floats:
        """[groups, O]: means over all rows."""
        return np.asarray(sum(np.square(rows, dtype=np.float64).sum(axis=1) for rows in batches)) / self.count


def _growth(wanted: Floats, made: Floats) -> Floats:
    """By what results have to grow to vary as much as is wanted; those that nearly stand still stay as they are."""
    ratio = np.divide(wanted, made, out=np.ones_like(made), where=made > wanted / GROWTH**2)
    return np.asarray(np.sqrt(np.maximum(ratio, 1.0)))
