"""Detections: how far the scores and boxes of a detector's anchors are from the original's.

An anchor counts as much as the square of its score: of thousands only a few are shown. Where a box can be read (two
corners, or centre and size), it is off by its overlap with the original's, so that large boxes may be off by more
pixels than small ones; where it cannot (offsets from anchors, distributions over bins), by its share of the variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Outputs = Mapping[str, NDArray[Any]]

ANCHORS = 100  # at least, for an output to be taken for detections
MISS = 0.5  # overlap (intersection over union) at which a box is as bad as none
MIXED = 8  # features that are no scores, in an output that holds both; more are no box
CORNERS, CENTRE, CODED = "corners", "centre", "coded"


class Part(NamedTuple):
    """A value with something for every anchor.

    Attributes:
        name: of the value.
        axis: of its features: [samples, anchors, features], or 1 where anchors come last; None: [samples, anchors].
    """

    name: str
    axis: int | None

    def laid(self, outputs: Outputs) -> NDArray[Any]:
        """[samples, anchors, features]."""
        value = outputs[self.name]
        return value[..., None] if self.axis is None else np.moveaxis(value, self.axis, 2)


@dataclass(frozen=True, eq=False)
class Boxes:
    """Scores and boxes of the same anchors.

    Attributes:
        parts: the values that they are in, one or more.
        scores: which of all features are scores; the others are boxes.
        layout: how the others are to be read.
        spread: [other features], their variance where something is detected; for boxes that cannot be read.
    """

    parts: tuple[Part, ...]
    scores: NDArray[np.bool_]
    layout: str
    spread: Floats

    @property
    def names(self) -> tuple[str, ...]:
        """Of the values."""
        return tuple(part.name for part in self.parts)

    def off(self, mine: Outputs, other: Outputs) -> Floats:
        """Sums over anchors: squared error of scores, squares of scores; error of boxes by weight, weight."""
        a = joined(mine, self.parts)
        there = all(mine[name].shape == other[name].shape for name in self.names)
        b = joined(other, self.parts) if there else np.zeros_like(a)
        sure = np.maximum(a[..., self.scores], 0.0)
        weight = np.square(sure.max(axis=-1))
        wrong = np.square(a[..., self.scores] - b[..., self.scores]).sum()
        apart = self._apart(a[..., ~self.scores], b[..., ~self.scores])
        return np.array([wrong, np.square(sure).sum(), (weight * apart).sum(), weight.sum()])

    def _apart(self, a: Floats, b: Floats) -> Floats:
        """[samples, anchors]: 0 where boxes are equal, 1 where they are as good as missed."""
        if self.layout == CODED:
            return np.asarray(np.minimum(np.square(a - b) / self.spread, 1.0).mean(axis=-1))
        return np.asarray(np.minimum(np.square((1.0 - overlap(a, b, self.layout)) / (1.0 - MISS)), 4.0))


def overlap(a: Floats, b: Floats, layout: str) -> Floats:
    """[...]: intersection over union of boxes [..., 4]."""
    (low_a, high_a), (low_b, high_b) = (_corners(v, layout) for v in (a, b))
    inside = np.prod(np.maximum(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0.0), axis=-1)
    areas = sum(np.prod(np.maximum(high - low, 0.0), axis=-1) for low, high in ((low_a, high_a), (low_b, high_b)))
    union = areas - inside
    return np.asarray(np.where(union > 0, inside / np.where(union > 0, union, 1.0), 1.0))


def _corners(boxes: Floats, layout: str) -> tuple[Floats, Floats]:
    first, second = boxes[..., :2], boxes[..., 2:]
    return (first, second) if layout == CORNERS else (first - second / 2, first + second / 2)


def joined(outputs: Outputs, parts: Sequence[Part]) -> Floats:
    """[samples, anchors, features] of all values."""
    return np.concatenate([part.laid(outputs) for part in parts], axis=2).astype(np.float64)


def find_boxes(names: Sequence[str], reference: Sequence[Outputs], asked: bool) -> tuple[Boxes, ...]:
    """Values that hold anchors with scores and boxes: in one value, or in several with as many anchors.

    Args:
        names: of the values.
        reference: what the original gives for each batch.
        asked: the user says that there are boxes.
    """
    by_anchors: dict[int, list[Part]] = {}
    for name in names:
        shape = reference[0][name].shape
        if len(shape) == 3 and max(shape[1:]) >= ANCHORS and min(shape[1:]) * 2 <= max(shape[1:]):
            by_anchors.setdefault(max(shape[1:]), []).append(Part(name, 2 if shape[2] < shape[1] else 1))
        elif len(shape) == 2 and shape[1] >= ANCHORS:
            by_anchors.setdefault(shape[1], []).append(Part(name, None))
    found = []
    for parts in by_anchors.values():
        wide = [part for part in parts if part.axis is not None]
        ways = [parts, wide] if 0 < len(wide) < len(parts) else [wide]
        read = (_read(way, reference, asked) for way in ways if way and _steady(way, reference))
        found += [boxes for boxes in read if boxes is not None][:1]
    return tuple(found)


def _steady(parts: Sequence[Part], reference: Sequence[Outputs]) -> bool:
    """Whether values have the same features in every batch, and samples and anchors as each other."""
    shapes = [[part.laid(outputs).shape for part in parts] for outputs in reference]
    widths = [[width for _, _, width in each] for each in shapes]
    return all(each == widths[0] for each in widths) and all(len({s[:2] for s in each}) == 1 for each in shapes)


def _read(parts: Sequence[Part], reference: Sequence[Outputs], asked: bool) -> Boxes | None:
    """What the features of some anchors are; None where there are no scores, or no boxes."""
    whole = [joined(outputs, parts) for outputs in reference]
    flat = np.concatenate([each.reshape(-1, each.shape[2]) for each in whole])
    scores = (flat.min(axis=0) >= -1e-6) & (flat.max(axis=0) <= 1 + 1e-6)
    widths = [part.laid(reference[0]).shape[2] for part in parts]
    owner = np.repeat(np.arange(len(parts)), widths)
    if scores.all() and 4 in widths and len(parts) > 1:  # boxes as fractions of the picture
        scores[owner == widths.index(4)] = False
    mixed = any(0 < scores[owner == n].sum() < width for n, width in enumerate(widths))
    single = any(part.axis is None for part in parts)  # any vector is as long as something
    others = int((~scores).sum())
    if not scores.any() or others < 4 or (mixed and others > MIXED and not asked) or (single and others != 4):
        return None
    weight = np.square(np.maximum(flat[:, scores], 0.0).max(axis=1))
    boxes = flat[:, ~scores]
    total = max(float(weight.sum()), np.finfo(float).tiny)
    spread = weight @ np.square(boxes - weight @ boxes / total) / total
    return Boxes(tuple(parts), scores, _layout(boxes, weight), np.where(spread > 0, spread, 1.0))


def _layout(boxes: Floats, weight: Floats) -> str:
    """How four numbers are to be read, by what those anchors have that show something."""
    if boxes.shape[1] != 4 or not weight.any():
        return CODED
    low, high = boxes[:, :2], boxes[:, 2:]
    share = 0.99 * weight.sum()
    if weight[(high >= low).all(axis=1)].sum() >= share:
        return CORNERS
    return CENTRE if weight[(high > 0).all(axis=1)].sum() >= share and (low >= 0).mean() > MISS else CODED
