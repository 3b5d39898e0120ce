"""Patterns: which weights become zero together, and which of those go.

A layer's weights are one matrix for each group of channels, [groups, outputs, columns]; a column is an input channel at
a tap of the kernel. A pattern divides such a matrix into tiles that become zero as a whole or, as N:M, says how many of
every M input channels at the same tap stay (Mishra et al. 2021).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import OptionError
from onnxprune.sums import chunks

Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Choose: TypeAlias = Callable[[Array], Mask]  # scores of the tiles of some columns -> which of them go


@dataclass(frozen=True)
class Pattern:
    """What the user asks for.

    Attributes:
        text: as it is written.
        kind: unstructured, vector, kernel, N:M or RxC.
        sizes: N and M, or R and C.
    """

    text: str
    kind: str
    sizes: tuple[int, int] = (1, 1)

    @property
    def share(self) -> float | None:
        """The share of zeros, where the pattern says it."""
        return 1 - self.sizes[0] / self.sizes[1] if self.kind == "N:M" else None

    @property
    def survives_cuts(self) -> bool:
        """Whether what stays of a layer that loses channels still has the pattern."""
        return self.kind not in ("N:M", "RxC")

    def on(self, shape: tuple[int, int, int, int], row: int) -> Grid | str:
        """The pattern on a layer; why not, if it does not fit.

        Args:
            shape: groups, outputs and input channels of one, taps.
            row: taps in a row of the kernel.
        """
        _, outputs, channels, taps = shape
        a, b = self.sizes
        if self.kind == "N:M":
            odd = f"{self.text} on {channels} columns: its input channels are no multiple of {b}"
            return Grid(1, b, a, taps) if channels % b == 0 else odd
        if self.kind == "RxC":
            odd = f"{self.text} blocks do not divide its {outputs} x {channels * taps} weights"
            return Grid(a, b) if outputs % a == 0 and channels * taps % b == 0 else odd
        if self.kind == "vector":
            return Grid(1, row) if row > 1 else "its kernels have no rows"
        if self.kind == "kernel":
            return Grid(1, taps) if taps > 1 else "its kernels are single weights"
        return Grid(1, 1)


def parse(text: str) -> Pattern:
    """Read a pattern.

    Raises:
        OptionError: it is none.
    """
    if text in ("unstructured", "vector", "kernel"):
        return Pattern(text, text)
    found = re.fullmatch(r"(\d+)([:x])(\d+)", text)
    a, b = (int(found[1]), int(found[3])) if found else (0, 0)
    if not a or (found and found[2] == ":" and a >= b) or not b:
        raise OptionError(
            f"sparsify: pattern = {text!r}: write N:M as in 2:4 (N of M stay, N below M), RxC as in 4x1, unstructured, "
            "vector or kernel"
        )
    return Pattern(text, "N:M" if found and found[2] == ":" else "RxC", (a, b))


@dataclass(frozen=True)
class Grid:
    """A pattern on the matrix of a layer.

    Attributes:
        rows, columns: of a tile, which becomes zero as a whole.
        most: weights that stay of each `columns` neighbours of a row, in N:M; 0: tiles.
        taps: in N:M of a kernel, so that neighbours are input channels at the same tap.
    """

    rows: int
    columns: int
    most: int = 0
    taps: int = 1

    def lay(self, a: Array) -> Array:
        """[..., channels, taps] -> [..., columns]."""
        return (a.swapaxes(-1, -2) if self.most else a).reshape(*a.shape[:-2], -1)

    def unlay(self, a: Array, taps: int) -> Array:
        """Back again."""
        return a.reshape(*a.shape[:-1], taps, -1).swapaxes(-1, -2) if self.most else a.reshape(*a.shape[:-1], -1, taps)

    def scores(self, each: Array) -> Array:
        """The mean score of each tile; in N:M of each weight: [groups, rows, tiles]."""
        r, c = (1, 1) if self.most else (self.rows, self.columns)
        if r == c == 1:
            return each
        g, o, f = each.shape
        return np.asarray(each.reshape(g, o // r, r, f // c, c).mean(axis=(2, 4)))

    def spread(self, tiles: Mask) -> Mask:
        """The weights of tiles."""
        if self.most or self.rows == self.columns == 1:
            return tiles
        return np.repeat(np.repeat(tiles, self.rows, axis=1), self.columns, axis=2)

    def holds(self, matrix: Array, gone: Mask | None = None) -> bool:
        """Whether every row of a matrix keeps to N:M, or the tiles that were to go are zero."""
        if self.most:
            neighbours = matrix.reshape(*matrix.shape[:2], -1, self.columns)
            return bool((np.count_nonzero(neighbours, axis=3) <= self.most).all())
        return gone is None or not matrix[gone].any()

    def choose(self, share: float, threshold: float | None = None, by_row: bool = False) -> Choose:
        """What decides which tiles go; asked column block after column block.

        Args:
            share: that goes, of those that were asked for so far.
            threshold: those with a lower score go instead.
            by_row: the share goes of every row, not of all together.
        """
        if self.most:
            return partial(_all_but, self.most, self.columns)
        if threshold is not None:
            return lambda scores: np.asarray(scores < threshold)
        return partial(lowest_by_row, share=share) if by_row else Quota(share)


@dataclass
class Quota:
    """The lowest go, so many that a share went of all that was shown: rounding does not add up."""

    share: float
    shown: int = 0
    taken: int = 0

    def __call__(self, scores: Array) -> Mask:
        """The tiles that go of those shown now."""
        self.shown += scores.size
        count = round(self.share * self.shown) - self.taken
        self.taken += count
        if not count:
            return np.zeros(scores.shape, dtype=bool)
        last = np.partition(scores, count - 1, axis=None)[count - 1]
        found = np.asarray(scores < last)
        equal = np.flatnonzero(scores == last)[: count - np.count_nonzero(found)]
        found.reshape(-1)[equal] = True
        return found


def lowest_by_row(scores: Array, share: float) -> Mask:
    """The lowest share of every row."""
    count = round(share * scores.shape[-1])
    found = np.zeros(scores.shape, dtype=bool)
    for part in chunks(scores.shape[1] if count else 0, scores[0, :1].size):  # an index takes twice a weight's room
        lowest = np.argpartition(scores[:, part], count - 1, axis=-1)[..., :count]
        np.put_along_axis(found[:, part], lowest, True, axis=-1)
    return found


def _all_but(most: int, of: int, scores: Array) -> Mask:
    """All but the highest `most` of every `of` neighbours; of equal ones the first stay."""
    neighbours = scores.reshape(*scores.shape[:2], -1, of)
    better = np.zeros(neighbours.shape, dtype=np.uint16)
    for k in range(of):  # sorting takes an index of eight bytes for each weight
        one = neighbours[..., k : k + 1]
        better += one > neighbours
        better[..., k + 1 :] += one == neighbours[..., k + 1 :]
    return np.asarray(better >= most).reshape(scores.shape)
