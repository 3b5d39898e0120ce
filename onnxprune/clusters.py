"""Clusters of units, from their products with each other alone: Ward's tree, and k-means from where it was cut.

Units x_i that are read with weights of mean square w_i and are replaced by the weighted mean of their cluster add

    sum_i w_i |x_i - mean|²

to what reads them, as long as their weights do not know of each other. Two clusters put together add
w_a w_b / (w_a + w_b) |mean_a - mean_b|² (Ward 1963). SciPy's linkage knows no weights, and these decide: a unit that is
hardly read can go into another one that it is not like.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from onnxprune.sums import chunks

Array = NDArray[Any]
Floats = NDArray[np.float64]
Index = NDArray[np.intp]

ROUNDS = 50  # the most of k-means
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, eq=False)
class Tree:
    """In which order clusters are put together.

    Attributes:
        pairs: [merges, 2], a unit of each of both.
        added: [merges], the error that each adds; never less than the one before.
        weights: [units].
    """

    pairs: Index
    added: Floats
    weights: Floats

    def labels(self, merges: int) -> Index:
        """[units]: the cluster of each after so many merges, from 0."""
        count = len(self.weights)
        a, b = self.pairs[:merges].T
        edges = coo_array((np.ones(merges), (a, b)), shape=(count, count))
        return np.asarray(connected_components(edges, directed=False)[1], dtype=np.intp)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Units in clusters.

    Attributes:
        labels: [units], the cluster of each, from 0; none is empty.
        weights: [units], of each in the mean of its cluster; more than zero.
    """

    labels: Index
    weights: Floats

    @cached_property
    def centroids(self) -> csr_array:
        """[clusters, units]: what makes the weighted mean of a cluster."""
        share = self.weights / np.bincount(self.labels, weights=self.weights)[self.labels]
        return csr_array((share, (self.labels, np.arange(len(share)))))

    def mean(self, rows: Array) -> Array:
        """[units, numbers]: for each the mean of its cluster, bit by bit the same; summed in float64."""
        made = np.empty_like(rows)
        for part in chunks(rows.shape[1], len(rows)):
            made[:, part] = (self.centroids @ rows[:, part].astype(np.float64)).astype(rows.dtype)[self.labels]
        return made


def ward(products: Floats, weights: Floats) -> Tree:
    """Ward's tree.

    Args:
        products: [unit, unit], of units with each other.
        weights: [unit], not negative.
    """
    count, w = len(products), np.maximum(weights, max(float(weights.max(initial=0.0)), TINY) * 1e-12)
    squares = np.diag(products)
    apart = np.maximum(squares[:, None] + squares - 2 * products, 0.0)
    apart *= w[:, None] * w / (w[:, None] + w)
    np.fill_diagonal(apart, np.inf)
    size, nearest = w.copy(), apart.argmin(axis=1)
    least = apart[np.arange(count), nearest]
    pairs, added = np.zeros((count - 1, 2), dtype=np.intp), np.zeros(count - 1)
    for step in range(count - 1):
        a = int(least.argmin())
        b, height = int(nearest[a]), least[a]
        pairs[step], added[step] = (a, b), height
        # Lance and Williams 1967; what is gone is infinitely far, and stays so.
        row = ((size[a] + size) * apart[a] + (size[b] + size) * apart[b] - height * size) / (size[a] + size[b] + size)
        row[[a, b]] = np.inf
        apart[a], apart[:, a], apart[b], apart[:, b] = row, row, np.inf, np.inf
        size[a] += size[b]
        stale = np.flatnonzero((nearest == a) | (nearest == b) | (np.arange(count) == a))
        stale = stale[np.isfinite(least[stale])]
        nearest[stale] = apart[stale].argmin(axis=1)
        least[stale] = apart[stale, nearest[stale]]
        nearer = np.flatnonzero(row < least)
        nearest[nearer], least[nearer] = a, row[nearer]
        least[b] = np.inf
    return Tree(pairs, np.maximum.accumulate(np.maximum(added, 0.0)), w)


def kmeans(products: Floats, weights: Floats, labels: Index) -> Index:
    """Lloyd's algorithm from given clusters on; [units], as many clusters.

    Args:
        products, weights: as for `ward`.
        labels: [unit], the clusters to begin with, from 0.
    """
    for _ in range(ROUNDS):
        centroids = Clusters(labels, weights).centroids
        cross = centroids @ products
        squares = np.asarray((centroids * cross).sum(axis=1))
        new = (squares[:, None] - 2 * cross).argmin(axis=0)
        if len(np.unique(new)) < len(cross) or (new == labels).all():
            break
        labels = new
    return labels
