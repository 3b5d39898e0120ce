"""Scores of queries and keys that lost dimensions, repaired through the layers that queries and keys come from.

A product of two computed tensors has no weights of its own, and no consumer that could be fitted. But where its
operands come from layers by moves alone, maps of their channels can be part of these layers, head by head, and the
model stays as it is:

- axes: any basis of a head gives the same scores. In the one that is best (`bilinear.axes`) the channels that stay
  hold nearly all of them. This takes both layers, and all that they had to read.
- a map: what they still lack, and what went wrong before them, is made up for as well as it can be (`Moments.maps`):
  queries become Mᵀq, or keys Mk. This takes one layer.

What is best on samples that it was not fitted to is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.bilinear import axes
from onnxprune.consumers import Consumer, consumers
from onnxprune.groups import Coupling
from onnxprune.meetings import Bond, Meeting, meeting
from onnxprune.parts import Walk
from onnxprune.patch import NOTHING, Patch
from onnxprune.products import products
from onnxprune.refit import Layer
from onnxprune.routes import Route, results, route
from onnxprune.rules.base import Dim

Floats = NDArray[np.float64]
Index = NDArray[np.intp]
Kept = Callable[[Dim], NDArray[Any] | slice]
Backs = tuple[Floats, Floats]

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, in units of the mean square


def bonds(original: Coupling, cut: Coupling, kept: Kept) -> list[Bond]:
    """The products that lost channels and that a layer can make up for, in the order of these layers.

    Of two layers, the one with more channels takes the map (so that of grouped queries, each has its own), or else the
    later one: by then, what the other is made of is repaired.

    Args:
        original, cut: both models.
        kept: which indices of an axis of the original the cut model has.
    """
    before = {p.node.outputs[0]: p for p in products(original)}
    old, new = (results(consumers(c)) for c in (original, cut))
    found = []
    for after in products(cut):
        whole, names = before.get(after.node.outputs[0]), after.node.inputs[:2]
        if whole is None or whole.terms != after.terms or names[0] == names[1]:
            continue
        stays = kept(whole.summed(0))
        if isinstance(stays, slice):
            continue
        ways = [route(cut.graph, new, name, after.node) for name in names]
        origins = [route(original.graph, old, name, whole.node) for name in whole.node.inputs[:2]]
        able = [(cut.size(w.layer.y), w.layer.node.index, slot) for slot, w in enumerate(ways) if w is not None]
        if able:
            both = _both(ways, origins, kept)
            prior = np.eye(original.size(whole.summed(0)))[:, stays]
            found.append(Bond(whole, after, (ways[0], ways[1]), both, max(able)[2], prior))
    return sorted(found, key=lambda bond: bond.index)


def _both(ways: list[Route | None], origins: list[Route | None], kept: Kept) -> tuple[Route, Route] | None:
    """The ways in the original, where both layers can be written anew from it."""
    found = []
    for way, origin in zip(ways, origins, strict=True):
        if way is None or origin is None or way.start != origin.start:
            return None
        if not isinstance(kept(origin.layer.spec.w_in), slice):
            return None
        found.append(origin)
    return found[0], found[1]


def mended(lost: list[Bond], stop: int, dense: Walk, thin: Walk, fitted: int, everything: bool) -> list[Layer]:
    """Mend the products whose layers come before a node, and take them off the list; the walks go up to there.

    Args:
        lost: the products, in the order of their layers.
        stop: index of the node in the cut model.
        dense, thin, fitted, everything: as for `mend`; `thin` has the new weights afterwards.
    """
    said = list[Layer]()
    while lost and lost[0].index < stop:
        bond = lost.pop(0)
        thin.go(max(thin.at, bond.index))
        dense.go(max(dense.at, dense.parts.graph.producer[bond.first.layer.node.outputs[0]].index))
        patch, layers = mend(bond, dense, thin, fitted, everything)
        thin.patch |= patch
        said += layers
    return said


def mend(bond: Bond, dense: Walk, thin: Walk, fitted: int, everything: bool) -> tuple[Patch, list[Layer]]:
    """The layers with the best axes and maps in them, and what is said about it; nothing where they serve others too.

    Errors are relative to the mean square of the original's scores, on samples that maps were not fitted to.

    Args:
        bond: the product.
        dense: over the original.
        thin: over the cut model, not beyond the layers.
        fitted: the number of batches that maps are fitted to; on the others one is chosen.
        everything: fit the chosen maps once more, to all batches.
    """
    met = meeting(bond, dense, thin, NOTHING, fitted)
    if met is None:
        return NOTHING, []
    bases: list[tuple[Patch, Meeting, Backs]] = [(NOTHING, met, (bond.prior, bond.prior))]
    if met.sides is not None:
        patch, back = _turned(bond, met, thin.patch)
        again = meeting(bond, dense, thin, patch, fitted)
        bases += [(patch, again, back)] if again is not None else []
    label, plain = bond.cut.node.label, np.stack([np.eye(met.heads.shape[1])] * len(met.heads))
    scale = max(met.check.off(0 * plain), np.finfo(float).tiny)
    tried = [
        (m, strength, base)
        for base in bases
        for strength, m in zip((None, *STRENGTHS), (plain, *base[1].fit.maps(base[2], STRENGTHS)), strict=True)
    ]
    risks = [base[1].check.off(m) / scale for m, _, base in tried]
    best = int(np.argmin(risks))
    if not risks[best] < risks[0]:
        return NOTHING, [Layer(label, "none", None, risks[0], risks[0])]
    m, strength, (patch, met, back) = tried[best]
    loss = met.fit.off(m) / max(met.fit.off(0 * plain), np.finfo(float).tiny)
    if everything and strength is not None and met.fit is not met.check:
        (m,) = (met.fit + met.check).maps(back, [strength])
    layer = bond.own.layer
    patch |= written(layer, thin.patch | patch, met.heads, m if bond.slot else m.swapaxes(1, 2))
    return patch, [Layer(label, "scores", strength, risks[0], risks[best], loss)]


def _turned(bond: Bond, met: Meeting, patch: Patch) -> tuple[Patch, Backs]:
    """Both layers by the best axes, and what q and k are by them: where heads share a partner, it has the same for all.

    Args:
        bond: the product.
        met: what meets in it.
        patch: what is changed in the cut model.
    """
    assert met.sides is not None and bond.origins is not None
    size, count = bond.prior.shape
    left, right = (g[:, count:, count:] for g in met.fit.means)
    own, other = (right, left) if bond.slot else (left, right)
    _, first = np.unique(met.partner, return_index=True)
    pooled = np.zeros((first.size, size, size))
    np.add.at(pooled, met.partner, own)
    found = axes(pooled, other[first], count)
    made = NOTHING
    for slot, side, maps in zip(
        (bond.slot, 1 - bond.slot), met.sides, (found.left[met.partner], found.right), strict=True
    ):
        way = bond.ways[slot]
        assert way is not None
        source = bond.origins[slot].layer, side.whole
        made |= written(way.layer, patch | made, side.cut, maps, source)
    back = found.back[0][met.partner], found.back[1][met.partner]
    return made, back[::-1] if bond.slot else back


def written(
    layer: Consumer, patch: Patch, rows: Index, maps: Floats, source: tuple[Consumer, Index] | None = None
) -> Patch:
    """The layer with y[rows] = maps z, where z are channels of a layer that reads the same.

    Args:
        layer: y = W x + b.
        patch: what W and b are by now.
        rows: [heads, channels] of y.
        maps: [heads, channels, channels of z].
        source: that layer, as its model has it, and [heads, channels] of it; the layer itself and `rows`, as it is by
            now, if None.
    """
    w, b = _values(layer, patch)
    of_w, of_b = _values(source[0], NOTHING) if source else (w.copy(), b.copy())
    of = source[1] if source else rows
    before = b.copy()
    w[rows] = maps @ of_w[of]
    b[rows] = (maps @ of_b[of][..., None])[..., 0]
    offset = None
    if layer.bias is not None and (b.any() or before.any()):
        offset = layer.offset + b - layer.each.beta * layer.bias.value.reshape(-1)
    return layer.patch(w.reshape(layer.shape), offset)


def _values(layer: Consumer, patch: Patch) -> tuple[Floats, Floats]:
    """[rows, everything else] and [rows]: W and b, wherever it is added."""
    weights, bias = layer.each.rows(patch.weights), layer.bias
    assert weights is not None  # a layer is one whose weights are known
    w = weights.reshape(len(weights), -1).astype(np.float64) * layer.each.alpha
    if bias is None:
        return w, np.zeros(len(w))
    now = patch.inputs.get((layer.node.outputs[0], 2), patch.weights.get(bias.constant or "", bias.value))
    return w, now.reshape(-1).astype(np.float64) * layer.each.beta
