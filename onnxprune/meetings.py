"""Heads of queries and keys: which channels of which layers they are, who meets whom, and their moments on data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.bilinear import Moments
from onnxprune.parts import Engine, Walk
from onnxprune.patch import Patch
from onnxprune.products import Product
from onnxprune.routes import Route

Array = NDArray[Any]
Floats = NDArray[np.float64]
Index = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Bond:
    """A product that lost channels, and the layers that can make up for it.

    Attributes:
        whole, cut: the product in the original and in the cut model.
        ways: for either operand the way to it from a layer of the cut model, if there is one.
        origins: the same in the original, if both layers have all that they had to read; else None.
        slot: the operand whose layer takes what makes up for the rest.
        prior: [channels, those that the cut model has]: which is which.
    """

    whole: Product
    cut: Product
    ways: tuple[Route | None, Route | None]
    origins: tuple[Route, Route] | None
    slot: int
    prior: Floats

    @property
    def own(self) -> Route:
        """The way from that layer."""
        way = self.ways[self.slot]
        assert way is not None  # as `bonds` makes it
        return way

    @property
    def first(self) -> Route:
        """The way from the first layer that may change."""
        return min((w for w in self.ways if w is not None), key=_index) if self.origins else self.own

    @property
    def index(self) -> int:
        """The node of that layer: from here on the cut model changes."""
        return _index(self.first)


class Side(NamedTuple):
    """The channels of a layer, [heads, channels], in the cut model and in the original."""

    cut: Index
    whole: Index


@dataclass(frozen=True, eq=False)
class Meeting:
    """What meets in a product.

    Attributes:
        heads: [heads, channels], those of the layer in the cut model that takes the maps.
        fit, check: the moments of each head and of all that it meets, to fit to and to choose with.
        sides: the heads of this layer, and of that of the other operand; None where they cannot be told.
        partner: [heads], the one that each meets.
    """

    heads: Index
    fit: Moments
    check: Moments
    sides: tuple[Side, Side] | None
    partner: Index


def meeting(bond: Bond, dense: Walk, thin: Walk, patch: Patch, fitted: int) -> Meeting | None:
    """Run both models to the product.

    Args:
        bond: the product.
        dense: over the original.
        thin: over the cut model.
        patch: what is changed in it.
        fitted: the number of batches to fit to; the others are to choose with.

    Returns:
        None where a channel of the layer is in several places of its heads, or serves something else.
    """
    whole, cut = bond.whole.node.inputs[:2], bond.cut.node.inputs[:2]
    heads, moments, told = np.zeros((0, 0), dtype=np.intp), (Moments(), Moments()), None
    asks = [name for way in bond.ways if way for name in way.asks], [n for w in bond.origins or () for n in w.asks]
    full = dense.here().rest(Patch(), list(dict.fromkeys((*whole, *asks[1]))), dense.engine)
    part = thin.here().rest(patch, list(dict.fromkeys((*cut, *asks[0]))), thin.engine)
    for batch, (mine, here) in enumerate(zip(full, part, strict=True)):
        at = _places(bond.cut, bond.slot, bond.own, here, thin.engine)
        if at is None:
            return None
        if not batch:
            heads = np.unique(at.reshape(-1, at.shape[-1]), axis=0)
            told = _told(bond, at, heads, mine, here, thin.engine)
        if np.unique(heads).size < heads.size:
            return None
        both = zip(bond.cut.laid(*(here[n] for n in cut)), bond.whole.laid(*(mine[n] for n in whole)), strict=True)
        rows = [np.concatenate(z, axis=-1).astype(np.float32, copy=False) for z in both]
        where = [at[..., 0] == head[0] for head in heads]  # [pairs, rows]
        own = [rows[bond.slot][w] for w in where]
        other = [rows[1 - bond.slot][w.any(axis=1)].reshape(-1, rows[1].shape[-1]) for w in where]
        moments[batch >= fitted].add(*((other, own) if bond.slot else (own, other)))
    sides, partner = told or (None, np.zeros(0, dtype=np.intp))
    fit, check = moments
    if fit.empty or check.empty:  # too few samples to hold some out
        fit = check = fit + check
    return Meeting(heads, fit, check, sides, partner)


def _index(way: Route) -> int:
    return way.layer.node.index


def _places(product: Product, slot: int, way: Route, values: dict[str, Array], engine: Engine) -> Index | None:
    """The channel of its layer for each number of an operand, as [pairs, rows, channels]; None as for `meeting`."""
    channels = way.channels(values, engine)
    if channels is None:
        return None
    sides = [values[n] for n in product.node.inputs[:2]]
    sides[slot] = channels
    return product.laid(*sides)[slot]


def _told(
    bond: Bond, at: Index, heads: Index, mine: dict[str, Array], here: dict[str, Array], engine: Engine
) -> tuple[tuple[Side, Side], Index] | None:
    """`sides` and `partner` of a meeting, from one batch; None where a head meets several, or none is a head."""
    if bond.origins is None:
        return None
    sides, places = list[Side](), list[Index]()
    for slot in (bond.slot, 1 - bond.slot):
        way = bond.ways[slot]
        assert way is not None  # both ends have one where there are origins
        small = at if slot == bond.slot else _places(bond.cut, slot, way, here, engine)
        large = _places(bond.whole, slot, bond.origins[slot], mine, engine)
        if small is None or large is None:
            return None
        _, first = np.unique(small[..., 0], return_index=True)
        side = Side(*(v.reshape(-1, v.shape[-1])[first] for v in (small, large)))
        if any(np.unique(v).size < v.size for v in side):
            return None
        sides.append(side)
        places.append(small[..., 0])
    met = [np.unique(places[1][(places[0] == head[0]).any(axis=1)]) for head in heads]
    if any(m.size != 1 for m in met):
        return None
    return (sides[0], sides[1]), np.searchsorted(sides[1].cut[:, 0], np.concatenate(met))
