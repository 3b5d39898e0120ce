"""Thinner or shallower: blocks in competition with widths."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from onnxprune import Checks, Pipeline, Result, apply, prune
from onnxprune.errors import OptionError
from onnxprune.passes import get
from tests.passes.test_drop_blocks import inputs
from tests.stacks import dense, residual, transformer

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


def test_keep() -> None:
    result = joint(faint(residual(3, batch_norm=False), "1.b"), keep="sum1$|^head$")
    assert "sum1" not in gone(result) and exact(result)
