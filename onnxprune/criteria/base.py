"""How criteria are written: a function from a `Coupling` to one score a unit, higher meaning more important."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibrate import Statistics
from onnxprune.consumers import Consumer
from onnxprune.criteria.expression import parts_of
from onnxprune.errors import OptionError, at_least, one_of
from onnxprune.groups import Coupling, Member
from onnxprune.instrument import Want
from onnxprune.registry import Registry
from onnxprune.rules.base import Dim

Scores = NDArray[np.float64]
Array = NDArray[Any]


@dataclass(frozen=True)
class Context:
    """What a criterion may use.

    Attributes:
        coupling: the analysis.
        combine: how the tensors of a unit are put together.
        seed: for random choices.
        readers: the contractions that read channels.
        moments: statistics of what they read; None: there are no data.
    """

    coupling: Coupling
    combine: str = "mean"
    seed: int = 0
    readers: Sequence[Consumer] = ()
    moments: Mapping[Dim, Statistics] | None = None


class Criterion(Protocol):
    """Scores of all units, shape [units]; NaN where the criterion has nothing to say (the unit stays)."""

    def __call__(self, context: Context) -> Scores:
        """Score every unit."""


AUTO = "auto"
CRITERIA: Registry[Criterion] = Registry("criterion", "onnxprune.criteria")
_SIGHT: dict[str, Want] = {}  # of criteria that need data


def criterion(name: str, sees: Want | None = None) -> Callable[[Criterion], Criterion]:
    """Register a criterion; the first line of its docstring is what `list criteria` prints.

    Args:
        name: what users write.
        sees: what it needs to know of the data, besides sums; it then gets `readers` and `moments`. None: no data.
    """
    if sees is not None:
        _SIGHT[name] = sees
    return CRITERIA.register(name)


def sight_of(criterion: str) -> Want | None:
    """What a criterion, or any part of a sum, needs to know of the data; None: it needs none.

    Raises:
        OptionError: there is no such criterion.
    """
    found: Want | None = None
    for part in parts_of(criterion):
        CRITERIA.get(part.name)  # which also fills the table
        if (want := _SIGHT.get(part.name)) is not None:
            found = want if found is None else found | want
    return found


def gather(context: Context, index_scores: Callable[[Array, int], Scores], roles: tuple[str, ...]) -> Scores:
    """Score the slices of every coupled tensor and combine them per unit.

    Args:
        context: the analysis and how to combine ("mean", "sum" or "max" over a unit's tensors).
        index_scores: (weights, axis) -> one score an index of that axis.
        roles: which axes count: "out" (filters), "in" (what consumers read), "scale" (BatchNorm's gamma)...

    Returns:
        [units]; NaN for units that own no axis of these roles.
    """
    coupling = context.coupling
    one_of("--combine", context.combine, COMBINE)
    total = np.zeros(coupling.units)
    tensors = np.zeros(coupling.units)
    for member, weights in _read(coupling, roles):
        units = coupling.unit_of(Dim(member.use, member.axis))
        assert units is not None
        free = units >= 0
        indices = np.bincount(units[free], minlength=coupling.units)
        scores = np.bincount(units[free], weights=index_scores(weights, member.axis)[free], minlength=coupling.units)
        mean = scores / np.maximum(indices, 1)
        total = np.maximum(total, mean) if context.combine == "max" else total + mean
        tensors += indices > 0
    if context.combine == "mean":
        total = total / np.maximum(tensors, 1)
    return np.where(tensors > 0, total, np.nan)


COMBINE = ("mean", "sum", "max")
NORMALISE = ("mean", "max", "none")


def _read(coupling: Coupling, roles: tuple[str, ...]) -> Iterator[tuple[Member, Array]]:
    """Members with these roles and their weights in float, each tensor read once."""
    last, weights = "", np.zeros(0)
    for member in coupling.members:
        if member.role in roles:
            if member.constant != last:
                last, weights = member.constant, dequantized(coupling, member.constant)
            yield member, weights


def dequantized(coupling: Coupling, constant: str) -> Array:
    """A constant as float32 or wider; integers are taken through the DequantizeLinear that reads them."""
    graph = coupling.graph
    array = graph.array(constant)
    if array.dtype in (np.float32, np.float64):
        return array
    if array.dtype.kind not in "iu":
        return array.astype(np.float32)
    for node, slot in graph.consumers.get(constant, ()):
        if node.op == "DequantizeLinear" and slot == 0 and all(n in graph.constants for n in node.inputs[1:] if n):
            shape = [1] * array.ndim
            factors = [graph.array(n).astype(np.float32) for n in node.inputs[1:] if n]
            if factors[0].size > 1:
                shape[node.attrs.get("axis", 1) % array.ndim] = -1
            scale, *zero = (f.reshape(shape) if array.ndim else f for f in factors)
            return (array.astype(np.float32) - (zero[0] if zero else 0)) * scale
    return array.astype(np.float32)


def score(
    coupling: Coupling,
    criterion: str = "l2",
    combine: str = "mean",
    normalise: str = "mean",
    seed: int = 0,
    readers: Sequence[Consumer] = (),
    moments: Mapping[Dim, Statistics] | None = None,
) -> Scores:
    """Score all units, comparable between groups.

    Args:
        coupling: the analysis.
        criterion: a registered name, or a weighted sum of them as in "0.7*wanda+0.3*l1": each is made comparable, then
            their weighted mean is taken, for a unit on which one has nothing to say that of the others.
        combine: "mean", "sum" or "max" over the tensors of a unit.
        normalise: "mean", "max" or "none": see `comparable`.
        seed: for random criteria.
        readers, moments: for criteria that see data: what `observe` gives.

    Raises:
        OptionError: an option that does not exist, or a criterion that finds nothing to read.
    """
    at_least("--seed", seed, 0)
    context = Context(coupling, combine, seed, readers, moments)
    total, weight = np.zeros((2, coupling.units))
    for part in parts_of(criterion):
        if sight_of(part.name) is not None and moments is None:
            raise OptionError(f"--criterion {part.name} looks at activations: give --data (or --data synthetic)")
        made = comparable(CRITERIA.get(part.name)(context), coupling.group_of, normalise)
        there = ~np.isnan(made)
        total[there] += part.weight * made[there]
        weight[there] += part.weight
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan)


def comparable(scores: Scores, group_of: NDArray[np.int32], how: str = "mean") -> Scores:
    """Make the scores of different groups comparable.

    Args:
        scores: [units].
        group_of: [units].
        how: "mean" or "max": divide by the group's; "none": leave as they are.
    """
    one_of("--normalise", how, NORMALISE)
    if how == "none" or not scores.size:
        return scores
    groups = int(group_of.max()) + 1
    valid = np.isfinite(scores)
    if how == "mean":
        count = np.bincount(group_of[valid], minlength=groups)
        base = np.bincount(group_of[valid], weights=scores[valid], minlength=groups) / np.maximum(count, 1)
    else:
        base = np.zeros(groups)
        np.maximum.at(base, group_of[valid], scores[valid])
    return scores / np.where(base > 0, base, 1.0)[group_of]
