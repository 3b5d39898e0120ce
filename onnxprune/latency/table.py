"""A model's latency on a provider as a function of its widths, and how far it is to be believed."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

from onnxprune.cost import Cost
from onnxprune.groups import Coupling
from onnxprune.latency.fit import latency
from onnxprune.latency.operators import Operators, made

DOUBTFUL = 0.2  # a table whose predictions are off by more, in the median, is not kept


@dataclass(frozen=True, eq=False)
class Table:
    """What was measured.

    Attributes:
        conditions: what it holds for: model, inputs, provider, threads, machine...
        block: channels in which widths count.
        parts: value that a node makes -> milliseconds in the original, of each product of its widths (see `fit`).
        before: milliseconds of the original.
        checked: (predicted, measured) latency of networks that were not fitted to, as shares of the original's.
        networks: that were fitted to.
        by_node: whether operators were measured one by one.
        seconds: that measuring took.
        model: its name, for people.
    """

    conditions: Mapping[str, Any]
    block: int
    parts: Mapping[str, list[float]]
    before: float
    checked: list[tuple[float, float]]
    networks: int
    by_node: bool
    seconds: float
    model: str

    @cached_property
    def errors(self) -> list[float]:
        """Of the predictions that were checked, relative to what was measured; ascending."""
        return sorted(abs(predicted / measured - 1) for predicted, measured in self.checked)

    @property
    def error(self) -> float:
        """Their median."""
        return statistics.median(self.errors)

    def cost(self, coupling: Coupling) -> Cost:
        """Predicted milliseconds as a cost of widths."""
        maker = {value: node.index for node in coupling.graph.nodes for value in node.outputs if value}
        return latency(coupling, {maker[value]: parts for value, parts in self.parts.items()}, self.block)

    def summary(self) -> dict[str, Any]:
        """For the record: how much the predictions are to be believed."""
        return {
            "block": self.block,
            "by": "node" if self.by_node else "kind",
            "networks": self.networks,
            "error": {"median": self.error, "most": self.errors[-1], "networks": len(self.errors)},
            "before_ms": self.before,
            "seconds": self.seconds,
        }

    def at(self, before: float) -> Table:
        """The same for a machine on which the original takes so many milliseconds."""
        factor = before / self.before
        parts = {value: [ms * factor for ms in each] for value, each in self.parts.items()}
        return replace(self, before=before, parts=parts)

    def fits(self, coupling: Coupling) -> bool:
        """Whether it can be one of this model."""
        operators, found = Operators(coupling), {made(node): node.index for node in coupling.graph.nodes}
        return all(
            value in found and len(parts) == operators.parts(found[value]) for value, parts in self.parts.items()
        )


def parsed(entry: Mapping[str, Any] | None) -> Table | None:
    """A table from what is kept of it; None: that is broken."""
    try:
        assert entry is not None
        found = Table(
            conditions={**entry["conditions"]},
            block=operator.index(entry["block"]),
            parts={str(value): [float(ms) for ms in parts] for value, parts in entry["parts"].items()},
            before=float(entry["before"]),
            checked=[(float(p), float(m)) for p, m in entry["checked"]],
            networks=operator.index(entry["networks"]),
            by_node=bool(entry["by_node"]),
            seconds=float(entry["seconds"]),
            model=str(entry["model"]),
        )
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
        return None
    numbers = [found.before, *(n for pair in found.checked for n in pair)]
    parts = [ms for each in found.parts.values() for ms in each]
    whole = all(0 < n < inf for n in numbers) and all(0 <= ms < inf for ms in parts) and found.checked and any(parts)
    named = {"provider", "threads", "inputs"} <= set(found.conditions)
    return found if whole and named and found.block > 0 else None
