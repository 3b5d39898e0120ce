"""The user's inputs in parts that take turns: weights are fitted to some, widths chosen on others, one is put aside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from onnxprune.errors import DataError
from onnxprune.feeds import Array, Feed, InputSpec, batched, rows
from onnxprune.padding import without_padding

MOST, ROOM = 2048, 1 << 30  # samples that are used, and their bytes; of more, some are passed over, evenly
FOLDS = 4  # that take turns to choose
ASIDE_SHARE = 1 / 8
CHOOSE, ASIDE = 48, 64  # the most that choose and that are put aside; all others fit
FEW = 8  # that choose, however dear
STAGED = 512  # the most that are fitted to in a turn
# MACs of one run over the samples that choose, that are fitted to in a turn, and that are fitted to at the end.
CHOOSING, FITTING, LAST = 40e9, 256e9, 1.2e12
FEWEST, FEWEST_FEEDS = 5, 3
PARTS = 8  # clusters of samples that are alike, at least
BATCH = 32
ELEMENTS = 1 << 19  # of a batch's largest input


class Turn(NamedTuple):
    """Batches that weights are fitted to, and batches that they have not seen, on which is chosen."""

    fit: tuple[Feed, ...]
    choose: tuple[Feed, ...]


@dataclass(frozen=True, eq=False)
class Samples:
    """The data in disjoint parts.

    Attributes:
        feeds: all, one sample each, where the model's batch is free.
        folds: numbers of samples; each takes its turn to choose, the others fit.
        spare: numbers of samples that are put aside: nothing is made with them, they tell what the result is worth.
        inputs: what the model takes.
        seen: samples in the data.
        choosing: the most samples of a fold that choose.
        fitting: the most samples that are fitted to in a turn.
        final: the most samples that are fitted to at the end.
    """

    feeds: Sequence[Feed]
    folds: tuple[tuple[int, ...], ...]
    spare: tuple[int, ...]
    inputs: Mapping[str, InputSpec]
    seen: int
    choosing: int = CHOOSE
    fitting: int = STAGED
    final: int = MOST

    def turn(self, number: int) -> Turn:
        """One fold chooses, the others fit; what the luck of some samples chose meets others in the next turn."""
        which = number % len(self.folds)
        others = sorted(i for n, fold in enumerate(self.folds) if n != which for i in fold)
        fit, choose = _some(others, self.fitting), _some(self.folds[which], self.choosing)
        return Turn(self._batches(fit), self._batches(choose))

    @property
    def last(self) -> Turn:
        """For a fit that is made once, at the end: to all that is not put aside, as far as that can be afforded."""
        choose = _some(self.folds[-1], self.choosing)
        fit = sorted({i for fold in self.folds for i in fold} - set(choose))
        return Turn(self._batches(_some(fit, self.final)), self._batches(choose))

    @property
    def aside(self) -> tuple[Feed, ...]:
        """Batches of what is put aside."""
        return self._batches(self.spare)

    @property
    def unseen(self) -> list[Feed]:
        """What is put aside, as it came."""
        return [self.feeds[i] for i in self.spare]

    @property
    def counts(self) -> dict[str, int]:
        """For the record."""
        parts = {"fit": [i for fold in self.folds for i in fold], "aside": self.spare}
        counts = {name: sum(rows(self.feeds[i]) for i in part) for name, part in parts.items()}
        return {"seen": self.seen, "folds": len(self.folds)} | counts

    def _batches(self, which: Iterable[int]) -> tuple[Feed, ...]:
        found = list[Feed]()
        short = [without_padding(self.feeds[i], self.inputs) for i in which]
        for _, alike in groupby(sorted(short, key=_sizes), _sizes):  # which can be joined
            feeds = list(alike)
            largest = max(value.size // rows(feeds[0]) for value in feeds[0].values())
            found += batched(feeds, self.inputs, min(BATCH, max(1, ELEMENTS // max(largest, 1))))
        return tuple(found)


def split(
    feeds: Sequence[Feed], inputs: Mapping[str, InputSpec], alike: NDArray[np.intp], seen: int, macs: float = 0.0
) -> Samples:
    """Part the data: one of eight samples is put aside, the others are folds; those that are alike stay together.

    Samples that are nearly the same (crops of a picture, frames of a film) in two parts would make what was fitted to
    the one look right on the other.

    Args:
        feeds: one sample each, where the model's batch is free.
        inputs: what the model takes.
        alike: [feeds], the cluster that each belongs to.
        seen: samples in the data, of which these are some.
        macs: of a feed: where they are many, fewer choose, and fewer are fitted to in stages.
    """
    choosing, fitting, final = (int(b / macs) if macs else len(feeds) for b in (CHOOSING, FITTING, LAST))
    count = min(FOLDS, max(2, len(feeds) // 4))
    quota = [*[(1 - ASIDE_SHARE) / count] * count, ASIDE_SHARE]
    limits = [*[len(feeds)] * count, ASIDE]
    parts: list[list[int]] = [[] for _ in quota]
    _, first, sizes = np.unique(alike, return_index=True, return_counts=True)
    for cluster in np.lexsort((first, -sizes)):  # large ones first: the small ones then fill up
        members = np.flatnonzero(alike == alike[first[cluster]])
        room = [p for p in range(len(quota)) if len(parts[p]) + len(members) <= limits[p]]
        neediest = min(room, key=lambda p: len(parts[p]) / quota[p])
        parts[neediest] += members.tolist()
    if not all(parts):  # all are alike
        parts = [list(range(p, len(feeds), len(quota))) for p in range(len(quota))]
    *folds, spare = (tuple(sorted(part)) for part in parts)
    choosing, fitting = max(min(choosing, CHOOSE), FEW), max(min(fitting, STAGED), CHOOSE)
    return Samples(feeds, tuple(folds), spare, inputs, seen, choosing, fitting, max(final, fitting))


def _some(which: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly."""
    return [which[i] for i in np.unique(np.linspace(0, len(which) - 1, min(most, len(which))).round().astype(int))]


def clusters(signatures: NDArray[np.float64]) -> NDArray[np.intp]:
    """Samples that are alike: a fourth as many clusters as samples, of those nearest to each other.

    Args:
        signatures: [samples, anything], what the model answers.
    """
    count = len(signatures)
    if count < 3:
        return np.arange(count)
    spread = signatures.std(axis=0)
    scaled = (signatures - signatures.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    tree = linkage(scaled, method="average")
    return np.asarray(fcluster(tree, max(PARTS, count // 4), criterion="maxclust"), dtype=np.intp)


def check(feeds: Sequence[Feed], seen: int, name: str) -> None:
    """Refuse data that say too little.

    Raises:
        DataError: fewer than five samples, or than three batches where the model fixes their size, or inputs that are
            all the same.
    """
    if seen < FEWEST:
        raise DataError(
            f"{name}: {seen} {'sample' if seen == 1 else 'samples'} in --data, which is too few to calibrate with; "
            "give 16 or more, or leave --data out where it is not needed"
        )
    if len(feeds) < FEWEST_FEEDS:
        each = rows(feeds[0])
        raise DataError(
            f"{name}: takes {each} samples at a time, and --data have {seen}: give {FEWEST_FEEDS * each} or more, or "
            "leave --data out where it is not needed"
        )
    first = {n: value[:1] if value.ndim else value for n, value in feeds[0].items()}
    if all(_repeats(value, first[n]) for f in feeds for n, value in f.items()):
        raise DataError(f"{name}: all samples in --data are the same; give inputs such as the model will meet")


def thinned(feeds: Iterable[Feed], most: int = MOST, room: int = ROOM) -> tuple[list[Feed], int]:
    """Every so many feeds, and the samples in all: memory does not grow with their number.

    Args:
        feeds: of a sample each, as a rule.
        most: feeds that are kept.
        room: bytes that those may have.
    """
    kept: list[Feed] = []
    seen, every, held = 0, 1, 0
    for number, feed in enumerate(feeds):
        seen += rows(feed)
        if number % every == 0:
            kept.append(feed)
            held += _bytes(feed)
        while len(kept) > most or (held > room and len(kept) > 2 * FEWEST):
            kept, every = kept[::2], every * 2
            held = sum(map(_bytes, kept))
    return kept, seen


def _sizes(feed: Feed) -> list[tuple[int, ...]]:
    return [value.shape for value in feed.values()]


def _repeats(value: Array, sample: Array) -> bool:
    """Whether all samples of a value are this one."""
    return value.shape[1:] == sample.shape[1:] and bool((value == sample).all())


def _bytes(feed: Feed) -> int:
    return sum(value.nbytes for value in feed.values())
