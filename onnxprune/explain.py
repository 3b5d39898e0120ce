"""Why each axis of a tensor can or cannot be cut: the group that it is in, or the way to what locks it."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune import uses
from onnxprune.bodies import Inner, inner
from onnxprune.groups import Coupling, roles, windows
from onnxprune.lookup import find
from onnxprune.rules.base import Alternative, Dim, Index
from onnxprune.web import Decision, Web

Record = dict[str, Any]


def explain(coupling: Coupling, name: str) -> list[Record]:
    """For a tensor, or for the weights and outputs of a node: each axis with its group, or with what locks it and how.

    Raises:
        OptionError: nothing has this name; the text has names that are like it.
    """
    hidden = {part.name: part for part in inner(coupling.graph)}
    web, known = Web(coupling), roles(coupling)
    return [
        _hidden(hidden[value]) if value in hidden else _value(web, value, known)
        for value in find(coupling.graph, name, hidden)
    ]


def _value(web: Web, value: str, known: dict[Dim, str]) -> Record:
    graph = web.coupling.graph
    shape = graph.shapes.get(value)
    maker = graph.producer.get(value) if value not in graph.constants else None
    uses = web.coupling.uses.get(value, (value,))
    return {
        "value": value,
        "kind": _kind(web, value),
        "shape": None if shape is None else list(shape),
        "made_by": None if maker is None else {"node": maker.label, "op": maker.op},
        "read_by": [{"node": node.label, "op": node.op} for node, _ in graph.consumers.get(value, ())],
        "axes": [
            {
                **_axis(web, Dim(use, axis), size, known),
                **({"reader": _reader(web.coupling, use)} if len(uses) > 1 else {}),
            }
            for use in uses
            for axis, size in enumerate(shape or ())
        ],
    }


def _kind(web: Web, value: str) -> str:
    graph = web.coupling.graph
    if value in graph.constants:
        return "parameter" if value in graph.parameters else "constant"
    return "graph input" if value in graph.inputs else "graph output" if value in graph.outputs else "tensor"


def _reader(coupling: Coupling, use: str) -> str:
    """The node that reads a parameter; a private name, `bias@12:2`, says which."""
    graph = coupling.graph
    if use in coupling.source:
        return graph.nodes[uses.reader(use)[0]].label
    return graph.consumers[use][0][0].label


def _axis(web: Web, dim: Dim, size: int | str | None, known: dict[Dim, str]) -> Record:
    role = "window" if dim in windows(web.coupling) else known.get(dim, "")
    return {
        "axis": dim.axis,
        "size": size,
        "role": role,
        "groups": [_group(web, dim, number) for number in _groups(web, dim)],
        "locks": [_lock(web, dim, cause, index) for cause, index in web.causes(dim).items()],
        "choices": [_choice(web, decision) for decision in web.decisions if dim in decision.choice.dims],
    }


def _groups(web: Web, dim: Dim) -> list[int]:
    units = web.coupling.unit_of(dim)
    return [] if units is None else np.unique(web.coupling.group_of[units[units >= 0]]).tolist()


def _group(web: Web, dim: Dim, number: int) -> Record:
    coupling = web.coupling
    group = coupling.groups[number]
    members = [
        {
            "value": m.constant,
            "axis": m.axis,
            "role": m.role,
            "width": _width(coupling, Dim(m.use, m.axis), number),
            "node": _reader(coupling, m.use),
        }
        for m in group.members
    ]
    return {
        "name": group.name,
        "node": next((m["node"] for m in members if m["role"] == "out"), None),
        "units": int(group.units.size),
        "width": _width(coupling, dim, number),
        "members": members,
    }


def _width(coupling: Coupling, dim: Dim, group: int) -> int:
    """How many indices of an axis go with a unit."""
    return int(coupling.per_unit[coupling.solution.class_of[dim], group])


def _lock(web: Web, dim: Dim, number: int, index: Index | None) -> Record:
    cause = web.coupling.solution.causes[number]
    graph, source = web.coupling.graph, web.coupling.source
    node = None if cause.node is None else graph.nodes[cause.node]
    steps: list[Record] = []
    for place, link in web.path(dim, number):
        step: Record = {"value": source.get(place.value, place.value), "axis": place.axis}
        if link is not None:
            step |= {"node": graph.nodes[link.node].label, "op": graph.nodes[link.node].op}
            step |= {"way": link.way} if link.way else {}
        steps.append(step)
    return {
        "indices": None if index is None else index.tolist(),
        "node": node.label if node else "",
        "op": node.op if node else "",
        "reason": cause.reason,
        **({"option": cause.option} if cause.option else {}),
        "path": steps,
    }


def _choice(web: Web, decision: Decision) -> Record:
    node = web.coupling.graph.nodes[decision.node]

    def way(alternative: Alternative) -> Record:
        causes = [web.coupling.solution.causes[c] for dim in alternative.cuts for c in web.causes(dim)]
        blocked = next((c for c in causes if c.node != decision.node), None) if decision.taken is None else None
        return {
            "name": alternative.name,
            "cuts": [{"value": d.value, "axis": d.axis} for d in alternative.cuts],
            "taken": alternative is decision.taken,
            **({"blocked": blocked.reason} if blocked else {}),
        }

    return {"node": node.label, "op": node.op, "ways": [way(a) for a in decision.choice.alternatives]}


def _hidden(part: Inner) -> Record:
    at = {"node": part.node.label, "op": part.node.op}
    lock: Record = {"indices": None, **at, "reason": part.reason, "path": []}
    axes = [
        {"axis": axis, "size": size, "role": "", "groups": [], "locks": [lock], "choices": []}
        for axis, size in enumerate(part.dims)
    ]
    shape = list(part.dims)
    return {"value": part.name, "kind": "parameter", "shape": shape, "made_by": None, "read_by": [at], "axes": axes}
