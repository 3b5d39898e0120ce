"""The expected values of a model's channels, from its weights alone."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.expected import operators, structure
from onnxprune.expected.law import Floats, normal
from onnxprune.expected.laws import EXPECTS, Laws
from onnxprune.folds import Contraction, contraction, foldable, weighed
from onnxprune.graph import Node
from onnxprune.groups import Coupling
from onnxprune.rules.base import Index, NodeView, Unknown

Array = NDArray[Any]

__all__ = ["expectations", "operators", "structure", "taps_met"]


def expectations(coupling: Coupling, white: bool = False) -> Laws:
    """The laws of all values, in the order of the nodes.

    Args:
        coupling: the analysis.
        white: take the model's inputs to be white noise of unit variance; else nothing is known of them.
    """
    laws = Laws(coupling)
    if white:
        for name in coupling.graph.inputs:
            rank = (1,) * len(coupling.graph.shapes.get(name) or ())
            laws.set(name, normal(np.zeros(rank), np.ones(rank)))
    contractions = {node.index: contraction(coupling, node, spec) for node, spec in foldable(coupling)}
    for view in coupling.views:
        node = view.node
        if not node.outputs or node.outputs[0] in coupling.graph.fixed:
            continue
        try:
            if node.index in contractions:
                _contract(laws, view, contractions[node.index])
            elif not node.domain and node.op in EXPECTS:
                for name, law in zip(node.outputs, EXPECTS[node.op](laws, view), strict=False):
                    laws.set(name, law)
        except (Unknown, IndexError, KeyError, ValueError, TypeError):
            continue  # nothing is known of the outputs then
    return laws


def taps_met(node: Node) -> float:
    """The share of a kernel's taps that meet an element: a ConvTranspose spreads them over its strides."""
    return 1.0 / prod(node.attrs.get("strides") or (1,)) if node.op == "ConvTranspose" else 1.0


def _contract(laws: Laws, view: NodeView, each: Contraction) -> None:
    """Set the law of a sum of many: it is normal, and its terms are taken to be independent."""
    rows, spec = each.rows({}), each.spec
    if rows is None or rows.size == 0 or not spec.y.value:
        return
    mean, variance = laws.of(view.node.inputs[0]).along(spec.x.axis, spec.groups * rows.shape[1])
    known, open_ = np.flatnonzero(~np.isnan(mean)), np.flatnonzero(np.isnan(mean))
    share, axis = taps_met(each.node), spec.y.axis
    centre = each.beta * _bias(laws, view, each, rows.shape[0])
    if known.size:
        centre = centre + each.alpha * share * weighed(rows, spec.groups, known, mean[known])
    spread = np.zeros(rows.shape[0])
    if variance[known].any():
        spread = each.alpha**2 * share * weighed(rows, spec.groups, known, variance[known], np.square)
    blind = _reads(rows, spec.groups, open_)
    centre, spread = (np.where(blind, np.nan, v) for v in (centre, spread))
    form = [-1 if a == axis else 1 for a in range(len(view.out_shape()))]
    laws.set(spec.y.value, normal(centre.reshape(form), spread.reshape(form)))


def _reads(rows: Array, groups: int, channels: Index) -> NDArray[np.bool_]:
    """[output]: whether a weight over these channels is not zero."""
    if channels.size == groups * rows.shape[1]:
        return np.asarray(rows.any(axis=(1, 2)))
    return weighed(rows, groups, channels, np.ones(channels.size), lambda part: part != 0) > 0


def _bias(laws: Laws, view: NodeView, each: Contraction, size: int) -> Floats:
    slot = each.spec.bias_slot
    if slot is None or not view.has(slot):
        return np.zeros(size)
    mean = laws.x(view, slot).mean
    return mean.reshape(-1) if mean.size == size else np.full(size, mean.reshape(-1)[0] if mean.size == 1 else np.nan)
