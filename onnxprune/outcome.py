"""From a decision to a model: cut, and say in the record what was cut, what is locked and what became smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import bodies, cost
from onnxprune import graph as graphs
from onnxprune.bypass import Bypass, bypassed, written
from onnxprune.bypass import oracle as oracle_of
from onnxprune.coupling import couple
from onnxprune.graph import Graph
from onnxprune.groups import Coupling, Group
from onnxprune.plan import Plan, bypasses_of, removed_units
from onnxprune.rules.base import Dim
from onnxprune.settle import settled
from onnxprune.shallow import shallower
from onnxprune.sizes import parse
from onnxprune.steps import Context, Outcome, Proof
from onnxprune.surgery import cut, mask
from onnxprune.without import cut_down, touched


@dataclass(frozen=True)
class Replay:
    """A pass that cuts what a plan says.

    Attributes:
        plan: says it.
        exact: whether it must compute the masked original's function; folds do for the weights that they were made of.
    """

    plan: Plan
    exact: bool = True

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Cut.

        Raises:
            PlanError: it is not a plan for this model.
        """
        with context.stage("analysis"):
            coupling = couple(graph, self.plan.options)
            removed = removed_units(coupling, self.plan)
            plan = replace(self.plan, bypasses=bypasses_of(coupling, self.plan))
        return carry_out(coupling, removed, plan, context, self.exact)


@dataclass(frozen=True, eq=False)
class Found:
    """A pass that has its result already, proved and with what is to be said about it.

    Attributes:
        model: the result.
        plan: what was cut.
        notes: what the record of the run that made it says.
    """

    model: ModelProto | Path
    plan: Plan | None
    notes: Mapping[str, Any]

    def __call__(self, graph: Graph, context: Context) -> Outcome:
        """Hand it on."""
        return Outcome(self.model, self.notes, self.plan)


def carry_out(
    coupling: Coupling, removed: NDArray[np.bool_], plan: Plan, context: Context, exact: bool = True
) -> Outcome:
    """Cut, leave out the plan's blocks, and say what went."""
    with context.stage("cut"):
        idle = not (removed.any() or plan.folds or plan.bypasses)
        model = coupling.graph.proto if idle else context.make(lambda store: cut(coupling, plan, removed, store))
        if plan.bypasses:
            model = _shallower(coupling, removed, plan.bypasses, model, context)

    def oracle() -> ModelProto | Path:
        if plan.folds:
            return coupling.graph.path or coupling.graph.proto
        whole = context.make(lambda store: mask(coupling, removed, store), "masked.onnx")
        return _around(coupling, removed, plan.bypasses, whole, context) if plan.bypasses else whole

    what = "the original" if plan.folds else Proof.what
    proof = Proof(oracle, exact=exact and not plan.options.inexact, what=what)
    notes = describe(coupling, removed, plan.bypasses)
    return Outcome(model, notes, plan, touched=touched(coupling, plan.bypasses), proof=proof)


def _shallower(
    coupling: Coupling,
    removed: NDArray[np.bool_],
    bypasses: Sequence[Bypass],
    model: ModelProto | Path,
    context: Context,
) -> ModelProto | Path:
    """A cut model without some blocks."""
    graph = graphs.load(model)
    left = cut_down(coupling, removed, bypasses, graph)
    view, _ = settled(bypassed(graph, left), left)
    return context.make(lambda store: written(graph, view, store))


def _around(
    coupling: Coupling,
    removed: NDArray[np.bool_],
    bypasses: Sequence[Bypass],
    model: ModelProto | Path,
    context: Context,
) -> ModelProto | Path:
    """A masked model in which what blocks make counts nothing."""
    graph, left = graphs.load(model), []
    for bypass in bypasses:
        units = coupling.unit_of(Dim(bypass.block.exit, bypass.block.axis))
        gone = np.append(removed, False)[units] if units is not None else np.zeros(bypass.shift.size, dtype=bool)
        left.append(replace(bypass, shift=np.where(gone, 0.0, bypass.shift)))
    return context.make(lambda store: oracle_of(graph, left, store), "whole.onnx")


def joined(record: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
    """The record with what one more pass says: what was before it is what was before all of them."""
    found = {**record, **notes}
    if "macs" in record and "macs" in notes:
        found["macs"] = {"before": record["macs"]["before"], "after": notes["macs"]["after"]}
    if "groups" in record and "groups" in notes:
        first = {group["name"]: group for group in record["groups"]}
        found["groups"] = [_since(first.get(group["name"], group), group) for group in notes["groups"]]
    return found


def _since(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    units = {"before": earlier["units"]["before"], "after": now["units"]["after"]}
    return {**now, "macs": earlier["macs"], "units": units}


def describe(coupling: Coupling, removed: NDArray[np.bool_], bypasses: Sequence[Bypass] = ()) -> dict[str, Any]:
    """The record's entries about the analysis and the cut."""
    gone = np.bincount(coupling.group_of[removed], minlength=len(coupling.groups))
    macs = cost.macs(coupling)
    share, after = macs.per_group(), shallower(macs, [bypass.block for bypass in bypasses])
    gone = np.where((share > 0) & (after.per_group() == 0), [g.units.size for g in coupling.groups], gone)
    return {
        "align": coupling.options.align,
        "open_inputs": {} if coupling.observed else _open_inputs(coupling.graph),
        "open_inside": _open_inside(coupling),
        "macs": {"before": macs.before, "after": after(gone)},
        "groups": [
            {
                "name": group.name,
                "node": _node(coupling, group),
                "units": {"before": group.units.size, "after": int(group.units.size - gone[number])},
                "macs": float(share[number]),
                "tensors": list(dict.fromkeys(m.constant for m in group.members)),
            }
            for number, group in enumerate(coupling.groups)
        ],
        "cuttable": cuttable(coupling),
        "locked": [
            {
                "value": x.value,
                "axis": x.axis,
                "node": x.node,
                "op": x.op,
                "reason": x.reason,
                "params": x.params,
                **({"option": x.option} if x.option else {}),
            }
            for x in coupling.locked
        ],
    }


def prepared(original: Graph) -> dict[str, Any]:
    """What was done to the model so that it could be analysed."""
    done = {"inlined": list(original.inlined), "folded": list(original.folded)}
    return {name: what for name, what in done.items() if what}


def sizes(original: Graph, pruned: ModelProto | Path, written: Path | None) -> dict[str, Any]:
    """The record's entries about parameters and files; `written` is the draft of the file."""
    after = graphs.load(pruned)
    return {
        "params": {
            "before": bodies.total(original),
            "after": bodies.total(after),
        },
        "file_bytes": {
            "before": graphs.file_bytes(original),
            "after": _file_bytes(pruned, after, written),
        },
    }


def _file_bytes(pruned: ModelProto | Path, after: Graph, written: Path | None) -> int:
    """As it is, not as it is read: its tensors may be sparse."""
    if written is not None:
        return sum(p.stat().st_size for p in written.parent.iterdir())
    return int(pruned.ByteSize()) if isinstance(pruned, ModelProto) else graphs.file_bytes(after)


def cuttable(coupling: Coupling) -> dict[str, float]:
    """The share of parameters and of MACs in which at least one axis can be cut."""
    graph = coupling.graph
    total = bodies.total(graph)
    macs = cost.macs(coupling)
    moving = sum(f for f, c in zip(macs.terms(), macs.movable(), strict=True) if c)
    return {
        "params": sum(graph.size(n) for n in coupling.covered) / max(total, 1),
        "macs": moving / max(macs.before, 1.0),
    }


def _node(coupling: Coupling, group: Group) -> str | None:
    """The node that makes a group's units."""
    makers = [m.constant for m in group.members if m.role == "out"] or [m.constant for m in group.members]
    readers = coupling.graph.consumers.get(makers[0], ()) if makers else ()
    return next((node.label for node, _ in readers), None)


def _open_inside(coupling: Coupling) -> list[str]:
    """Nodes with weights that run as often as data say (for each box found, say): costs count them once."""
    shapes = coupling.graph.shapes
    if coupling.observed:
        return []
    named = {a for name in coupling.graph.inputs for s in shapes.get(name) or () if s for a in parse(s).atoms}
    found = []
    for node, _ in coupling.linears:
        sizes = [s for s in shapes.get(node.outputs[0]) or () if isinstance(s, str)]
        if any(not named.issuperset(parse(s).atoms) for s in sizes):
            found.append(node.label)
    return found


def _open_inputs(graph: Graph) -> dict[str, list[int | str | None]]:
    """Inputs that leave sizes open besides the batch: costs then count those as 1."""
    shapes = {name: list(graph.shapes.get(name) or ()) for name in graph.inputs}
    return {name: shape for name, shape in shapes.items() if any(not isinstance(n, int) for n in shape[1:])}
