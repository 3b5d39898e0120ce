"""How alike units are: the mean products of what consumers read of them, and how strongly these are read.

Without data, from the weights. Filters say how results go together: where the inputs of a contraction are independent
of each other, two of its results have the covariance sum_c var_c W_ic W_jc. The variances and means come from the laws
of the values (see `expected`), with white noise for the model's inputs. Depthwise convolutions on the way multiply a
correlation with that of their kernels, and an activation is taken to leave it as it is:

    E[x_i x_j] = rho_ij sigma_i sigma_j + mu_i mu_j.

With data, the products are those that were met.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from onnxprune.calibrate import Statistics
from onnxprune.consumers import Consumer, consumers
from onnxprune.expected.analysis import expectations
from onnxprune.folds import Array, Floats
from onnxprune.groups import Coupling, Group
from onnxprune.rules.base import Dim
from onnxprune.ties import Makers, Norm, places

TINY = float(np.finfo(np.float64).tiny)


class Kinship:
    """What is known of the units of a model."""

    def __init__(
        self, coupling: Coupling, norms: Mapping[Dim, Norm], moments: Mapping[Dim, Statistics] | None = None
    ) -> None:
        """Look at all weights once.

        Args:
            coupling: the analysis.
            norms: as for `Makers`.
            moments: statistics of what is read; None: there are no data.
        """
        self.coupling, self.moments = coupling, moments
        self.readers = list(consumers(coupling))
        self.laws = expectations(coupling, white=True)
        self._norms = {norm.y: norm for norm in norms.values()}

    def of(self, makers: Makers) -> tuple[Floats, Floats]:
        """[unit, unit], [unit]: the mean products of units, and the weights with which errors in them count.

        An error is in units of the mean square of what reads it, and summed over all that do.
        """
        group = makers.group
        products = self._met(group) if self.moments is not None else None
        if products is None:
            products = self._expected(makers)
        weights, squares = np.zeros(len(products)), np.diag(products)
        for reader in self._reading(group):
            energy = np.square(_rows(reader)).sum(axis=(1, 3), dtype=np.float64).reshape(-1)
            read = energy[places(self.coupling, group, reader.x)].sum(axis=1)
            weights += read / max(float(read @ squares), TINY)
        return products, weights if weights.any() else np.ones_like(weights) / max(float(squares.sum()), TINY)

    def _reading(self, group: Group) -> list[Consumer]:
        return [r for r in self.readers if self._mixes(r) and places(self.coupling, group, r.x) is not None]

    def _mixes(self, reader: Consumer) -> bool:
        """As `Consumer.mixes`, which would keep its weights in memory."""
        return reader.groups == 1 or self.coupling.size(reader.spec.w_in) > 1

    def _met(self, group: Group) -> Floats | None:
        """The products in the data; None where none were collected."""
        found = []
        for x in dict.fromkeys(r.x for r in self._reading(group)):
            stats = self.moments.get(x) if self.moments is not None else None
            at = places(self.coupling, group, x)
            if stats is None or stats.second is None or at is None:
                return None
            second = stats.second / max(stats.rows, 1)
            found.append(np.sum([second[np.ix_(column, column)] for column in at.T], axis=0))
        return np.asarray(np.mean(found, axis=0)) if found else None

    def _expected(self, makers: Makers) -> Floats:
        group, made, kernels = makers.group, list[Floats](), list[Floats]()
        for reader in self.readers:
            at = places(self.coupling, group, reader.y)
            if at is not None:
                (made if self._mixes(reader) else kernels).append(_products(self._filters(reader)[at]))
        if not made:
            made = [_products(rows) for rows in (makers.values("out") or makers.values()).values()]
        filters = np.sum(made, axis=0)
        alike = prod(map(_correlation, kernels), start=_correlation(filters))
        laws = [self._law(group, x) for x in dict.fromkeys(r.x for r in self._reading(group))]
        if laws and not any(np.isnan(mean).any() or np.isnan(var).any() for mean, var in laws):
            sigma = np.sqrt(np.mean([var.sum(axis=1) for _, var in laws], axis=0))
            offset = np.mean([mean @ mean.T for mean, _ in laws], axis=0)
        else:  # of what comes in nothing is known: filters and biases stand for themselves
            sigma = np.sqrt(np.diag(filters))
            offset = sum(map(_products, makers.values("bias", "param").values()), np.zeros_like(alike))
        return np.asarray(alike * sigma[:, None] * sigma + offset)

    def _law(self, group: Group, x: Dim) -> tuple[Floats, Floats]:
        """[unit, its indices]: means and variances of what is read."""
        at = places(self.coupling, group, x)
        mean, variance = self.laws.of(x.value).along(x.axis, self.coupling.size(x))
        return mean[at], variance[at]

    def _filters(self, reader: Consumer) -> Array:
        """[results, numbers of each]: weights, times the deviations of what they read, as the norm behind has them."""
        rows = _rows(reader)
        groups, outputs, channels, _ = rows.shape
        mean, variance = self.laws.of(reader.x.value).along(reader.x.axis, groups * channels)
        # A kernel reads one channel, whose mean it does not tell from the rest.
        spread = variance if self._mixes(reader) else variance + np.square(mean)
        spread = np.ones_like(spread) if np.isnan(spread).any() else np.sqrt(spread)
        spread = (reader.each.alpha * spread.reshape(groups, 1, channels, 1)).astype(rows.dtype)
        rows = (rows * spread).reshape(groups * outputs, -1)
        norm = self._norms.get(reader.y.value)
        if norm is None:
            return rows
        gamma, var = (self._array(dim) for dim in (norm.gamma, norm.var))
        return rows * norm.scale(gamma, var)[:, None].astype(rows.dtype)

    def _array(self, dim: Dim) -> Floats:
        graph = self.coupling.graph
        return graph.array(self.coupling.source.get(dim.value, dim.value)).astype(np.float64)


def _rows(reader: Consumer) -> Array:
    """[groups, results, channels of a group, taps]: the weights, read anew."""
    rows = reader.each.rows({})
    assert rows is not None
    return np.asarray(rows.reshape(reader.groups, -1, *rows.shape[1:]))


def _products(rows: Array) -> Floats:
    """[unit, unit]: of the numbers of units with each other; in their type."""
    flat = rows.reshape(len(rows), -1)
    return np.asarray((flat @ flat.T).astype(np.float64))


def _correlation(products: Floats) -> Floats:
    size = np.sqrt(np.maximum(np.diag(products), TINY))
    return np.asarray(products / size[:, None] / size)
