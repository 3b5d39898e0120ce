"""What a `Coupling` holds: units in groups, the parameters that they take part in, and the lock ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from onnxprune import bodies
from onnxprune.graph import Graph, Node
from onnxprune.rules.base import ZERO_PRESERVING, Dim, Linear, NodeView, Options, Sized
from onnxprune.sizes import factor
from onnxprune.solver import Cause, Solution


@dataclass(frozen=True)
class Member:
    """An axis of a parameter that loses indices when units go. `role`: what the axis does in its operator."""

    constant: str  # the model's name for it
    use: str  # the same, or a private name where one of several users reads a shared vector
    axis: int
    role: str  # "out", "in", "bias", "scale" or "param"


@dataclass(frozen=True)
class Group:
    """Units that touch the same dims in the same way; ranking happens inside a group."""

    name: str
    first: int  # its units are numbered first .. first + units - 1 in `order`
    units: NDArray[np.intp]
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Locked:
    """A parameter's axis that cannot be cut."""

    value: str
    axis: int
    node: str
    op: str
    reason: str
    params: int
    option: str | None = None


@dataclass(eq=False)
class Coupling:
    """What can be cut of a model. Units are numbered 0..n-1; `group_of[u]` is the group of unit u."""

    graph: Graph
    options: Options
    views: list[NodeView]
    linears: list[tuple[Node, Linear]]
    source: dict[str, str]  # private name of a shared vector's use -> the constant
    sized: list[tuple[Node, Sized]]
    solution: Solution
    groups: tuple[Group, ...]
    observed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # shapes met in the data, for one sample

    @property
    def group_of(self) -> NDArray[np.int32]:
        """Unit -> group."""
        return self.solution.group_of

    @property
    def units(self) -> int:
        """Number of units."""
        return int(self.group_of.size)

    def unit_of(self, dim: Dim) -> NDArray[np.int32] | None:
        """Index -> unit (-1: locked) along a dim, or None where nothing of it can be cut."""
        number = self.solution.class_of.get(dim)
        return None if number is None else self.solution.unit_of[number]

    def size(self, dim: Dim) -> int:
        """Indices of a dim; 1 where the model leaves it open."""
        number = self.solution.class_of.get(dim)
        return 1 if number is None else self.solution.sizes[number]

    def scale(self, dim: Dim) -> float:
        """What the indices of a dim count in a cost: those of a multiple of an open size are stand-ins for one."""
        shape = self.graph.shapes.get(dim.value) or ()
        known = shape[dim.axis] if dim.axis < len(shape) else None
        if dim.value in self.observed and not isinstance(known, int):
            return self.observed[dim.value][dim.axis] / self.size(dim)
        return factor(known) / self.size(dim) if isinstance(known, str) and self.size(dim) > 1 else 1.0

    @cached_property
    def uses(self) -> dict[str, tuple[str, ...]]:
        """Constant -> the names under which its users read it."""
        found: dict[str, list[str]] = {name: [] for name in self.graph.constants}
        for use, constant in self.source.items():
            found[constant].append(use)
        return {name: tuple(uses) or (name,) for name, uses in found.items()}

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Every axis of every parameter that can lose indices."""
        named = roles(self)
        return tuple(
            Member(constant, use, axis, named.get(Dim(use, axis), "param"))
            for constant in self.graph.parameters
            for use in self.uses[constant]
            for axis in range(len(self.graph.constants[constant].dims))
            if (units := self.unit_of(Dim(use, axis))) is not None and (units >= 0).any()
        )

    @cached_property
    def per_unit(self) -> csr_array:
        """Matrix [classes, groups]: how many indices of a class one unit of a group takes."""
        group_units = np.bincount(self.group_of, minlength=len(self.groups))
        rows, columns, counts = [], [], []
        for number, units in enumerate(self.solution.unit_of):
            if units is None:
                continue
            taken = np.bincount(self.group_of[units[units >= 0]], minlength=len(self.groups))
            hit = np.flatnonzero(taken)
            rows.append(np.full(hit.size, number))
            columns.append(hit)
            counts.append(taken[hit] // group_units[hit])
        none = np.zeros(0, dtype=np.intp)
        flat = [np.concatenate([none, *part]) for part in (counts, rows, columns)]
        shape = (len(self.solution.sizes), len(self.groups))
        return csr_array((flat[0].astype(float), (flat[1], flat[2])), shape=shape)

    @cached_property
    def channels(self) -> NDArray[np.bool_]:
        """[classes]: those that a contraction sums over or makes."""
        found = np.zeros(len(self.solution.sizes), dtype=bool)
        numbers = {self.solution.class_of.get(d, -1) for _, spec in self.linears for d in (spec.w_in, spec.w_out)}
        found[list(numbers - {-1})] = True
        return found

    @cached_property
    def locked(self) -> tuple[Locked, ...]:
        """The lock ledger: for every parameter, its axes that cannot be cut (kernel windows apart)."""
        return tuple(_ledger(self))

    @cached_property
    def covered(self) -> frozenset[str]:
        """Parameters of which at least one axis can be cut."""
        return frozenset(m.constant for m in self.members if self._cuttable(m))

    def _cuttable(self, member: Member) -> bool:
        units = self.unit_of(Dim(member.use, member.axis))
        sizes = np.bincount(self.group_of, minlength=len(self.groups))
        return units is not None and bool((sizes[self.group_of[units[units >= 0]]] > 1).any())


def roles(coupling: Coupling) -> dict[Dim, str]:
    """What a parameter's axis does: contracted ("in"), produced ("out"), a bias or a normalisation's scale."""
    found: dict[Dim, str] = {}
    for _, spec in coupling.linears:
        found[spec.w_in], found[spec.w_out] = "in", "out"
        if spec.bias:
            rank = len(coupling.graph.shapes.get(coupling.source.get(spec.bias, spec.bias)) or ())
            found[Dim(spec.bias, rank - 1)] = "bias"
            _trace_back(coupling, {"bias": Dim(spec.bias, rank - 1)}, found)
        _trace_back(coupling, {"out": spec.w_out, "in": spec.w_in}, found)
    for view in coupling.views:
        if view.node.op == "BatchNormalization":
            found[Dim(view.names[1], 0)] = "scale"
            found |= {Dim(view.names[s], 0): "shift" for s in (2, 3, 4)}
    return found


def _trace_back(coupling: Coupling, known: dict[str, Dim], found: dict[Dim, str]) -> None:
    """Carry roles back through Identity, Transpose, DequantizeLinear... to the constant behind the tensor."""
    graph, class_of = coupling.graph, coupling.solution.class_of
    name = next(iter(known.values())).value
    while (maker := graph.producer.get(name)) is not None and maker.op in ZERO_PRESERVING and maker.inputs:
        name = coupling.views[maker.index].names[0]
        for axis in range(len(graph.shapes.get(coupling.source.get(name, name)) or ())):
            for role, dim in known.items():
                if class_of[Dim(name, axis)] == class_of.get(dim):
                    found.setdefault(Dim(name, axis), role)


def group(coupling: Coupling) -> Iterator[Group]:
    """The groups of a solution, named after the first parameter that they produce."""
    order = np.argsort(coupling.group_of, kind="stable")
    bounds = np.searchsorted(coupling.group_of[order], np.arange(coupling.group_of.max(initial=-1) + 2))
    members: dict[int, list[Member]] = {}
    for member in coupling.members:
        units = coupling.unit_of(Dim(member.use, member.axis))
        if units is not None:
            for g in np.unique(coupling.group_of[units[units >= 0]]):
                members.setdefault(int(g), []).append(member)
    taken: Counter[str] = Counter()
    for g, (start, end) in enumerate(pairwise(bounds)):
        ours = members.get(g, [])
        first = next((m for m in ours if m.role == "out"), ours[0] if ours else None)
        name = first.constant if first else f"group {g}"
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}#{taken[name]}"
        yield Group(name, int(start), order[start:end], tuple(ours))


def windows(coupling: Coupling) -> frozenset[Dim]:
    """The axes of convolution weights that run over the window: nobody expects them to be cut."""
    convs = [v for v in coupling.views if not v.node.domain and v.node.op.startswith("Conv") and v.has(1)]
    return frozenset(Dim(v.names[1], axis) for v in convs for axis in range(2, 9))


def _ledger(coupling: Coupling) -> Iterator[Locked]:
    graph, solution = coupling.graph, coupling.solution
    kernels = windows(coupling)
    for constant in graph.parameters:
        for use in coupling.uses[constant]:
            for axis, size in enumerate(graph.constants[constant].dims):
                number = solution.class_of.get(Dim(use, axis))
                state = None if number is None else solution.locks[number]
                if size <= 1 or Dim(use, axis) in kernels or state is None:
                    continue
                if isinstance(state, np.ndarray):
                    cause, share = int(state[state != 0][0]), float(np.count_nonzero(state) / state.size)
                else:
                    cause, share = state, 1.0
                yield _locked(graph, constant, axis, solution.causes[cause], round(graph.size(constant) * share))
    for part in bodies.inner(graph):
        for axis in [axis for axis, size in enumerate(part.dims) if size > 1] or [0]:
            yield Locked(part.name, axis, part.node.label, part.node.op, part.reason, part.params)


def _locked(graph: Graph, value: str, axis: int, cause: Cause, params: int) -> Locked:
    node = graph.nodes[cause.node] if cause.node is not None else None
    label, op = (node.label, node.op) if node else ("", "")
    return Locked(value, axis, label, op, cause.reason, params, cause.option)


def summary(coupling: Coupling) -> dict[str, Any]:
    """Counts for the record: parameters, those with a cuttable axis, groups and units."""
    graph = coupling.graph
    return {
        "params": bodies.total(graph),
        "cuttable_params": sum(graph.size(n) for n in coupling.covered),
        "groups": len(coupling.groups),
        "units": coupling.units,
    }
