"""Thinner or shallower: blocks in competition with widths."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from onnxprune import Checks, Pipeline, Result, apply, prune
from onnxprune.cost import macs
from onnxprune.coupling import couple
from onnxprune.errors import OptionError, PlanError
from onnxprune.graph import load
from onnxprune.parts import Engine
from onnxprune.passes import get
from onnxprune.savings import by_macs
from onnxprune.shallow import depth_of
from tests.passes.test_drop_blocks import inputs
from tests.stacks import chain, dense, residual, transformer

Array = NDArray[Any]


def faint(model: ModelProto, *layers: str, factor: float = 1e-3) -> ModelProto:
    """A model in which some layers make next to nothing."""
    for tensor in model.graph.initializer:
        if tensor.name.removesuffix(".bias") in layers:
            tensor.CopyFrom(numpy_helper.from_array(np.float32(factor) * numpy_helper.to_array(tensor), tensor.name))
    return model


def doubled(model: ModelProto) -> ModelProto:
    """A residual network whose layers inside blocks have every second channel twice."""
    for tensor in model.graph.initializer:
        if tensor.name.removesuffix(".bias").endswith(".a"):
            values = numpy_helper.to_array(tensor).copy()
            values[1::2] = values[::2]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


def joint(model: ModelProto, target: str = "macs=0.8", count: int = 48, **options: Any) -> Result:
    return prune(model, target, data=inputs(model, count), depth=True, align=1, checks=Checks(seconds=0), **options)


def gone(result: Result) -> list[str]:
    return [block["exit"] for block in result.record["blocks"]["gone"]]


def exact(result: Result) -> bool:
    parity = result.record["parity"]
    return bool(parity["exact"]) and parity["relative"] < 1e-3


def test_a_block_that_does_nothing_goes() -> None:
    result = joint(faint(residual(3, batch_norm=False), "1.b"))
    assert gone(result) == ["sum1"] and exact(result)
    assert result.record["macs"]["after"] <= 0.8 * result.record["macs"]["before"]
    assert result.record["passes"][0]["said"] == "1 of 3 blocks left out"
    assert "1.a" not in {t.name for t in result.model.graph.initializer}


def test_channels_that_are_there_twice_go_instead() -> None:
    result = joint(doubled(residual(3, batch_norm=False)))
    assert gone(result) == [] and exact(result)
    assert result.record["macs"]["after"] <= 0.8 * result.record["macs"]["before"]


@pytest.mark.parametrize("target", ["macs=0.45", "params=0.45"])
@pytest.mark.parametrize(
    "model",
    [
        faint(residual(4), "1.b"),
        faint(residual(3, batch_norm=False, relu=False), "1.b"),
        faint(transformer(), "0.mlp.down"),
        faint(transformer(before=False), "0.mlp.down"),
    ],
    ids=["resnet", "linear", "pre-norm", "post-norm"],
)
def test_both_together_are_exact_and_meet_the_target(model: ModelProto, target: str) -> None:
    result = joint(model, target)
    kind, _, share = target.partition("=")
    found = result.record[kind]
    assert gone(result) and found["after"] <= float(share) * found["before"] and exact(result)
    assert any(0 < g["units"]["after"] < g["units"]["before"] for g in result.record["groups"])


def test_it_is_the_same_every_time() -> None:
    model = faint(residual(3), "0.b")
    assert joint(model, "macs=0.5").model == joint(model, "macs=0.5").model


def test_a_plan_has_the_blocks() -> None:
    model = faint(residual(3), "0.b")
    made = joint(model, "macs=0.5", recover="none")
    assert made.plan is not None and made.plan.bypasses and exact(made)
    again = apply(model, made.plan, checks=Checks(seconds=0))
    assert again.model == made.model and exact(again)


def test_what_does_not_go_together() -> None:
    step = get("prune_channels")
    with pytest.raises(OptionError, match="--scope global measures no damage, which --depth goes by"):
        step(depth=True, scope="global")
    with pytest.raises(OptionError, match=r"--target latency=0\.5: with --depth it is macs=X or params=X"):
        step(depth=True, target="latency=0.5")
    with pytest.raises(OptionError, match="--depth goes by measured damage: give --data"):
        Pipeline([step(depth=True)]).run(residual())


def test_where_there_is_no_block() -> None:
    result = joint(dense())
    assert gone(result) == [] and exact(result)
    assert result.record["passes"][0]["said"].startswith("no block to leave out")


@pytest.mark.parametrize("keep", ["sum1$|^head$", r"^1\.b$"])
def test_keep(keep: str) -> None:
    result = joint(faint(residual(3, batch_norm=False), "1.b"), keep=keep)
    assert "sum1" not in gone(result) and exact(result)


def test_half_precision() -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    result = joint(convert_float_to_float16(faint(residual(3, batch_norm=False), "1.b")), "macs=0.5")
    assert "sum1" in gone(result) and exact(result)


def test_weights_in_constant_nodes() -> None:
    model = faint(residual(3, batch_norm=False), "1.b")
    for tensor in list(model.graph.initializer)[::-1]:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    result = joint(model, "macs=0.5")
    assert "sum1" in gone(result) and exact(result)


def test_external_data(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    model = faint(residual(3, batch_norm=False), "1.b")
    onnx.save_model(model, path, save_as_external_data=True, size_threshold=0)
    data = inputs(model, 48)
    result = prune(path, "macs=0.5", data=data, out=out, depth=True, align=1, checks=Checks(seconds=0))
    assert "sum1" in gone(result) and exact(result) and out.exists()


def test_a_plan_of_blocks_alone_for_external_data(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", faint(residual(3, batch_norm=False), "1.b")
    onnx.save_model(onnx.ModelProto.FromString(model.SerializeToString()), path, save_as_external_data=True)
    made = joint(model, "macs=0.5", recover="none")
    assert made.plan is not None and made.plan.bypasses
    alone = replace(made.plan, kept={})
    there = apply(path, alone, out=tmp_path / "out.onnx", checks=Checks(seconds=0))
    here = apply(model, alone, checks=Checks(seconds=0))
    assert exact(there) and len(there.model.graph.node) == len(here.model.graph.node) < len(model.graph.node)


def test_a_plan_file_with_blocks(tmp_path: Path) -> None:
    model, file = faint(residual(3), "0.b"), tmp_path / "plan.json"
    made = joint(model, "macs=0.5", recover="none")
    assert made.plan is not None
    told = made.plan.to_dict()
    file.write_text(json.dumps(told), encoding="utf-8")
    assert apply(model, file, checks=Checks(seconds=0)).model == made.model
    told["bypasses"][0]["entry"] = "elsewhere"
    file.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(
        PlanError, match="the plan leaves out what lies between 'elsewhere' and 'sum0', which is no block"
    ):
        apply(model, file, checks=Checks(seconds=0))
    told["bypasses"][0]["shift"] = "none"
    file.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(PlanError, match="not a plan file"):
        apply(model, file)


def test_what_is_inside_goes_with_a_block() -> None:
    model = faint(residual(3, batch_norm=False), "1.b")
    coupling = couple(load(model))
    every = inputs(model, 8)
    depth = depth_of(coupling, macs(coupling), (), [every], Engine("cpu", 1))
    assert [b.block.exit for b in depth.bypasses] == ["sum0", "sum1", "sum2"]
    names = [group.name for group in coupling.groups]
    count = len(names)
    for row, layer in zip(depth.inside, ("0.a", "1.a", "2.a"), strict=True):
        assert [names[g] for g in np.flatnonzero(row[:count])] == [layer] and not row[count:].any()
    nothing = np.zeros(count + 3, dtype=np.intp)
    one = nothing.copy()
    one[count + 1] = 1
    assert depth.cost(nothing) == depth.cost.before
    assert depth.cost(one) == by_macs(coupling).left([depth.bypasses[1].block])
    narrower = one.copy()
    narrower[np.flatnonzero(depth.inside[1, :count])] = 4  # of what is gone
    assert depth.cost(narrower) == depth.cost(one)
    assert [b.block.exit for b in depth.gone(one)] == ["sum1"]


def test_a_stage_whose_ends_are_made_narrower_one_by_one_stays() -> None:
    result = joint(chain(4), "macs=0.4")
    assert gone(result) == [] and exact(result)
    assert result.record["passes"][0]["said"].startswith("no block to leave out")
