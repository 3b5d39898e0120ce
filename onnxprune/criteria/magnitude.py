"""Criteria that look at the size of weights."""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.base import Array, Context, Scores, criterion, gather
from onnxprune.errors import OptionError

WEIGHTS = ("out", "in")


@criterion("random")
def random(context: Context) -> Scores:
    """Random order: the control that every other criterion has to beat."""
    return np.random.default_rng(context.seed).random(context.coupling.units)


@criterion("l1")
def l1(context: Context) -> Scores:
    """Sum of absolute weights (Li et al. 2017, Pruning Filters for Efficient ConvNets)."""
    return gather(context, _absolute, WEIGHTS)


@criterion("l2")
def l2(context: Context) -> Scores:
    """Euclidean norm of the weights (Li et al. 2017; He et al. 2018, Soft Filter Pruning)."""
    return gather(context, lambda w, axis: np.sqrt(_squared(w, axis)), WEIGHTS)


@criterion("bn")
def bn_gamma(context: Context) -> Scores:
    """Absolute scale of the BatchNormalization (Liu et al. 2017, Network Slimming); others stay whole."""
    scores = gather(context, _absolute, ("scale",))
    if np.isnan(scores).all():
        raise OptionError(
            f"--criterion bn: {context.coupling.graph.name} has no BatchNormalization left to read "
            "(exporters fold it); use l2, or export without folding"
        )
    return scores


@criterion("lamp")
def lamp(context: Context) -> Scores:
    """Squared norm over the sum of all not smaller ones in its group (Lee et al. 2021, LAMP)."""
    squares = gather(context, _squared, WEIGHTS)
    group_of = context.coupling.group_of
    order = np.lexsort((-squares, group_of))
    ordered, groups = np.nan_to_num(squares[order]), group_of[order]
    running = np.cumsum(ordered)
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if groups.size else np.zeros(0, dtype=int)
    before = np.repeat(running[starts] - ordered[starts], np.diff(np.r_[starts, groups.size]))
    scores = np.empty_like(squares)
    scores[order] = ordered / np.maximum(running - before, np.finfo(float).tiny)
    return np.where(np.isnan(squares), np.nan, scores)


@criterion("fpgm")
def fpgm(context: Context) -> Scores:
    """Distance to all other filters of the layer (He et al. 2019, Filter Pruning via Geometric Median)."""
    return gather(context, _distances, ("out",))


def _absolute(w: Array, axis: int) -> Scores:
    rows = np.abs(w).reshape(_rows(w, axis), -1)
    return _fold(rows.sum(axis=1 if axis == 0 else 0), w, axis)


def _squared(w: Array, axis: int) -> Scores:
    rows = w.reshape(_rows(w, axis), -1)
    return _fold(np.einsum("ab,ab->a" if axis == 0 else "ab,ab->b", rows, rows), w, axis)


def _rows(w: Array, axis: int) -> int:
    """Everything before an axis (the axis itself, where it is the first): sums then run along contiguous memory."""
    return int(np.prod(w.shape[: max(axis, 1)]))


def _fold(sums: Array, w: Array, axis: int) -> Scores:
    return np.asarray(sums.reshape(w.shape[axis], -1).sum(axis=1), dtype=np.float64)


def _distances(w: Array, axis: int) -> Scores:
    filters = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1).astype(np.float64)
    squares = np.einsum("nd,nd->n", filters, filters)
    apart = squares[:, None] + squares[None, :] - 2 * filters @ filters.T
    return np.asarray(np.sqrt(np.maximum(apart, 0)).sum(axis=1))
