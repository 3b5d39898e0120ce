"""Shrink a model without loss, and check everything that has to hold for every model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from onnxprune import runtime
from onnxprune.coupling import couple
from onnxprune.feeds import Feed, random_feeds
from onnxprune.graph import load
from onnxprune.groups import Coupling
from onnxprune.lossless import lossless
from onnxprune.parity import compare
from onnxprune.plan import Plan, make_plan, read_plan, removed_units
from onnxprune.rules.base import Dim, Options
from onnxprune.surgery import cut
from onnxprune.testing import arrays

TOLERANCE = 1e-5
Edit: TypeAlias = Callable[[NDArray[Any]], object]


@dataclass(frozen=True, eq=False)
class Shrunk:
    coupling: Coupling
    removed: NDArray[np.bool_]
    plan: Plan
    model: ModelProto

    def gone(self, constant: str, axis: int = 0) -> list[int]:
        """Indices of a constant's axis that were removed."""
        units = self.coupling.unit_of(Dim(self.coupling.uses[constant][0], axis))
        return [] if units is None else np.flatnonzero((units >= 0) & self.removed[units]).tolist()

    def left(self, constant: str) -> tuple[int, ...]:
        """Shape of a constant after the cut."""
        return arrays(self.model)[constant].shape

    def folded(self, kind: str) -> list[Any]:
        """The plan's folds of a kind, "add" or "bias"."""
        return list(self.plan.folds.get(kind, []))


Shrink: TypeAlias = Callable[..., Shrunk]
Change: TypeAlias = Callable[[ModelProto, Mapping[str, Edit]], ModelProto]


@pytest.fixture
def shrink(tmp_path: Path) -> Shrink:
    def run(
        model: ModelProto,
        feeds: Sequence[Feed] | None = None,
        tolerance: float = TOLERANCE,
        options: Options | None = None,
        keep: NDArray[np.bool_] | None = None,
    ) -> Shrunk:
        coupling = couple(load(model), options)
        removed, folds = lossless(coupling, keep)
        plan = make_plan(coupling, removed, folds)
        small = cut(coupling, plan, removed)
        onnx.checker.check_model(small, full_check=True)
        given = feeds or random_feeds(model, 0, 2)
        before, after = (runtime.session(m, threads=1, optimize=False, arena=False) for m in (model, small))
        for feed in given:
            parity = compare(runtime.run(before, feed), runtime.run(after, feed), tolerance)
            assert parity.exact, [(o.name, o.relative, o.note) for o in parity.outputs]
        for group in coupling.groups:
            assert not removed[group.units].all()
        (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()), encoding="utf-8")
        again = read_plan(tmp_path / "plan.json")
        fresh = couple(load(model), again.options)
        units = removed_units(fresh, again)
        assert np.array_equal(units, removed)
        assert cut(fresh, again, units).SerializeToString(deterministic=True) == small.SerializeToString(
            deterministic=True
        )
        return Shrunk(coupling, removed, plan, small)

    return run


@pytest.fixture
def change() -> Change:
    def edit(model: ModelProto, edits: Mapping[str, Edit]) -> ModelProto:
        """Change initializers in place, by name."""
        for tensor in model.graph.initializer:
            if tensor.name in edits:
                array = np.array(numpy_helper.to_array(tensor))
                edits[tensor.name](array)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return model

    return edit
