"""Slices of a constant that are added to others of its slices, with only one large result in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Graph
from onnxprune.rules.base import Index

Array = NDArray[Any]
Floats = NDArray[np.float64]

# Elements that a chunk of a large weight may have while it is float64; also what a result may have to be kept.
CHUNK = 1 << 22


def chunks(count: int, each: int = 1) -> Iterator[slice]:
    """Slices of `count` things of `each` elements, of about `CHUNK` elements in all."""
    step = max(1, CHUNK // max(each, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


class Added(NamedTuple):
    """The slices `source` of an axis, times `factor`, are added to `target`."""

    axis: int
    source: Index
    target: Index
    factor: Floats


class Sums(Mapping[str, Array]):
    """Constants that changed, by name, full size: computed when they are asked for, and kept if they are small."""

    def __init__(self, graph: Graph) -> None:
        """Nothing has changed yet."""
        self.graph = graph
        self._added: dict[str, tuple[Added, ...]] = {}
        self._kept: dict[str, tuple[int, Array]] = {}  # with how many sums it has

    def copy(self) -> Sums:
        """The same, to be changed on its own."""
        other = Sums(self.graph)
        other._added, other._kept = dict(self._added), dict(self._kept)
        return other

    def add(self, name: str, axis: int, source: Index, target: Index, factor: Floats) -> None:
        """Add slices of a constant to others of it.

        Raises:
            IndexError: it has no such axis or slices.
        """
        size = self.graph.constants[name].dims[axis]
        if max(source.max(initial=0), target.max(initial=0)) >= size:
            raise IndexError(f"{name} has {size} slices")
        self._added[name] = (*self._added.get(name, ()), Added(axis, source, target, factor))

    def put(self, name: str, array: Array) -> None:
        """Set a (small) constant to another value."""
        self._added.setdefault(name, ())
        self._kept[name] = len(self._added[name]), array

    def __getitem__(self, name: str) -> Array:
        added = self._added[name]
        count, array = self._kept.get(name) or (0, self.graph.array(name))
        for each in added[count:]:
            array = summed(array, *each)
        if array.size <= CHUNK:
            self._kept[name] = len(added), array
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._added

    def __iter__(self) -> Iterator[str]:
        return iter(self._added)

    def __len__(self) -> int:
        return len(self._added)


def summed(array: Array, axis: int, source: Index, target: Index, factor: Floats | None = None) -> Array:
    """A copy in which the slices `source` of an axis, times `factor`, are added to `target`; the sources stay."""
    result = np.array(array, order="C")
    sinks, sums = totals(array, axis, source, target, factor)
    result[(slice(None),) * axis + (sinks,)] = sums
    return result


def totals(array: Array, axis: int, source: Index, target: Index, factor: Floats | None = None) -> tuple[Index, Array]:
    """The slices that others are added to, and what they become."""
    sinks, place = np.unique(target, return_inverse=True)
    taken = np.concatenate([sinks, source])
    owner = np.concatenate([np.arange(sinks.size), place])
    order = np.argsort(owner, kind="stable")
    taken, starts = taken[order], np.searchsorted(owner[order], np.arange(sinks.size))
    scale = None if factor is None else np.concatenate([np.ones(sinks.size), factor])[order, None]
    old = array.reshape(int(np.prod(array.shape[:axis])), array.shape[axis], -1)
    new = np.empty((old.shape[0], sinks.size, old.shape[2]), dtype=array.dtype)
    step = max(1, CHUNK // max(1, taken.size * old.shape[2]))
    width = max(1, CHUNK // max(1, taken.size * step))
    for row in range(0, old.shape[0], step):
        for column in range(0, old.shape[2], width):
            part = old[row : row + step, taken, column : column + width].astype(np.float64)
            part = part if scale is None else part * scale
            new[row : row + step, :, column : column + width] = np.add.reduceat(part, starts, axis=1)
    return sinks, new.reshape(*array.shape[:axis], sinks.size, *array.shape[axis + 1 :])
