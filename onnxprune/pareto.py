"""Points that no other point beats in everything, and the one behind which more costs more than it brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Range: TypeAlias = tuple[float, float]  # what a figure is at least and at most; less is better


def front(points: Sequence[Sequence[Range | None]]) -> list[int]:
    """The points that no other dominates.

    A point dominates another if it is not worse in anything that was measured of both, and better in something. Figures
    whose ranges overlap cannot be told apart: neither is better.

    Args:
        points: the figures of each, in the same order; None: not measured.
    """
    return [n for n, point in enumerate(points) if not any(_beats(other, point) for other in points)]


def knee(x: Sequence[float], y: Sequence[float]) -> int | None:
    """The point of a rising curve that is farthest above the line between its ends, on axes from 0 to 1.

    This is the knee as Kneedle defines it (Satopaa, Albrecht, Irwin and Raghavan 2011, "Finding a 'Kneedle' in a
    Haystack").

    Args:
        x: what is paid.
        y: what it brings.

    Returns:
        Its index; None for fewer than three points, or where none is above the line.
    """
    if len(x) < 3 or min(x) == max(x) or min(y) == max(y):
        return None
    above = [b - a for a, b in zip(_scaled(x), _scaled(y), strict=True)]
    best = max(range(len(above)), key=above.__getitem__)
    return best if above[best] > 0 else None


def _beats(a: Sequence[Range | None], b: Sequence[Range | None]) -> bool:
    both = [(of_a, of_b) for of_a, of_b in zip(a, b, strict=True) if of_a is not None and of_b is not None]
    better = any(of_a[1] < of_b[0] for of_a, of_b in both)
    return better and not any(of_b[1] < of_a[0] for of_a, of_b in both)


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) for value in values]
