"""What a layer reads on the data, and what it misses: first and second moments over sampled rows.

With x the columns that a layer reads in the sparse model, and d W of what it would read in the dense one less x, W the
dense weights: the sparse layer is to make W x + d, and so makes up for what the layers before it lost.

A layer of very many columns has its second moments in blocks along the diagonal: products of columns of two blocks are
taken to be none, so that memory and time grow with the columns and not with their square or cube. Where rows are so few
that they take less room than sums of their products, they are kept: a fully connected layer reads one of each sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from typing import Any, NamedTuple

import numpy as np

from onnxprune.consumers import Places
from onnxprune.criteria.reading import RESOLUTION
from onnxprune.errors import DataError
from onnxprune.parts import Walk
from onnxprune.refit import FEATURES, ROWS
from onnxprune.sparsity.layers import Layer
from onnxprune.sparsity.patterns import Array, Floats

WIDE = 1024  # columns of a block, where there are more than FEATURES


@dataclass(eq=False)
class Moments:
    """Sums over rows, about the mean of the first of them: sums of what lies far from zero would be all rounding.

    Attributes:
        spans: the blocks of columns.
        count: rows.
        origin: [groups, columns], o: the mean of the first rows.
        first: [groups, columns], of x - o.
        missed: [groups, outputs], of d.
        loss: of d².
        few: rows that are kept, x - o, [groups, rows, columns], and d, [groups, rows, outputs]; none if they are many.
        many: for each block [groups, its columns, its columns], of (x - o) (x - o)ᵀ; and [groups, outputs, columns], of
            d (x - o)ᵀ: of all rows that are not kept.
    """

    spans: Sequence[slice]
    count: int = 0
    origin: Any = 0.0
    first: Any = 0.0
    missed: Any = 0.0
    loss: float = 0.0
    few: list[tuple[Array, Array]] = field(default_factory=list)
    many: tuple[list[Floats], Floats] | None = None

    def add(self, rows: Array, missed: Array) -> None:
        """More rows of x, [groups, rows, columns], and of d, [groups, rows, outputs].

        Products are in their type, sums in float64.
        """
        if not self.count:
            self.origin = rows.mean(axis=1, dtype=np.float64).astype(rows.dtype)
        x, d = rows - self.origin[:, None, :], missed
        self.count += x.shape[1]
        self.first = self.first + x.sum(axis=1, dtype=np.float64)
        self.missed = self.missed + d.sum(axis=1, dtype=np.float64)
        self.loss += float(np.square(d, dtype=np.float64).sum())
        self.few.append((x, d))
        columns, outputs = x.shape[2], d.shape[2]
        products = sum((s.stop - s.start) ** 2 for s in self.spans) + outputs * columns
        if self.many is not None or self.count * (columns + outputs) > products:
            squares, cross = self.many or (
                [np.zeros((len(x), s.stop - s.start, s.stop - s.start)) for s in self.spans],
                np.zeros((len(x), outputs, columns)),
            )
            for each, other in self.few:
                cross += other.swapaxes(1, 2) @ each
                for number, span in enumerate(self.spans):
                    squares[number] += each[..., span].swapaxes(1, 2) @ each[..., span]
            self.few, self.many = [], (squares, cross)

    @property
    def mean(self) -> Floats:
        """[groups, columns]."""
        return np.asarray(self.origin + self._lean)

    @property
    def _lean(self) -> Floats:
        """[groups, columns]: the mean of x - o."""
        return np.asarray(self.first / max(self.count, 1))

    @property
    def power(self) -> Floats:
        """[groups, columns]: the mean of x²."""
        total = np.zeros(np.shape(self.first))
        for x, _ in self.few:
            total += np.square(x, dtype=np.float64).sum(axis=1)
        for span, squares in zip(self.spans, self.many[0] if self.many else (), strict=False):
            total[:, span] += np.diagonal(squares, axis1=1, axis2=2)
        spread = total / max(self.count, 1)
        return np.asarray(np.maximum(spread - np.square(self._lean), 0.0) + np.square(self.mean))

    def _second(self, number: int) -> Floats:
        """[groups, F, F] of a block: the mean of (x - o) (x - o)ᵀ."""
        span = self.spans[number]
        parts = (x[..., span].swapaxes(1, 2) @ x[..., span] for x, _ in self.few)
        return np.asarray(self._sum(parts, self.many and self.many[0][number]) / max(self.count, 1))

    @staticmethod
    def _sum(parts: Iterator[Array], found: Floats | None) -> Floats:
        """In float64."""
        for part in parts:
            found = part.astype(np.float64) if found is None else found + part
        assert found is not None
        return found

    def gram(self, number: int, centred: bool) -> Floats:
        """[groups, F, F] of a block: the mean of x xᵀ; about the mean of x, where a bias makes up for that."""
        found, span = self._second(number), self.spans[number]
        lean, mean = self._lean[:, span], self.mean[:, span]
        found -= lean[:, :, None] * lean[:, None, :]
        if not centred:
            found += mean[:, :, None] * mean[:, None, :]
        return found

    def rounding(self, number: int, centred: bool) -> Floats:
        """[groups]: what of the mean diagonal of a block's gram may be rounding, in units of it."""
        summed, span = np.trace(self._second(number), axis1=1, axis2=2), self.spans[number]
        trace = summed - np.square(self._lean[:, span]).sum(axis=1)
        if not centred:
            trace += np.square(self.mean[:, span]).sum(axis=1)
        return np.asarray(np.divide(RESOLUTION * summed, trace, out=np.zeros_like(summed), where=trace > 0))

    def lack(self, number: int, centred: bool) -> Floats:
        """[groups, outputs, F] of a block: the mean of d xᵀ; about the means, where a bias makes up for those."""
        span = self.spans[number]
        lean = self._lean[:, span] if centred else -self.origin[:, span].astype(np.float64)
        parts = (d.swapaxes(1, 2) @ x[..., span] for x, d in self.few)
        cross = self._sum(parts, self.many and self.many[1][..., span]) / max(self.count, 1)
        return np.asarray(cross - self.behind[:, :, None] * lean[:, None, :])

    @property
    def behind(self) -> Floats:
        """[groups, outputs]: the mean of d."""
        return np.asarray(self.missed / max(self.count, 1))

    def shift(self, before: Array, after: Array) -> Floats:
        """[groups, outputs]: what makes up for the mean, with these weights, [groups, outputs, columns]."""
        moved = np.zeros(np.shape(self.missed))
        for span, change in self._changes(before, after):
            moved += np.einsum("gof,gf->go", change, self.mean[:, span])
        return np.asarray(self.behind - moved)

    def variance(self, weights: Array) -> float:
        """Of W x, summed over outputs."""
        return sum(self._variance(n, weights[..., s].astype(np.float64)) for n, s in enumerate(self.spans))

    def _variance(self, number: int, weights: Floats) -> float:
        return float(np.einsum("gof,gof->", weights @ self.gram(number, True), weights))

    def _changes(self, before: Array, after: Array) -> Iterator[tuple[slice, Floats]]:
        """Block after block, for there is seldom room for all in float64."""
        for span in self.spans:
            yield span, after[..., span].astype(np.float64) - before[..., span]

    def error(self, before: Array, after: Array, shift: Floats | None) -> float:
        """The mean of (d - C x - shift)², summed over outputs, for a change C of the weights and one of the bias."""
        spread = self.loss / max(self.count, 1) - float(np.square(self.behind).sum())
        lean = self.behind - (0.0 if shift is None else shift)
        for number, (span, change) in enumerate(self._changes(before, after)):
            lean = lean - np.einsum("gof,gf->go", change, self.mean[:, span])
            spread += self._variance(number, change) - 2 * float((change * self.lack(number, True)).sum())
        return spread + float(np.square(lean).sum())


class Seen(NamedTuple):
    """Moments of what weights are fitted to, and of what is held out."""

    fit: Moments
    check: Moments


def look(layer: Layer, dense: Walk, thin: Walk | None, fits: int, samples: int, rng: np.random.Generator) -> Seen:
    """Walk to a layer, and collect what it reads.

    Args:
        layer: the layer.
        dense: through the model as it was; stands in front of the layer, or earlier.
        thin: through the model as it is so far; None: nothing has changed.
        fits: batches that are fitted to; the others are held out.
        samples: in all batches.
        rng: draws places.

    Raises:
        DataError: it reads what is not finite, or has no finite square.
    """
    reader, spans, w = layer.reader, _spans(layer.columns, layer.grid.columns), layer.matrix()
    count = max(1, -(-ROWS // max(samples, 1)))
    seen = Seen(Moments(spans), Moments(spans))
    whole = dense.advance(reader.node.index + 1, [reader.x.value, reader.y.value])
    changed = repeat(None) if thin is None else thin.advance(reader.node.index, [reader.x.value])
    for batch, (was, now) in enumerate(zip(whole, changed, strict=thin is not None)):
        places = reader.places(was[reader.x.value].shape, was[reader.y.value].shape, count, rng)
        x = y = _rows(layer, was, places)
        if now is not None:
            x = _rows(layer, now, places)
        with np.errstate(over="ignore", invalid="ignore"):
            seen[batch >= fits].add(x, (y - x) @ w.astype(x.dtype, copy=False).swapaxes(1, 2))
    if not all(np.isfinite(m.loss) and np.isfinite(m.power).all() for m in seen):
        raise DataError(
            f"sparsify: what {layer.label!r} reads on --data is not finite or too large to square: give other inputs, "
            "or take criterion = 'magnitude' without --data"
        )
    return seen


def _rows(layer: Layer, values: Mapping[str, Array], places: Places) -> Array:
    """[groups, rows, columns]."""
    x = layer.grid.lay(layer.reader.features(values[layer.reader.x.value], places))
    return np.ascontiguousarray(np.moveaxis(x, 0, 1))


def _spans(columns: int, step: int) -> list[slice]:
    """All columns; or blocks of them, as large as each other, that divide no tile."""
    if columns <= FEATURES:
        return [slice(0, columns)]
    tiles = columns // step
    ends = np.linspace(0, tiles, min(-(-columns // WIDE), tiles) + 1).round().astype(int) * step
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]
