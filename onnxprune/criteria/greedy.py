"""Criteria that take units away one after the other, each while those before it are gone; they need data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from onnxprune.criteria.base import Context, Scores, criterion
from onnxprune.criteria.reading import second_of, terms_of
from onnxprune.instrument import Want

APART = 1e-9  # of the last score: what keeps units that add alike in the order in which they go


@criterion("thinet", sees=Want.PAIRS)
def thinet(context: Context) -> Scores:
    """Error of the consumers as units go one by one, least first, nothing making up for it (Luo et al. 2017, ThiNet).

    With z_u what a unit adds to the results of its consumers and G[u, v] = E[z_u z_v], the error without the units T is
    the sum of G over T x T: unlike in `reconstruction`, units whose contributions cancel go together. The score is what
    a unit adds to the error when it goes, and no less than what one before it added.
    """
    assert context.moments is not None
    coupling, group_of = context.coupling, context.coupling.group_of
    place, read = np.zeros(coupling.units, dtype=np.intp), np.zeros(coupling.units, dtype=bool)
    for group in coupling.groups:
        place[group.units] = np.arange(group.units.size)
    grams: dict[int, Scores] = {}
    for reader in context.readers:
        if not reader.mixes or reader.x not in context.moments:
            continue
        terms, units = terms_of(reader, second_of(context.moments[reader.x])), reader.units
        measure = float(terms.sum())
        read[units[units >= 0]] = True
        for number in np.unique(group_of[units[units >= 0]]).tolist():
            size = coupling.groups[number].units.size
            gram = grams.setdefault(number, np.zeros((size, size)))
            if measure > 0:
                own = np.flatnonzero((units >= 0) & (group_of[units] == number))
                gram += _between(terms, own, place[units[own]], size) / measure
    scores = np.full(coupling.units, np.nan)
    for number, gram in grams.items():
        scores[coupling.groups[number].units] = _taken(gram)
    return np.where(read, scores, np.nan)


def _between(terms: Scores, channels: NDArray[np.intp], places: NDArray[np.intp], size: int) -> Scores:
    """What pairs of units add to the power of a consumer's result.

    Args:
        terms: what pairs of channels add, as `terms_of` has it.
        channels: those of a group of units.
        places: of their units in the group.
        size: of the group.

    Returns:
        [size, size].
    """
    if terms.ndim == 2:
        return np.diag(np.bincount(places, weights=terms.ravel()[channels], minlength=size))
    each = terms.shape[1]
    member = csr_array((np.ones(channels.size), (channels, places)), shape=(len(terms) * each, size))
    found = np.zeros((size, size))
    for i in np.unique(channels // each).tolist():
        own = member[i * each : (i + 1) * each].T
        found += own @ (own @ terms[i]).T
    return found


def _taken(gram: Scores) -> Scores:
    """[units], what each adds to the error as it goes: the next is the one that adds least to what is gone before."""
    order, added = np.zeros(len(gram), dtype=np.intp), np.zeros(len(gram))
    adds = gram.diagonal().copy()
    for step in range(len(gram)):  # a step needs the one before; each is one row
        order[step] = unit = int(adds.argmin())
        added[step] = adds[unit]
        adds += 2.0 * gram[unit]
        adds[unit] = np.inf
    scores = np.empty(len(gram))
    scores[order] = np.maximum.accumulate(np.maximum(added, 0.0))
    scores[order] += scores.max(initial=0.0) * APART * np.arange(len(gram))
    return scores
