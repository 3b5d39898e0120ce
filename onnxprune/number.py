"""One element of a small tensor that carries shapes: what is known of it, and where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from onnxprune.graph import Node
from onnxprune.sizes import Size


class Leaf(NamedTuple):
    """Element `place` of the constant that `node` reads at input `slot`."""

    node: int
    slot: int
    place: int


class SizeOf(NamedTuple):
    """The size of a tensor's axis, read off by a `Shape` node."""

    value: str
    axis: int


@dataclass(frozen=True)
class Number:
    """One element: its value where it is known, its source (None: computed), and the sizes that it depends on.

    A value that is open and has a leaf for its source is that leaf times something that no cut changes.
    `symbol` is the canonical text of a value that is open (see `sizes`), None where nothing is known of it.
    """

    value: int | float | None
    source: Leaf | SizeOf | None = None
    sizes: frozenset[SizeOf] = frozenset()
    symbol: str | None = None

    @property
    def size(self) -> Size | None:
        """The value as a size, known or open."""
        if self.value is None:
            return self.symbol
        return int(self.value) if math.isfinite(self.value) and self.value == int(self.value) else None


@dataclass(frozen=True)
class Used:
    """A size that `node` computes with: it must not change."""

    size: SizeOf
    node: Node


Numbers = tuple[Number, ...]
