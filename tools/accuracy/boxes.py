"""Boxes of detectors: suppression of overlaps, and mean average precision at IoU 0.5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

OVERLAP = 0.5


class Found(NamedTuple):
    """The boxes of an image: [n, 4] left, top, right, bottom; [n] classes; [n] scores."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def ious(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[n]: of a box with others."""
    sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return np.asarray(common / np.maximum(np.prod(one[2:] - one[:2]) + areas - common, 1e-9))


def suppressed(found: Found, overlap: float = OVERLAP) -> Found:
    """The best of those boxes of a class that overlap (greedy non-maximum suppression)."""
    left, kept = np.argsort(-found.scores, kind="stable"), []
    while left.size:
        best, left = left[0], left[1:]
        kept.append(best)
        same = found.classes[left] == found.classes[best]
        left = left[~(same & (ious(found.boxes[best], found.boxes[left]) > overlap))]
    return Found(*(part[kept] for part in found))


def average_precision(truth: Sequence[np.ndarray], found: Sequence[Found], kind: int) -> float:
    """Area under the precision envelope over recall, of one class; `truth`: its boxes in every image."""
    picked = [(score, i, box) for i, f in enumerate(found) for box, c, score in zip(*f, strict=True) if c == kind]
    taken, hits = [np.zeros(len(boxes), dtype=bool) for boxes in truth], []
    for _, i, box in sorted(picked, key=lambda each: -each[0]):
        overlaps = ious(box, truth[i]) * ~taken[i] if len(truth[i]) else np.zeros(1)
        hits.append(overlaps.max() >= OVERLAP)
        if hits[-1]:
            taken[i][overlaps.argmax()] = True
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    gained = np.diff(right, prepend=0) / sum(map(len, truth))
    return float((envelope * gained).sum())


def mean_average_precision(truth: Sequence[Found], found: Sequence[Found], least: int = 10) -> float:
    """Mean over the classes of which the images have at least so many boxes; there has to be one."""
    kinds, counts = np.unique(np.concatenate([each.classes for each in truth]), return_counts=True)
    of = [(kind, [each.boxes[each.classes == kind] for each in truth]) for kind in kinds[counts >= least]]
    if not of or len(truth) != len(found):
        raise ValueError(f"{len(truth)} images with {len(of)} classes to find, answers for {len(found)}")
    return float(np.mean([average_precision(boxes, found, kind) for kind, boxes in of]))
