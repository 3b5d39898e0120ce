"""What a layer reads on the data: first and second moments of its columns, over sampled rows.

A layer of very many columns has its second moments in blocks along the diagonal: products of columns of two blocks are
taken to be none, so that memory and time grow with the columns and not with their square or cube.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from onnxprune.consumers import Consumer
from onnxprune.parts import Walk
from onnxprune.patch import NOTHING
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
    """

    spans: Sequence[slice]
    count: int = 0
    first: Floats = field(default_factory=lambda: np.zeros(()))
    second: list[Floats] = field(default_factory=list)

    def add(self, rows: Array) -> None:
        """More rows [rows, groups, columns]; products in their type, sums in float64."""
        x = np.ascontiguousarray(np.moveaxis(rows, 0, 1))
        self.count += x.shape[1]
        self.first = self.first + x.sum(axis=1, dtype=np.float64)
        products = [x[..., s].swapaxes(1, 2) @ x[..., s] for s in self.spans]
        before = self.second or [np.zeros(p.shape) for p in products]
        self.second = [np.add(b, p, out=b) for b, p in zip(before, products, strict=True)]

    @property
    def mean(self) -> Floats:
        """[groups, columns]."""
        return self.first / max(self.count, 1)

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

    def variance(self, weights: Floats, centred: bool = True) -> float:
        """Of W x, summed over outputs; with `centred` False the mean of its square."""
        grams = ((weights[..., s], self.gram(n, centred)) for n, s in enumerate(self.spans))
        return float(sum(np.einsum("gof,gof->", w @ gram, w) for w, gram in grams))


class Seen(NamedTuple):
    """Moments of what weights are fitted to, and of what is held out."""

    fit: Moments
    check: Moments


def look(layer: Layer, walk: Walk, fits: int, samples: int, rng: np.random.Generator) -> Seen:
    """Walk to a layer, and collect what it reads.

    Args:
        layer: the layer.
        walk: stands in front of it, or earlier.
        fits: batches that are fitted to; the others are held out.
        samples: in all batches.
        rng: draws places.
    """
    reader, spans = layer.reader, _spans(layer.columns, layer.grid.columns)
    features = min(layer.columns, FEATURES)
    count = max(1, -(-min(ROWS, max(ROWS // 4, PER_FEATURE * features)) // max(samples, 1)))
    walk.go(reader.node.index)
    seen = Seen(Moments(spans), Moments(spans))
    values = walk.rest(NOTHING, [reader.x.value, reader.y.value], walk.engine)
    for batch, value in enumerate(values):
        seen[batch >= fits].add(_rows(reader, layer, value, count, rng))
    return seen


def _rows(reader: Consumer, layer: Layer, value: dict[str, Array], count: int, rng: np.random.Generator) -> Array:
    x, y = value[reader.x.value], value[reader.y.value]
    return layer.grid.lay(reader.features(x, reader.places(x.shape, y.shape, count, rng)))


def _spans(columns: int, step: int) -> list[slice]:
    """All columns; or blocks of them, as large as each other, that divide no tile."""
    if columns <= FEATURES:
        return [slice(0, columns)]
    tiles = columns // step
    ends = np.linspace(0, tiles, min(-(-columns // WIDE), tiles) + 1).round().astype(int) * step
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]
