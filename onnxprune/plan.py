"""The plan: for every constant, the indices kept per axis. JSON that can be replayed on the model or on a re-export."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.blocks import Block, blocks
from onnxprune.bypass import Bypass
from onnxprune.errors import PlanError
from onnxprune.folds import readers
from onnxprune.graph import Graph
from onnxprune.groups import Coupling
from onnxprune.rules.base import Dim, Index, Options

VERSION = 1


@dataclass(frozen=True, eq=False)
class Plan:
    """What stays of a model.

    Attributes:
        kept: constant (or split copy) -> axis -> indices kept, ascending. What is not named stays whole.
        splits: copy -> the shared constant that it is a copy of.
        options: those of the analysis: a replay decides between alternatives as the plan's maker did.
        folds: what a lossless plan does to the weights that stay before it cuts (see `lossless`).
        bypasses: blocks that are left out besides, with shifts for all channels that the model has.
        graph: the model that the plan was made for.
    """

    kept: Mapping[str, Mapping[int, Index]]
    splits: Mapping[str, str] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    folds: Mapping[str, Any] = field(default_factory=dict)
    graph: Graph | None = None
    given_sha256: str | None = None
    bypasses: Sequence[Bypass] = ()

    @cached_property
    def model_sha256(self) -> str:
        """SHA-256 of the model file that the plan was made for."""
        return self.given_sha256 or (digest(self.graph) if self.graph else "")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "version": VERSION,
            "model_sha256": self.model_sha256,
            "options": asdict(self.options),
            "kept": {n: {str(a): i.tolist() for a, i in axes.items()} for n, axes in self.kept.items()},
            "splits": dict(self.splits),
            **({"folds": self.folds} if self.folds else {}),
            **({"bypasses": [_told(bypass) for bypass in self.bypasses]} if self.bypasses else {}),
        }


def digest(graph: Graph) -> str:
    """SHA-256 of the model's file (of its serialisation, where it never was a file)."""
    if graph.path is None:
        return hashlib.sha256(graph.proto.SerializeToString(deterministic=True)).hexdigest()
    with graph.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_plan(path: str | Path) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: not a plan.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            raise PlanError(f"{path}: a plan of version {data['version']}; this program reads version {VERSION}")
        kept = {
            str(name): {_axis(axis): _indices(path, name, index) for axis, index in axes.items()}
            for name, axes in data["kept"].items()
        }
        splits = {str(k): str(v) for k, v in data.get("splits", {}).items()}
        options = _options(**data.get("options", {}))
        bypasses = [_bypass(**each) for each in data.get("bypasses", [])]
        sha256 = str(data["model_sha256"])
        return Plan(kept, splits, options, _folds(**data.get("folds", {})), None, sha256, bypasses)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{path}: not a plan file; make one with `onnxprune prune ... --plan {path}`") from error


def _axis(text: str) -> int:
    if not 0 <= int(text) < 256:
        raise ValueError(f"no axis: {text}")
    return int(text)


def _options(align: int = 1, **switches: bool) -> Options:
    if type(align) is not int or align < 1 or not all(isinstance(switch, bool) for switch in switches.values()):
        raise ValueError("no options of an analysis")
    return Options(align, **switches)


def _folds(**entries: list[Any]) -> dict[str, list[Any]]:
    if not set(entries) <= {"add", "bias"} or not all(isinstance(each, list) for each in entries.values()):
        raise ValueError("no folds")
    return entries


def _told(bypass: Bypass) -> dict[str, Any]:
    block = bypass.block
    return {"entry": block.entry, "exit": block.exit, "axis": block.axis, "shift": bypass.shift.tolist()}


def _bypass(entry: str, exit: str, axis: int, shift: list[float]) -> Bypass:
    mean = np.array(shift, dtype=np.float64)
    if not isinstance(entry, str) or not isinstance(exit, str) or type(axis) is not int or mean.ndim != 1:
        raise ValueError("no block")
    return Bypass(Block(entry, exit, axis, frozenset(), frozenset()), mean)


def _indices(path: str | Path, name: str, index: Any) -> Index:
    array = np.array(index)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind != "i" or array[0] < 0 or (np.diff(array) <= 0).any():
        raise PlanError(f"{path}: the indices kept of {name!r} are not ascending integers; make the plan again")
    return array.astype(np.intp)


def make_plan(coupling: Coupling, removed: NDArray[np.bool_], folds: Mapping[str, Any] | None = None) -> Plan:
    """The plan that removes a set of units.

    Args:
        coupling: the analysis.
        removed: [units], True where a unit goes.
        folds: weight changes of a lossless plan.

    Raises:
        PlanError: nothing would be left of a group.
    """
    graph = coupling.graph
    for group in coupling.groups:
        if removed.size and removed[group.units].all():
            raise PlanError(f"{graph.name}: all units of group {group.name!r} are removed; leave one at least")
    kept: dict[str, dict[int, Index]] = {}
    splits: dict[str, str] = {}
    taken = set(graph.shapes)
    for constant, uses in readers(coupling, folds or {}).items():
        cuts = {use: _cut_of(coupling, removed, use, len(graph.constants[constant].dims)) for use in uses}
        variants = Counter(_key(cut) for cut in cuts.values())
        pinned = constant in graph.captured or constant in graph.outputs
        original = _key({}) if pinned or not uses else variants.most_common(1)[0][0]
        named: dict[bytes, str] = {original: constant}
        for cut in cuts.values():
            key = _key(cut)
            if key not in named:
                named[key] = _fresh(f"{constant}_split", taken)
                splits[named[key]] = constant
            if cut:
                kept[named[key]] = cut
    return Plan(kept, splits, coupling.options, folds or {}, graph)


def bypasses_of(coupling: Coupling, plan: Plan) -> list[Bypass]:
    """The blocks of a model that a plan leaves out.

    Raises:
        PlanError: the model has no such block.
    """
    there = {(block.entry, block.exit, block.axis): block for block in blocks(coupling)} if plan.bypasses else {}
    found = []
    for bypass in plan.bypasses:
        given = bypass.block
        block = there.get((given.entry, given.exit, given.axis))
        if block is None or (coupling.graph.shapes[block.exit] or ())[block.axis] != bypass.shift.size:
            raise PlanError(
                f"{coupling.graph.name}: the plan leaves out what lies between {given.entry!r} and {given.exit!r}, "
                "which is no block of it; use its own model"
            )
        found.append(Bypass(block, bypass.shift))
    return found


def variant_of(coupling: Coupling, plan: Plan, use: str, removed: NDArray[np.bool_]) -> str:
    """The constant that a use reads after the cut: its own, or a split copy."""
    constant = coupling.source.get(use, use)
    if use == constant:
        return constant
    key = _key(_cut_of(coupling, removed, use, len(coupling.graph.constants[constant].dims)))
    copies = [constant, *(c for c, s in plan.splits.items() if s == constant)]
    return next(c for c in copies if _key(plan.kept.get(c, {})) == key)


def removed_units(coupling: Coupling, plan: Plan) -> NDArray[np.bool_]:
    """The units that a plan removes.

    Raises:
        PlanError: the plan is not for this model, or removes part of a unit, or something locked.
    """
    graph = coupling.graph
    gone = np.zeros(coupling.units, dtype=bool)
    stays = np.zeros(coupling.units, dtype=bool)
    copies: dict[str, list[str]] = {}
    for copy, constant in plan.splits.items():
        copies.setdefault(constant, []).append(copy)
    for name in (*plan.kept, *plan.splits.values()):
        constant = plan.splits.get(name, name)
        if constant not in graph.constants:
            raise PlanError(f"{graph.name}: the plan names {constant!r}, which is no constant of it; use its own model")
        for axis, index in plan.kept.get(name, {}).items():
            dims = graph.constants[constant].dims
            if axis >= len(dims) or index[-1] >= dims[axis]:
                raise PlanError(f"{graph.name}: {constant!r} has the shape {list(dims)}, not the plan's; use its model")
    for constant, uses in readers(coupling, plan.folds).items():
        variants = [plan.kept.get(n, {}) for n in (constant, *copies.get(constant, ()))]
        if len(variants) > 1 or (len(uses) > 1 and variants[0]) or not uses:
            continue  # which user reads which copy follows from the other tensors of the units
        for axis, size in enumerate(graph.constants[constant].dims):
            here = np.zeros(size, dtype=bool)
            if axis in variants[0]:
                here[:] = True
                here[variants[0][axis]] = False
            units = coupling.unit_of(Dim(uses[0], axis))
            if here.any() and (units is None or (units[here] < 0).any()):
                raise PlanError(f"{graph.name}: the plan cuts {constant!r} along axis {axis}, which is locked here")
            if units is not None:
                gone[units[here]] = True
                stays[units[~here & (units >= 0)]] = True
    if (both := np.flatnonzero(gone & stays)).size:
        name = coupling.groups[coupling.group_of[both[0]]].name
        raise PlanError(
            f"{graph.name}: the plan removes part of a unit of group {name!r}; make it again for this model"
        )
    again = make_plan(coupling, gone, plan.folds)
    if again.splits != plan.splits or {n: _key(c) for n, c in again.kept.items()} != {
        n: _key(c) for n, c in plan.kept.items()
    }:
        raise PlanError(f"{graph.name}: the plan does not fit what is coupled in this model; make it again")
    return gone


def _cut_of(coupling: Coupling, removed: NDArray[np.bool_], use: str, rank: int) -> dict[int, Index]:
    cut: dict[int, Index] = {}
    for axis in range(rank):
        index = kept_indices(coupling, removed, Dim(use, axis))
        if index is not None:
            cut[axis] = index
    return cut


def kept_indices(coupling: Coupling, removed: NDArray[np.bool_], dim: Dim) -> Index | None:
    """The indices of a dim that stay, or None where all do."""
    units = coupling.unit_of(dim)
    if units is None or not removed.size:
        return None
    stays = (units < 0) | ~removed[units]
    return None if stays.all() else np.flatnonzero(stays)


def _key(cut: Mapping[int, Index]) -> bytes:
    return b"".join(axis.to_bytes(1, "little") + index.tobytes() + b"|" for axis, index in sorted(cut.items()))


def _fresh(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}{number}" in taken:
        number += 1
    taken.add(f"{name}{number}")
    return f"{name}{number}"
