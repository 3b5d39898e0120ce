"""Which units the function of a model does not need.

Backwards from the outputs, in the manner of dead code elimination: a unit is needed where a needed output reads it with
a weight that is not zero, unless what it reads is a constant that can go into a bias. Of units that are equal (or all
constant) at every reader one stays, and takes the others' weights; sums may cancel, so this is repeated until nothing
changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.groups import Coupling
from onnxprune.lossless.closed import fixed_units
from onnxprune.lossless.facts import Facts, Names, pair, same_rows
from onnxprune.lossless.reading import Mask, Reading, derived, read, readings, used
from onnxprune.lossless.transfer import TRANSFERS
from onnxprune.rules.base import Index, Unknown
from onnxprune.sums import Sums

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class _State:
    """Units on their way out: `merged` into others, and the weights that changed by that."""

    coupling: Coupling
    readings: tuple[Reading, ...]
    fixed: Mask  # needed, whoever reads them
    merged: Mask
    weights: Sums


def lossless(coupling: Coupling, keep: Mask | None = None) -> tuple[Mask, dict[str, Any]]:
    """What can be removed of a model without a change of its function (up to rounding).

    Removed are channels that nobody reads (over what remains), that are constant (at every reader, where no zero
    padding lies between or the constant is zero), and that equal another one. At least one unit of a group stays.

    Args:
        coupling: the analysis.
        keep: [units], True where a unit has to stay.

    Returns:
        [units], True where a unit goes; and the folds for `make_plan`.
    """
    facts = Facts(coupling)
    found = analyse(facts)
    fixed = fixed_units(facts, found) | (False if keep is None else keep)
    state = _State(coupling, tuple(found.values()), fixed, np.zeros(coupling.units, dtype=bool), Sums(coupling.graph))
    needed, sums = _needed(state), list[list[Any]]()
    while (twins := _twins(state, needed))[0].size:
        state, added = _merge(state, *twins)
        needed, sums = _needed(state), sums + added
    needed, removed = _survivors(state, needed)
    folds = {"add": sums, "bias": list(_constants(state, removed))}
    return removed, {key: entries for key, entries in folds.items() if entries}


def joined(coupling: Coupling, label: NDArray[np.intp]) -> tuple[Index, dict[str, Any]]:
    """Units of one label that are equal wherever they are read become one; nothing else goes.

    Args:
        coupling: the analysis.
        label: [units]; units of different labels stay apart.

    Returns:
        [units], the unit that each goes into, which is itself for those that stay; and the folds for `make_plan`.
    """
    every = np.ones(coupling.units, dtype=bool)
    facts = Facts(coupling)
    found = analyse(facts)
    state = _State(coupling, tuple(found.values()), fixed_units(facts, found), ~every, Sums(coupling.graph))
    into = np.arange(coupling.units)
    source, target = _twins(state, every)
    into[source] = target
    _, first, owner = np.unique(pair(into, label.astype(np.int64)), return_index=True, return_inverse=True)
    into = first[owner]
    source = np.flatnonzero(into != np.arange(coupling.units))
    _, added = _merge(state, source, into[source])
    return into, {"add": added} if added else {}


def analyse(facts: Facts) -> dict[int, Reading]:
    """Fill the facts in the order of the nodes; the contractions by node index."""
    coupling, found = facts.coupling, dict[int, Reading]()
    constant, contractions = derived(coupling), readings(coupling)
    for view in coupling.views:
        node = view.node
        if node.outputs and node.outputs[0] in constant:
            continue
        try:
            if node.index in contractions:
                if (reading := read(facts, view, contractions[node.index])) is not None:
                    found[node.index] = reading
            elif not node.domain and node.op in TRANSFERS:
                for name, fact in zip(node.outputs, TRANSFERS[node.op](facts, view), strict=False):
                    facts.set(name, fact)
        except (Unknown, IndexError, KeyError, ValueError, TypeError):
            continue  # nothing is known of the outputs then
    return found


def _needed(state: _State) -> Mask:
    """[units]: what the outputs need. Against the order of the nodes, until nothing new is found."""
    needed, found = state.fixed.copy(), True
    while found:
        found = False
        for reading in reversed(state.readings):
            new = _read(state, reading, needed, reading.open)
            needed[new] = True
            found |= bool(new.size)
    return needed


def _read(state: _State, reading: Reading, needed: Mask, channels: Mask) -> Index:
    """Units that are not known to be needed, but are read by some that are, through some of these channels."""
    coupling, spec = state.coupling, reading.contraction.spec
    units, groups = coupling.unit_of(spec.x), spec.groups
    if units is None:
        return np.zeros(0, dtype=np.intp)
    asked = channels & (units >= 0)
    asked[asked] = ~(needed | state.merged)[units[asked]]
    if not asked.any():
        return np.zeros(0, dtype=np.intp)
    outputs, uses = _rows(coupling, reading, needed), reading.uses
    if groups == 1:
        hit = (uses if outputs.all() else uses[outputs]).any(axis=0)
    else:
        inside = uses.reshape(groups, -1, uses.shape[1]) & outputs.reshape(groups, -1, 1)
        hit = inside.any(axis=1).reshape(-1)
    return np.unique(units[hit & asked])


def _survivors(state: _State, needed: Mask) -> tuple[Mask, Mask]:
    """Needed and removed units: one of each group stays, and is needed itself where it is read (as a constant)."""
    while True:
        removed = ~needed
        for group in state.coupling.groups:
            if removed[group.units].all():
                removed[group.units[np.argmin(state.merged[group.units])]] = False
        read = [_read(state, r, needed, np.ones(r.x.size, dtype=bool)) for r in state.readings]
        units = np.concatenate([np.zeros(0, dtype=np.intp), *read])
        units = units[~removed[units]]
        if not units.size:
            return needed, removed
        state = replace(state, fixed=state.fixed | np.isin(np.arange(state.coupling.units), units))
        needed = _needed(state)


def _rows(coupling: Coupling, reading: Reading, units: Mask) -> Mask:
    """[output]: whether it is one of these units, or cannot be cut."""
    y = reading.contraction.spec.y
    mine = coupling.unit_of(y) if y.value else None
    return np.ones(reading.shape[0], dtype=bool) if mine is None else (mine < 0) | units[mine]


def _twins(state: _State, needed: Mask) -> tuple[Index, Index]:
    """Units that can be merged, and into which: those of a group that are proportional wherever weights read them.

    That is, equal, or constant on both sides: zero padding around two constants keeps them proportional.
    """
    coupling = state.coupling
    names: Names = np.zeros(coupling.units, dtype=np.int64)
    free = needed & ~state.fixed
    readers, size = np.zeros(coupling.units, dtype=bool), np.zeros(coupling.units)
    for reading in state.readings:
        spec, columns = reading.contraction.spec, reading.contraction.columns
        units, inputs = coupling.unit_of(spec.x), coupling.unit_of(spec.w_in)
        if units is None or inputs is None:
            continue
        if columns is None:
            free[inputs[inputs >= 0]] = False
        readers[inputs[inputs >= 0]] = True
        number = np.where(np.isnan(reading.x), 0.0, np.abs(reading.x))
        constant = (number != 0) & (spec.groups == 1)
        for these, channels in _channels(units, coupling.units):
            facts = np.where(constant, 1.0, reading.x)[channels]
            names[these] = pair(names[these], same_rows(facts))
        size += np.bincount(units[units >= 0], weights=number[units >= 0], minlength=coupling.units)
    able = np.flatnonzero(free & readers)
    able = able[np.argsort(-size[able], kind="stable")]  # the largest constant stays: nothing is divided by noise
    names = pair(coupling.group_of.astype(np.int64), names)
    _, first, owner = np.unique(names[able], return_index=True, return_inverse=True)
    target = able[first[owner]]
    return able[able != target], target[able != target]


def _channels(units: NDArray[np.int32], count: int) -> Iterator[tuple[Index, Index]]:
    """Units with equally many channels, and [unit, channel] these in their order."""
    order, start, number = positions(units, count)
    for size in np.unique(number[number > 0]):
        these = np.flatnonzero(number == size)
        yield these, order[start[these][:, None] + np.arange(size)]


def positions(units: NDArray[np.int32], count: int) -> tuple[Index, Index, Index]:
    """Indices in the order of their units, with where each unit starts and how many it has."""
    number = np.bincount(units[units >= 0], minlength=count)
    order = np.argsort(units, kind="stable")[np.count_nonzero(units < 0) :]
    return order, np.cumsum(number) - number, number


def _merge(state: _State, source: Index, target: Index) -> tuple[_State, list[list[Any]]]:
    """Add the weights that read `source` to those that read `target`."""
    coupling, weights = state.coupling, state.weights.copy()
    merged, added, current = state.merged.copy(), [], []
    merged[source] = True
    for reading in state.readings:
        columns, inputs = reading.contraction.columns, coupling.unit_of(reading.contraction.spec.w_in)
        moved, into = _columns(coupling, inputs, source, target)
        if columns is not None and moved.size:
            name, axis = columns
            factor = _proportion(reading, moved, into)
            weights.add(name, axis, moved, into, factor)
            added.append([name, axis, moved.tolist(), into.tolist(), factor.tolist()])
            rows = reading.contraction.rows(weights)
            assert rows is not None
            reading = replace(reading, held=used(rows))
        current.append(reading)
    return replace(state, readings=tuple(current), merged=merged, weights=weights), added


def _proportion(reading: Reading, moved: Index, into: Index) -> NDArray[np.float64]:
    """What a channel is of another: 1, or the ratio of two constants."""
    if reading.contraction.spec.groups > 1:
        return np.ones(moved.size)
    a, b = reading.x[moved], reading.x[into]
    known = ~np.isnan(a) & ~np.isnan(b) & (b != 0)
    return np.where(known, a / np.where(known, b, 1.0), 1.0)


def _columns(coupling: Coupling, inputs: NDArray[np.int32] | None, source: Index, target: Index) -> tuple[Index, Index]:
    none = np.zeros(0, dtype=np.intp)
    if inputs is None:
        return none, none
    order, start, number = positions(inputs, coupling.units)
    sizes = number[source]
    inner = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[np.repeat(start[source], sizes) + inner], order[np.repeat(start[target], sizes) + inner]


def _constants(state: _State, removed: Mask) -> Iterator[list[Any]]:
    """The constants that go into biases: [output of the reader, channels, their values]."""
    for reading in state.readings:
        spec = reading.contraction.spec
        units = state.coupling.unit_of(spec.x)
        if units is None or reading.contraction.bias is None:
            continue
        gone = ~reading.open & (reading.x != 0) & (units >= 0) & (removed & ~state.merged)[units]
        channels = np.flatnonzero(gone)
        outputs = _rows(state.coupling, reading, ~removed)
        inner = channels % reading.shape[1]
        if channels.size and reading.uses[outputs][:, inner].any():
            yield [reading.contraction.node.outputs[0], channels.tolist(), reading.x[channels].tolist()]
