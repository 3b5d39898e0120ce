"""How weights of a layer are chosen and what becomes of the others: by magnitude, Wanda or SparseGPT.

- magnitude: |w| (Han et al. 2015);
- wanda: |w| times the root mean square of what it is multiplied with, compared within an output (Sun et al. 2024);
- obs: what the layer's squared error grows by; the weights that stay make up for it (see `obs`), a bias for the mean.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from onnxprune.sparsity.layers import Layer
from onnxprune.sparsity.moments import Moments, Seen
from onnxprune.sparsity.obs import factor, prune, settle
from onnxprune.sparsity.patterns import Array, Floats, Mask

CRITERIA = ("auto", "magnitude", "wanda", "obs")
# SparseGPT's is 0.01; where there are more columns than rows, or nearly so, far more is better. The one that errs least
# on held-out samples is taken.
DAMPINGS = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Way:
    """How a layer becomes sparse.

    Attributes:
        criterion: magnitude, wanda or obs.
        share: that goes; N:M says it itself.
        threshold: what has a lower score goes instead.
        by_row: the share goes of every output, not of all together.
    """

    criterion: str
    share: float
    threshold: float | None = None
    by_row: bool = False


@dataclass(frozen=True, eq=False)
class Chosen:
    """What becomes of the weights of a layer.

    Attributes:
        gone: [groups, outputs, columns], those that become zero.
        matrix: the same, all weights; None: the others stay as they are.
        shift: [outputs] of all groups, for the bias; None: it stays.
        error: of the result on held-out samples, relative to its variance; None: there are none.
        damping: that was chosen, with obs.
    """

    gone: Mask
    matrix: Array | None = None
    shift: Floats | None = None
    error: float | None = None
    damping: float | None = None


def choose(layer: Layer, way: Way, seen: Seen | None) -> Chosen:
    """The weights of a layer that become zero, and what the others become.

    Args:
        layer: the layer.
        way: what goes.
        seen: what the layer reads; needed by all criteria but magnitude.
    """
    if way.criterion == "obs":
        assert seen is not None
        return _least(layer, way, seen)
    rule = layer.grid.choose(way.share, way.threshold, way.by_row)
    gone = layer.grid.spread(rule(layer.grid.scores(scores_of(layer, way.criterion, seen))))
    if seen is None:
        return Chosen(gone)
    before = layer.matrix()
    return Chosen(gone, error=_error(before, np.where(gone, before.dtype.type(0), before), seen.check, None))


def scores_of(layer: Layer, criterion: str, seen: Seen | None) -> Array:
    """[groups, outputs, columns]: what each weight is worth in the dense layer."""
    if criterion == "magnitude":
        return np.abs(layer.raw())
    assert seen is not None
    w = layer.matrix()
    if criterion == "wanda":
        return np.asarray(np.abs(w) * np.sqrt(seen.fit.power).astype(w.dtype)[:, None, :])
    scores = np.empty_like(w)
    for number, span in enumerate(seen.fit.spans):
        inverse = np.square(_factor(layer, seen.fit, number, DAMPINGS[0])).sum(axis=1)
        scores[..., span] = np.square(w[..., span]) / inverse[:, None, :]
    return scores


def _least(layer: Layer, way: Way, seen: Seen) -> Chosen:
    """SparseGPT at rising dampings while the error on held-out samples falls; then least squares at the best."""
    before, fit, free = layer.matrix(), seen.fit, layer.reader.bias is not None

    def missed(after: Array) -> float:
        return _error(before, after, seen.check, fit.shift(before, after) if free else None)

    found: tuple[float, float, Array, Mask] | None = None
    for damping in DAMPINGS:
        after, gone = _pruned(layer, before, way, fit, damping)
        error = missed(after)
        if found is not None and not error < found[0]:
            break
        found = error, damping, after, gone
    assert found is not None
    error, damping, after, gone = found
    settled = np.empty_like(before)
    for number, span in enumerate(fit.spans):
        pull = np.maximum(damping, fit.rounding(number, free))
        aim = _aim(before, fit, number, free, _factor(layer, fit, number, damping))
        settled[..., span] = settle(aim, after[..., span], gone[..., span], fit.gram(number, free), pull)
    less = missed(settled)
    if less < error:
        after, error = settled, less
    shift = fit.shift(before, after).reshape(-1) if free else None
    return Chosen(gone, after, shift, error, damping)


def _pruned(layer: Layer, before: Array, way: Way, rows: Moments, damping: float) -> tuple[Array, Mask]:
    """What the weights become, and which went; block after block, and between two in the type of the weights."""
    rule, free = layer.grid.choose(way.share, way.threshold), layer.reader.bias is not None
    after, gone = np.empty_like(before), np.empty(before.shape, dtype=bool)
    for number, span in enumerate(rows.spans):
        u = _factor(layer, rows, number, damping)
        after[..., span], gone[..., span] = prune(_aim(before, rows, number, free, u), u, layer.grid, rule)
    return after, gone


def _aim(before: Array, rows: Moments, number: int, free: bool, u: Floats) -> Floats:
    """Dense weights of a block that make up for what is missed."""
    return np.asarray(before[..., rows.spans[number]] + rows.lack(number, free) @ u.swapaxes(1, 2) @ u)


def _factor(layer: Layer, rows: Moments, number: int, damping: float) -> Floats:
    """U of a block, see `factor`: damped by more than rounding, and by the next damping where there is none."""
    free = layer.reader.bias is not None
    gram, least = rows.gram(number, free), rows.rounding(number, free)
    for more in DAMPINGS[DAMPINGS.index(damping) : -1]:
        with suppress(np.linalg.LinAlgError):
            return factor(gram, np.maximum(more, least))
    return factor(gram, np.maximum(DAMPINGS[-1], least))


def _error(before: Array, after: Array, rows: Moments, shift: Floats | None) -> float:
    """Mean squared error of the result, relative to its variance."""
    return rows.error(before, after, shift) / max(rows.variance(before), float(np.finfo(float).tiny))
