"""What a model loses when one group or one layer alone gets narrower."""

from __future__ import annotations

import csv
import io
import json
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import Checks, Sensitivity, analyzed
from onnxprune.analyzing import cuts_of
from onnxprune.answers import targets
from onnxprune.coupling import couple
from onnxprune.divergence import Distance
from onnxprune.errors import DataError, OptionError, TargetError
from onnxprune.graph import load
from onnxprune.heatmap import heatmap
from onnxprune.look import look
from onnxprune.metric import Run
from onnxprune.parts import Engine
from onnxprune.runtime import run as infer
from onnxprune.runtime import session
from onnxprune.samples import Turn
from onnxprune.sensitivity import Row, groups, layers, measured
from onnxprune.surgery import mask
from onnxprune.testing import Builder, close
from tests.trained import pictures, trained

ENGINE = Engine(threads=1)
FAST: dict[str, Any] = {"threads": 1, "align": 1}


def branches() -> ModelProto:
    """One group that two layers read."""
    b = Builder(seed=6)
    y = b.op("Relu", b.conv(b.input("x", "N", 3, 8, 8), 16, name="stem"))
    left, right = b.conv(y, 12, name="left"), b.conv(y, 12, 1, name="right")
    return b.model(close(b, b.op("Concat", b.op("Relu", left), b.op("Relu", right), axis=1)))


def feeds(count: int = 2, seed: int = 0) -> tuple[dict[str, Any], ...]:
    rng = np.random.default_rng(seed)
    return tuple({"x": rng.standard_normal((8, 3, 8, 8)).astype(np.float32)} for _ in range(count))


def test_a_group_loses_what_the_masked_model_is_off() -> None:
    coupling, turn = couple(load(branches())), Turn(feeds(), feeds(1, seed=1))
    seen = look(coupling.graph, coupling, turn, ENGINE, "none")
    sites = list(groups(seen, np.ones(len(coupling.groups), dtype=bool)))
    assert {site.name for site in sites} == {"stem", "left", "right"}
    rows = measured(seen, sites, (0.25, 0.5), None, lambda text: None)
    original, batch = session(branches()), turn.choose[0]
    compared = targets(coupling.graph)
    for site, row in zip(sites, rows, strict=True):
        assert row.units == site.units and row.gone == (round(site.units / 4), site.units // 2)
        for cut, value in zip((0.25, 0.5), row.values, strict=True):
            removed = np.zeros(coupling.units, dtype=bool)
            removed[site.gone(cut)[0]] = True
            other = infer(session(mask(coupling, removed)), batch)
            expected = Distance(compared, [infer(original, batch)])([other])
            assert value == pytest.approx(expected, rel=1e-3) and value > 0


def test_a_layer_loses_its_own_columns_alone() -> None:
    model = branches()
    coupling, turn = couple(load(model)), Turn(feeds(), feeds(1, seed=1))
    seen = look(coupling.graph, coupling, turn, ENGINE, "none")
    sites = {site.node: site for site in layers(seen, np.ones(len(coupling.groups), dtype=bool), None)}
    left = next(n.name for n in model.graph.node if "left" in n.input)
    closing = next(n.name for n in model.graph.node if "w2" in n.input)
    assert set(sites) == {left, next(n.name for n in model.graph.node if "right" in n.input), closing}
    assert len(sites[closing].orders) == 2  # it reads two groups: the same share of each goes
    (row,) = measured(seen, [sites[left]], (0.5,), None, lambda text: None)
    units = coupling.unit_of(next(r for r in seen.gauge.readers if r.node.label == left).spec.x)
    assert units is not None
    tensor = next(t for t in model.graph.initializer if t.name == "left")
    weights = np.array(numpy_helper.to_array(tensor))
    weights[:, np.isin(units, sites[left].gone(0.5)[0])] = 0
    original = infer(session(branches()), turn.choose[0])
    tensor.CopyFrom(numpy_helper.from_array(weights, "left"))
    expected = Distance(targets(coupling.graph), [original])([infer(session(model), turn.choose[0])])
    assert row.values[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("by", ["group", "layer"])
def test_repairs_heal_and_the_most_sensitive_is_first(by: str) -> None:
    plain, healed = (
        onnxprune.analyze(trained(), pictures(64), by=by, recover=how, **FAST) for how in ("none", "channel")
    )
    assert [row.mean for row in healed.rows] == sorted((row.mean for row in healed.rows), reverse=True)
    assert sum(row.mean for row in healed.rows) < sum(row.mean for row in plain.rows)
    assert healed.by == by and healed.cuts == (0.1, 0.25, 0.5, 0.75) and healed.what.startswith("distance of ")
    assert all(0 <= row.macs <= 1 and row.node for row in healed.rows)


@pytest.mark.parametrize("criterion", ["l2", "wanda"])
def test_the_order_may_be_another_criterions(criterion: str) -> None:
    for by in ("group", "layer"):
        found = onnxprune.analyze(trained(), pictures(64), "0.5", by=by, criterion=criterion, recover="none", **FAST)
        usual = onnxprune.analyze(trained(), pictures(64), "0.5", by=by, recover="none", **FAST)
        assert {r.name for r in found.rows} == {r.name for r in usual.rows} and found != usual


def test_prune_takes_the_ratios_and_meets_the_target_by_them() -> None:
    found = onnxprune.analyze(trained(), pictures(64), target="macs=0.5", **FAST)
    assert found.target == "macs=0.5" and found.remains is not None and found.remains <= 0.5
    result = onnxprune.prune(
        trained(), "macs=0.5", scope="local", criterion="l2", ratios=found.ratios, align=1, threads=1, recover="none",
        checks=Checks(seconds=0),
    )  # fmt: skip
    macs, after = result.record["macs"], {g["name"]: g["units"] for g in result.record["groups"]}
    assert macs["after"] / macs["before"] == pytest.approx(found.remains)
    kept = {name.removeprefix("group:"): share for name, share in found.ratios}
    for name, units in after.items():
        assert units["after"] == int(units["before"] * kept.get(name, 1.0) + 1e-9)
    assert len({round(share, 2) for share in kept.values()}) > 1  # which uniform ones would not be


def test_a_metric_is_measured_on_whole_models() -> None:
    seen: list[float] = []
    (wanted,) = infer(session(trained()), pictures(16, seed=3)).values()

    def both(run: Run) -> dict[str, float]:
        answers = run(pictures(16, seed=3))[run.outputs[0]]
        seen.append(float(-np.abs(answers - wanted).mean()))
        return {"near": seen[-1], "constant": 1.0}

    found = onnxprune.analyze(trained(), pictures(64), (0.25, 0.5), metric=both, target="params=0.6", **FAST)
    assert found.what == "fall of near or constant" and len(seen) == 1 + 2 * len(found.rows)
    for row in found.rows:
        assert row.values == tuple(-each["near"] for each in row.measured) and row.values[1] > 0
    assert found.ratios and found.target == "params=0.6"


def test_what_is_kept_is_left_out() -> None:
    found = onnxprune.analyze(trained(), pictures(64), "0.5", keep="group:wide", **FAST)
    assert "wide" not in {row.name for row in found.rows}
    with pytest.raises(TargetError, match="nothing can be cut"):
        onnxprune.analyze(trained(), pictures(64), "0.5", keep=".", **FAST)


@pytest.mark.parametrize("kind", ["half", "constants", "two inputs", "external"])
def test_other_models(kind: str, tmp_path: Path) -> None:
    b = Builder(seed=1)
    y = b.gemm(b.op("Relu", b.gemm(b.input("x", "N", 8), 24, name="one")), 24, name="two")
    if kind == "two inputs":
        y = b.op("Add", y, b.gemm(b.input("z", "N", 6), 24, name="three"))
    model: Any = b.model(b.gemm(b.op("Relu", y), 5, name="last"))
    if kind == "half":
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        for info in (*model.graph.input, *model.graph.output):
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
    if kind == "constants":
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
        old = list(model.graph.node)
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend([*nodes, *old])
    rng, dtype = np.random.default_rng(0), np.float16 if kind == "half" else np.float32
    widths = {i.name: i.type.tensor_type.shape.dim[1].dim_value for i in model.graph.input}
    data = {name: rng.standard_normal((40, width)).astype(dtype) for name, width in widths.items()}
    if kind == "external":
        onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0)
        model = tmp_path / "net.onnx"

    def size(run: Run) -> float:
        return float(np.abs(run(data)[run.outputs[0]]).mean())

    for by in ("group", "layer"):
        for metric in (None, size):
            found = onnxprune.analyze(model, data, "0.5", by=by, metric=metric, **FAST)
            assert len(found.rows) >= 2 and all(np.isfinite(row.values).all() for row in found.rows)


def test_mistakes_are_said() -> None:
    data = pictures(64)
    with pytest.raises(DataError, match=r"needs inputs; give --data \(or --data synthetic\)"):
        onnxprune.analyze(trained(), **FAST)
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"by": "node"}, "--by node: choose one of group, layer"),
        ({"recover": "full"}, "--recover full: .* none, bias, channel"),
        ({"by": "layer", "target": "macs=0.5"}, "drop --by layer"),
        ({"target": "latency=0.5"}, r"give channels=X, params=X or macs=X here"),
        ({"target": "lossless"}, r"give channels=X, params=X or macs=X here"),
        ({"ratios": "0.5,1"}, r"--ratios 0.5,1: write shares of the units that go, .* each between 0 and 1"),
    )
    for options, says in wrong:
        with pytest.raises(OptionError, match=says):
            onnxprune.analyze(trained(), data, **{**FAST, **options})
    with pytest.raises(TargetError, match=r"macs=0.0001 cannot be met"):
        onnxprune.analyze(trained(), data, "0.5", target="macs=0.0001", **FAST)


@pytest.mark.parametrize("text", ["", "half", "0", "1", "-0.1", "nan", "0.5,,0.6"])
def test_ratios_that_make_no_sense(text: str) -> None:
    with pytest.raises(OptionError, match="write shares of the units that go"):
        cuts_of(text)


def test_ratios() -> None:
    assert cuts_of("0.5, 0.1,0.5") == cuts_of([0.5, 0.1]) == (0.1, 0.5)


# For people


def sensitivity() -> Sensitivity:
    rows = (
        Row("onnx::Conv_12", "/a/Conv", 0.5, 16, (2, 8), (0.25, inf)),
        Row("b[1]", "/b/Conv", 0.25, 8, (1, 4), (3e-9, nan)),
    )
    chosen: dict[str, Any] = {"target": "macs=0.5", "ratios": (("group:b[1]", 0.5),), "remains": 0.4, "align": 8}
    return Sensitivity("net.onnx", "group", (0.1, 0.5), "distance of logits", "auto", "channel", rows, **chosen)


def test_files() -> None:
    made = json.loads(analyzed.to_json(sensitivity(), onnxprune="1"))
    assert made["rows"][0]["values"] == [0.25, None] and made["ratios"] == [["group:b[1]", 0.5]]
    rows = list(csv.DictReader(io.StringIO(analyzed.to_csv(sensitivity()))))
    assert [row["cut 0.5"] for row in rows] == ["", ""] and [row["kept"] for row in rows] == ["1.0", "0.5"]
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        assert heatmap(sensitivity(), suffix).startswith(start)


def test_the_options_of_prune() -> None:
    assert analyzed.options(sensitivity()) == [
        "--target macs=0.5 --criterion auto --scope local --align 8 \\",
        "--ratio 'group:b[1]=0.5'",
    ]
    assert [analyzed.number(v) for v in (0.0, 3e-9, 0.25, 1.0, -0.5, inf, nan)] == [
        *("0", "<1e-6", "0.25", "1", "-0.5", "-", "-")
    ]
