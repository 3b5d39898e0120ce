"""The gates that a user sets: what was lost, and whether a result may be written."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan, nan
from typing import Any, NamedTuple

from onnxprune.validate import Checks


class Loss(NamedTuple):
    """What is called lost, and how much of it; NaN where that cannot be said."""

    what: str
    amount: float


def loss(record: Mapping[str, Any]) -> Loss:
    """What `--max-drop` bounds: the fall of the user's metric, where there is one, else the loss of fidelity.

    A metric is better the higher it is. Of several numbers the one counts that falls most.

    Args:
        record: with `metric` before and after, or `fidelity`.
    """
    if "metric" in record:
        before, after = record["metric"]["before"], record["metric"]["after"]
        falls = {
            name: 0.0 if after.get(name) == value else value - after.get(name, nan) for name, value in before.items()
        }
        worst = max(falls, key=lambda name: (isnan(falls[name]), falls[name]))
        return Loss(f"the fall of {worst}", falls[worst])
    kept = record["fidelity"]
    agreement = kept["top1_agreement"]
    if agreement is None:
        return Loss("1 - cosine", 1 - (kept["cosine"] or 0.0))
    return Loss("top-1 answers that change", 1 - agreement)


def failed_gate(record: Mapping[str, Any], checks: Checks) -> str | None:
    """What a measured record fails of the gates, in one line."""
    if checks.max_drop is not None:
        what, amount = loss(record)
        if not amount <= checks.max_drop:
            return f"{what} is {amount:.4f}, more than --max-drop {checks.max_drop:g}; nothing was written"
    if checks.min_speedup is not None:
        speedup = record["latency_ms"]["speedup"]
        if speedup["low"] is None or speedup["low"] < checks.min_speedup:
            return (
                f"measured speed-up {speedup['value']:.2f}x (95% from {speedup['low'] or 0:.2f}x) on "
                f"{record['provider']}, less than --min-speedup {checks.min_speedup:g}; nothing was written"
            )
    return None
