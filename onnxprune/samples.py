"""The user's inputs in three parts: to fit weights, to choose widths, and to tell what became of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from onnxprune.errors import DataError
from onnxprune.feeds import Feed, InputSpec, batched, rows

MOST = 512  # samples that are used; of more, some are passed over, evenly
CHOOSE, ASIDE = 48, 64  # the most that choose and that are put aside; all others fit
FEW = 8  # that choose, however dear
CHOOSING, FITTING = 40e9, 256e9  # MACs of one run over the samples that choose, and that stages fit to
FEWEST = 5
PARTS = 8  # clusters of samples that are alike, at least
BATCH = 32
ELEMENTS = 1 << 19  # of a batch's largest input


@dataclass(frozen=True, eq=False)
class Samples:
    """Batches of inputs, disjoint.

    Attributes:
        fit: weights are fitted to them.
        late: weights are fitted to them, too, where that is done once, at the end.
        choose: the widths are chosen on them: damage must be measured on what the weights have not seen.
        aside: nothing is made with them; they tell what the result is worth.
        seen: samples in the data.
    """

    fit: tuple[Feed, ...]
    late: tuple[Feed, ...]
    choose: tuple[Feed, ...]
    aside: tuple[Feed, ...]
    seen: int

    @property
    def counts(self) -> dict[str, int]:
        """For the record."""
        parts = {"fit": (*self.fit, *self.late), "choose": self.choose, "aside": self.aside}
        return {"seen": self.seen} | {name: sum(map(rows, part)) for name, part in parts.items()}


def split(
    feeds: Sequence[Feed], inputs: Mapping[str, InputSpec], alike: NDArray[np.intp], seen: int, macs: float = 0.0
) -> Samples:
    """Part the data: of eight samples two choose, one is put aside, five fit; those that are alike stay together.

    Samples that are nearly the same (crops of a picture, frames of a film) in two parts would make what was fitted to
    the one look right on the other.

    Args:
        feeds: one sample each, where the model's batch is free.
        inputs: what the model takes.
        alike: [feeds], the cluster that each belongs to.
        seen: samples in the data, of which these are some.
        macs: of a feed: where they are many, fewer choose, and fewer are fitted to in stages.
    """
    choose, fit = (int(budget / macs) if macs else len(feeds) for budget in (CHOOSING, FITTING))
    choose = max(min(choose, CHOOSE), FEW)
    quota = {"fit": 5 / 8, "choose": 2 / 8, "aside": 1 / 8}
    limits = {"fit": len(feeds), "choose": choose, "aside": ASIDE}
    parts: dict[str, list[int]] = {part: [] for part in quota}
    _, first, sizes = np.unique(alike, return_index=True, return_counts=True)
    for cluster in np.lexsort((first, -sizes)):  # large ones first: the small ones then fill up
        members = np.flatnonzero(alike == alike[first[cluster]])
        open_parts = [p for p in quota if len(parts[p]) + len(members) <= limits[p]] or ["fit"]
        neediest = min(open_parts, key=lambda p: len(parts[p]) / quota[p])
        parts[neediest] += members.tolist()
    if not all(parts.values()):  # all are alike
        order = ("fit", "choose", "fit", "fit", "aside")
        parts = {part: [i for i in range(len(feeds)) if order[i % 5] == part] for part in quota}
    every = max(1, -(-len(parts["fit"]) // max(fit, CHOOSE)))
    parts["fit"].sort()
    parts["late"] = [i for n, i in enumerate(parts["fit"]) if n % every]
    parts["fit"] = parts["fit"][::every]
    largest = max(v.size // rows(feed) for feed in feeds[:1] for v in feed.values())
    size = min(BATCH, max(1, ELEMENTS // max(largest, 1)))
    made = {p: tuple(batched((feeds[i] for i in sorted(found)), inputs, size)) for p, found in parts.items()}
    return Samples(**made, seen=seen)


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
        DataError: fewer than five samples, or inputs that are all the same.
    """
    if seen < FEWEST:
        raise DataError(
            f"{name}: {seen} {'sample' if seen == 1 else 'samples'} to calibrate with; give 16 or more, or prune "
            "without them: --criterion l2 --recover none"
        )
    if all(np.array_equal(feed[n], value) for feed in feeds for n, value in feeds[0].items()):
        raise DataError(f"{name}: all samples are the same; give inputs such as the model will meet")


def thinned(feeds: Iterable[Feed], most: int = MOST) -> tuple[list[Feed], int]:
    """Every so many feeds, so that they are at most `most` and memory does not grow with their number; and all seen."""
    kept: list[Feed] = []
    seen, every = 0, 1
    for number, feed in enumerate(feeds):
        seen += rows(feed)
        if number % every == 0:
            kept.append(feed)
        if len(kept) > most:
            kept, every = kept[::2], every * 2
    return kept, seen
