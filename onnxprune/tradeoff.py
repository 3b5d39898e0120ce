"""What a sweep finds out: a point for each target, and the curve that the points of a model make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from onnxprune.pareto import Range, front, knee
from onnxprune.runtime import plain
from onnxprune.timing import Interval

ROUNDING = 5e-7  # by which a cosine may be off in single precision: two that are nearer are alike


@dataclass(frozen=True)
class Point:
    """A target, and what the model that was made for it is like. What was not measured is None.

    Attributes:
        model: the original, as it was named.
        target: as `prune` takes it.
        share: that may remain, as the target says.
        macs, params, file_bytes: the shares that remain.
        latency: median time of a run, as a share of the original's, with its 95 % interval: below 1 is faster.
        milliseconds: the median itself.
        cosine: of the answers and the original's, for the worst output.
        top1_agreement: share of answers with the same largest class; None where there are no classes, too.
        metric: what the user's measure says of the pruned model, by name.
        seconds: that pruning and checking took.
        file: where the model is; None: it was not kept.
        error: why the target cannot be met; all figures are None then.
    """

    model: str
    target: str
    share: float
    macs: float | None = None
    params: float | None = None
    file_bytes: float | None = None
    latency: Interval | None = None
    milliseconds: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    metric: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    file: str | None = None
    error: str | None = None

    @property
    def figures(self) -> tuple[Range | None, ...]:
        """What points are compared by, less being better: latency, size of the file, and minus the cosine."""
        latency = None if self.latency is None else (self.latency.low, self.latency.high)
        size = None if self.file_bytes is None else (self.file_bytes, self.file_bytes)
        return latency, size, None if self.cosine is None else (-self.cosine - ROUNDING, -self.cosine + ROUNDING)


@dataclass(frozen=True)
class Curve:
    """The points of a model, the largest share first.

    Attributes:
        model: as it was named.
        cost: what the targets bound.
        points: one for each target.
        original: figures of the original: macs, params, file_bytes, and metric where there is one.
        measured: provider, threads, processors and ONNX Runtime that latencies were measured with; None: they were not.
        notes: what the reader has to know.
    """

    model: str
    cost: str
    points: tuple[Point, ...]
    original: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def front(self) -> tuple[int, ...]:
        """Indices of the points that no other dominates in latency, size of the file and cosine; see `pareto.front`.

        Points of which nobody knows what they kept of the answers are not on it.
        """
        met = [n for n, point in enumerate(self.points) if point.cosine is not None]
        return tuple(met[n] for n in front([self.points[n].figures for n in met]))

    @cached_property
    def knee(self) -> int | None:
        """Index of the knee of cosine over share, the original at (1, 1) being its end; see `pareto.knee`.

        None where there is none: too few points, or answers that fall faster the less is cut.
        """
        candidates = [n for n in self.front if self.points[n].share < 1]
        x = [1.0, *(self.points[n].share for n in candidates)]
        y = [1.0, *(self.points[n].cosine or 0.0 for n in candidates)]
        found = knee(x, y)
        return None if found is None else candidates[found - 1]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; each point says whether it is on the front, and whether it is the knee."""
        result: dict[str, Any] = plain(self)
        for number, point in enumerate(result["points"]):
            point |= {"front": number in self.front, "knee": number == self.knee}
        return result
