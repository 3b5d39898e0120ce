"""Pruning in steps: little by little, scored again, and still one exact cut of the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import Checks, Result
from onnxprune.coupling import couple
from onnxprune.errors import OptionError
from onnxprune.graph import load
from onnxprune.iterate import bounds, iterate, narrowed, rescored
from onnxprune.parts import Engine
from onnxprune.passes import get
from onnxprune.problem import Limits, problem_of
from onnxprune.testing import Builder, close
from tests.trained import pictures, trained

ENGINE = Engine(threads=1)
FAST: dict[str, Any] = {"align": 1, "threads": 1, "checks": Checks(seconds=0)}


def prune(model: onnx.ModelProto, target: str = "macs=0.5", **options: Any) -> Result:
    return onnxprune.prune(model, target, **{**FAST, **options})


def chain() -> onnx.ModelProto:
    b = Builder(seed=4)
    y = b.input("x", "N", 3, 8, 8)
    for name in ("one", "two", "three"):
        y = b.op("Relu", b.conv(y, 16, name=name))
    return b.model(close(b, y))


def test_what_remains_falls_by_the_same_share_in_every_step() -> None:
    found = list(bounds(100.0, 12.5, 3))
    np.testing.assert_allclose(found, [50, 25, 12.5])
    assert list(bounds(100.0, 30.0, 1)) == [30.0]


def test_units_that_are_gone_stay_first_in_the_order() -> None:
    coupling = couple(load(chain()))
    problem = problem_of(coupling, np.arange(coupling.units, dtype=float), Limits())
    removed = np.zeros(coupling.units, dtype=bool)
    removed[problem.order[1][[3, 7]]] = True
    now = narrowed(coupling, removed, None, "none", ENGINE)
    again = rescored(problem, removed, now, np.arange(now.units, 0, -1, dtype=float))
    assert set(again.order[1][:2]) == set(np.flatnonzero(removed))
    assert again.order[0].tolist() == problem.order[0].tolist()[::-1] and again.fixed == {}
    blind = rescored(problem, removed, now, np.where(now.group_of == 1, np.nan, 1.0))
    assert blind.fixed == {1: 14}  # without scores it keeps its width


def test_steps_lead_to_the_target_and_never_back() -> None:
    coupling = couple(load(chain()))
    problem = problem_of(coupling, np.ones(coupling.units), Limits())
    rng, seen = np.random.default_rng(0), list[Any]()

    def score(removed: Any, number: int) -> Any:
        seen.append(removed)
        now = narrowed(coupling, removed, None, "none", ENGINE)
        return now, rng.random(now.units)

    def units(gone: Any) -> float:
        return float(problem.count.sum() - gone.sum())

    def choose(here: Any, limit: float, last: bool) -> Any:
        count = np.array([16 * limit / 48] * 3)
        return here.gone(here.removed(count))

    removed, steps = iterate(problem, choose, score, units, 48.0, 12.0, 3)
    assert (seen[0] <= seen[1]).all() and (seen[1] <= removed).all()
    assert [len(seen), len(steps), int((~removed).sum())] == [2, 3, 12]
    assert steps[0].cost > steps[1].cost > steps[2].cost == steps[2].units == 0.25


@pytest.mark.parametrize("scope", ["global", "local", "budget"])
@pytest.mark.parametrize("criterion", ["l2", "wanda"])
def test_the_result_is_one_exact_cut(scope: str, criterion: str) -> None:
    result = prune(trained(), data=pictures(), criterion=criterion, scope=scope, iterations=3, recover="channel")
    record = result.record
    assert record["parity"]["exact"] and record["macs"]["after"] <= 0.5 * record["macs"]["before"]
    costs = [step["cost"] for step in record["iterations"]]
    assert len(costs) == 3 and costs == sorted(costs, reverse=True)
    assert costs[-1] == pytest.approx(record["macs"]["after"] / record["macs"]["before"])
    assert result.plan is not None and len(record["passes"]) == 2
    again = onnxprune.apply(trained(), result.plan, validate=False)
    kept = {i.name: i.dims for i in again.model.graph.initializer}
    assert kept.items() <= {i.name: i.dims for i in result.model.graph.initializer}.items()  # it has new biases, too


def test_one_step_is_what_it_was() -> None:
    one = prune(trained(), data=pictures(), criterion="wanda", recover="none")
    assert "iterations" not in one.record
    more = prune(trained(), data=pictures(), criterion="wanda", recover="none", iterations=4)
    assert one.plan is not None and more.plan is not None and one.plan.to_dict() != more.plan.to_dict()


def test_without_data_weights_are_scored_again() -> None:
    result = prune(trained(), criterion="l2", iterations=3, recover="none")
    assert len(result.record["iterations"]) == 3 and result.record["parity"]["exact"]


def test_damage_takes_as_many_stages_at_least() -> None:
    stages = [len(prune(trained(), "macs=0.8", data=pictures(), iterations=n).record["stages"]) for n in (1, 4)]
    assert stages[0] < stages[1] == 4


def test_ratios_and_what_is_kept_hold_in_every_step() -> None:
    given = {"ratios": [("group:one", 0.75)], "keep": "group:two", "scope": "global", "criterion": "l2"}
    groups = prune(chain(), "macs=0.5", iterations=3, **given).record["groups"]
    units = {g["name"]: g["units"]["after"] for g in groups}
    assert units["one"] == 12 and units["two"] == 16 and units["three"] < 16


@pytest.mark.parametrize("kind", ["half", "constants", "two inputs"])
def test_other_models(kind: str) -> None:
    b = Builder(seed=1)
    x = b.input("x", "N", 8)
    y = b.gemm(b.op("Relu", b.gemm(x, 24, name="one")), 24, name="two")
    if kind == "two inputs":
        y = b.op("Add", y, b.gemm(b.input("z", "N", 6), 24, name="three"))
    model = b.model(b.gemm(b.op("Relu", y), 5, name="last"))
    if kind == "half":
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        for info in (*model.graph.input, *model.graph.output):
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
        del model.graph.value_info[:]
    if kind == "constants":
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
        old = list(model.graph.node)
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend([*nodes, *old])
    rng, dtype = np.random.default_rng(0), np.float16 if kind == "half" else np.float32
    widths = {i.name: i.type.tensor_type.shape.dim[1].dim_value for i in model.graph.input}
    data = {name: rng.standard_normal((40, width)).astype(dtype) for name, width in widths.items()}
    result = prune(model, data=data, criterion="wanda", iterations=3, recover="full")
    assert result.record["parity"]["exact"] and len(result.record["iterations"]) == 3


def test_no_steps_are_none() -> None:
    with pytest.raises(OptionError, match=r"^--iterations 0: write a whole number from 1$"):
        get("prune_channels")(iterations=0)


def test_the_last_to_go_is_the_first_to_return() -> None:
    coupling = couple(load(chain()))
    problem = problem_of(coupling, np.arange(coupling.units, dtype=float), Limits())
    removed = problem.gone(np.array([3, 0, 0]))
    now = narrowed(coupling, removed, None, "none", ENGINE)
    again = rescored(problem, removed, now, np.ones(now.units))
    assert again.order[0][:3].tolist() == problem.order[0][:3].tolist()
    assert np.flatnonzero(again.gone(np.array([2, 0, 0]))).tolist() == problem.order[0][:2].tolist()
