"""Many models timed side by side: every round gives each a turn, and a round's times are compared with one another.

What makes a round slow, a busy neighbour or a hot processor, hits all models of it; the order turns round from one
round to the next. A turn is what it is for `onnxprune bench`: one run, or for fast models several, of which the first
(they find the caches as another model left them) are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from onnxprune.calls import timed
from onnxprune.timing import MIN_TURNS, PRECISION, Interval, burst_of, median_interval, steady

Times = list[list[float]]  # milliseconds by model and round
LEAST = 20  # rounds, where there is time for them


def rounds(calls: Sequence[Callable[[], Any]], seconds: float) -> Times:
    """Run all models in turns, until the ratios to the first are known within 2 % or the time is up.

    Args:
        calls: each runs a model once.
        seconds: when to stop; so many rounds as an interval wants are made even so.
    """
    burst = burst_of(min(map(_warm, calls)))
    times: Times = [[] for _ in calls]
    start = time.perf_counter()
    while True:
        done = len(times[0])
        order = range(len(calls)) if done % 2 == 0 else reversed(range(len(calls)))
        for model in order:
            times[model].append(steady(calls[model], burst))
        if done + 1 < MIN_TURNS:
            continue
        settled = done + 1 >= LEAST and all(ratio.half_width < PRECISION for ratio in ratios(times))
        if settled or time.perf_counter() - start >= seconds:
            return times


def ratios(times: Times) -> list[Interval]:
    """For each model the median over the rounds of its time over the first model's, and its 95 % interval."""
    return [median_interval([b / a for a, b in zip(times[0], each, strict=True)]) for each in times]


def _warm(call: Callable[[], Any]) -> float:
    call()
    return min(timed(call) for _ in range(2))
