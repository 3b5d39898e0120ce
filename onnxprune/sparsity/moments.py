"""What a layer reads on the data, and what it misses: first and second moments over sampled rows.

With x the columns that a layer reads in the sparse model, and d W of what it would read in the dense one less x, W the
dense weights: the sparse layer is to make W x + d, and so makes up for what the layers before it lost.

A layer of very many columns has its second moments in blocks along the diagonal: products of columns of two blocks are
taken to be none, so that memory and time grow with the columns and not with their square or cube.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from typing import Any, NamedTuple

import numpy as np

from onnxprune.consumers import Places
from onnxprune.parts import Walk
from onnxprune.refit import FEATURES, PER_FEATURE, ROWS
from onnxprune.sparsity.layers import Layer
from onnxprune.sparsity.patterns import Array, Floats

WIDE = 1024  # columns of a block, where there are more than FEATURES


@dataclass(eq=False)
class Moments:
    """Sums over rows.

    Attributes:
        spans: the blocks of columns.
        count: rows.
        first: [groups, columns], of x.
        second: for each block [groups, its columns, its columns], of x xᵀ.
        missed: [groups, outputs], of d.
        cross: [groups, outputs, columns], of d xᵀ.
        loss: of d².
    """

    spans: Sequence[slice]
    count: int = 0
    first: Any = 0.0
    second: list[Floats] = field(default_factory=list)
    missed: Any = 0.0
    cross: Any = 0.0
    loss: float = 0.0

    def add(self, rows: Array, missed: Array) -> None:
        """More rows of x, [groups, rows, columns], and of d, [groups, rows, outputs].

        Products are in their type, sums in float64.
        """
        x, d = rows, missed
        self.count += x.shape[1]
        self.first = self.first + x.sum(axis=1, dtype=np.float64)
        self.missed = self.missed + d.sum(axis=1, dtype=np.float64)
        self.cross = self.cross + d.swapaxes(1, 2) @ x
        self.loss += float(np.square(d, dtype=np.float64).sum())
        products = [x[..., s].swapaxes(1, 2) @ x[..., s] for s in self.spans]
        before = self.second or [np.zeros(p.shape) for p in products]
        self.second = [np.add(b, p, out=b) for b, p in zip(before, products, strict=True)]

    @property
    def mean(self) -> Floats:
        """[groups, columns]."""
        return np.asarray(self.first / max(self.count, 1))

    @property
    def power(self) -> Floats:
        """[groups, columns]: the mean of x²."""
        return np.concatenate([np.diagonal(s, axis1=1, axis2=2) for s in self.second], axis=1) / max(self.count, 1)

    def gram(self, number: int, centred: bool) -> Floats:
        """[groups, F, F] of a block: the mean of x xᵀ; about the mean of x, where a bias makes up for that."""
        found = self.second[number] / max(self.count, 1)
        if centred:
            mean = self.mean[:, self.spans[number]]
            found -= mean[:, :, None] * mean[:, None, :]
        return found

    def lack(self, centred: bool) -> Floats:
        """[groups, outputs, columns]: the mean of d xᵀ; about the means, where a bias makes up for those."""
        found = self.cross / max(self.count, 1)
        return np.asarray(found - self.behind[:, :, None] * self.mean[:, None, :] if centred else found)

    @property
    def behind(self) -> Floats:
        """[groups, outputs]: the mean of d."""
        return np.asarray(self.missed / max(self.count, 1))

    def variance(self, weights: Floats) -> float:
        """Of W x, summed over outputs."""
        grams = ((weights[..., s], self.gram(n, True)) for n, s in enumerate(self.spans))
        return float(sum(np.einsum("gof,gof->", w @ gram, w) for w, gram in grams))

    def error(self, change: Floats, shift: Floats | None) -> float:
        """The mean of (d - C x - shift)², summed over outputs, for a change C of the weights and one of the bias."""
        lean = self.behind - np.einsum("gof,gf->go", change, self.mean) - (0.0 if shift is None else shift)
        spread = self.loss / max(self.count, 1) - float(np.square(self.behind).sum())
        return (
            self.variance(change) - 2 * float((change * self.lack(True)).sum()) + spread + float(np.square(lean).sum())
        )


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
    """
    reader, spans, w = layer.reader, _spans(layer.columns, layer.grid.columns), layer.matrix().swapaxes(1, 2)
    features = min(layer.columns, FEATURES)
    count = max(1, -(-min(ROWS, max(ROWS // 4, PER_FEATURE * features)) // max(samples, 1)))
    seen = Seen(Moments(spans), Moments(spans))
    whole = dense.advance(reader.node.index + 1, [reader.x.value, reader.y.value])
    changed = repeat(None) if thin is None else thin.advance(reader.node.index, [reader.x.value])
    for batch, (was, now) in enumerate(zip(whole, changed, strict=thin is not None)):
        places = reader.places(was[reader.x.value].shape, was[reader.y.value].shape, count, rng)
        x = y = _rows(layer, was, places)
        if now is not None:
            x = _rows(layer, now, places)
        seen[batch >= fits].add(x, (y - x) @ w.astype(x.dtype))
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
