"""Blocks are left out, and the result computes what it should."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from onnxprune import Checks, Pipeline, Result
from onnxprune.errors import DataError, ModelError, OnnxPruneError, OptionError, TargetError
from onnxprune.passes import get
from onnxprune.testing import Builder
from tests.stacks import chain, dense, linear, norm, residual, transformer
from tests.test_blocks import branching, narrowing

Array = NDArray[Any]


def inputs(model: ModelProto, count: int = 24, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    found = {}
    for info in model.graph.input:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim][1:]
        dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        found[info.name] = rng.standard_normal((count, *shape)).astype(dtype)
    return found


def drop(model: ModelProto | Path, data: Any = None, recover: bool = False, **options: Any) -> Result:
    if data is None and not isinstance(model, Path):
        data = inputs(model)
    steps = [get("drop_blocks")(**options), *([get("reconstruct")()] if recover else [])]
    return Pipeline(steps).run(model, data=data or None, threads=1, checks=Checks(seconds=0))


def gone(result: Result) -> list[str]:
    return [block["exit"] for block in result.record["drop_blocks"]["dropped"]]


def exact(result: Result) -> bool:
    parity = result.record["parity"]
    return bool(parity["exact"]) and parity["relative"] < 1e-3


@pytest.mark.parametrize(
    "model",
    [
        transformer(),
        transformer(mask=True),
        transformer(before=False),
        residual(),
        residual(batch_norm=False, relu=False),
        chain(),
        branching("inner"),
        branching("sum"),
    ],
    ids=["pre-norm", "mask", "post-norm", "resnet", "linear", "chain", "capture", "captured exit"],
)
def test_exactly_one_and_two(model: ModelProto) -> None:
    for count in (1, 2) if len(model.graph.node) > 10 else (1,):
        result = drop(model, drop=count, consecutive=2)
        notes = result.record["drop_blocks"]
        assert sum(block["parts"] for block in notes["dropped"]) == count
        assert exact(result)
        assert result.record["macs"]["after"] < result.record["macs"]["before"]
        assert result.record["params"]["after"] < result.record["params"]["before"]
        assert len(result.model.graph.node) < len(model.graph.node)
        assert [o.name for o in result.model.graph.output] == [o.name for o in model.graph.output]


def test_nothing_else_changes() -> None:
    model = residual()
    model.doc_string = "a network"
    model.metadata_props.add(key="author", value="somebody")
    before = model.SerializeToString()
    result = drop(model)
    assert model.SerializeToString() == before
    made = result.model
    assert made.doc_string == "a network" and made.metadata_props[0].value == "somebody"
    (exit_,) = gone(result)
    old = {n.output[0]: n for n in model.graph.node}
    changed = [n for n in made.graph.node if n != old[n.output[0]]]
    assert [n.output[0] for n in changed] == [exit_]
    assert changed[0].op_type == "Add" and changed[0].name == old[exit_].name


def test_the_mean_of_a_branch_stays() -> None:
    """In front of a ReLU there is no bias that could take it: it is added; else it goes into the bias before."""
    assert drop(residual()).record["drop_blocks"]["folded"] == 0
    for model in (residual(batch_norm=False, relu=False), residual(relu=False), transformer()):
        result = drop(model, keep="sum0|0.attn")  # in front of the first there is an activation
        assert result.record["drop_blocks"]["folded"] == 1 and exact(result)
        assert not any(name in {o for n in result.model.graph.node for o in n.output} for name in gone(result))


def test_the_mean_of_the_later_of_two_blocks_in_a_row_stays_too() -> None:
    """It goes into the constant of the earlier one, which then goes into a bias."""
    model = faint(5, 6, 0.1, relu=False)
    for node in model.graph.node:
        if node.op_type == "Add":  # the branch in front
            node.input[:] = list(node.input)[::-1]
    result = drop(model, drop=2, keep="sum[0-3]", consecutive=1)
    assert gone(result) == ["sum5", "sum4"] and exact(result)
    assert result.record["drop_blocks"]["folded"] == 2


def test_without_data_weights_tell() -> None:
    result = Pipeline([get("drop_blocks")(importance="weights")]).run(residual(), threads=1, checks=Checks(seconds=0))
    notes = result.record["drop_blocks"]
    assert notes["distance"] is None and exact(result)
    assert all(block["score"] > 0 and block["parts"] == 1 for block in notes["candidates"])
    least = min(notes["candidates"], key=lambda block: block["score"] / block["macs"])
    assert notes["dropped"] == [least]
    with pytest.raises(OptionError, match="importance = 'auto' is measured on inputs: give --data"):
        Pipeline([get("drop_blocks")()]).run(residual(), threads=1)


@pytest.mark.parametrize("part", ["mean", "whole", "none", "more", "zero"])
def test_names_of_subgraphs_are_taken(part: str) -> None:
    model = branching("inner")
    for body in (a.g for node in model.graph.node for a in node.attribute if a.HasField("g")):
        body.node[0].output[0] = body.output[0].name = f"sum_{part}"
    result = drop(model, keep="^Add_._0$", consecutive=1)
    assert gone(result) == ["sum"] and exact(result)


def test_names_of_subgraphs_are_taken_when_a_bias_is_new() -> None:
    model = branching("sum", relu=False)
    for body in (a.g for node in model.graph.node for a in node.attribute if a.HasField("g")):
        body.node[0].output[0] = body.output[0].name = f"{model.graph.node[0].output[0]}_own_2"
    result = drop(model, consecutive=1)
    assert gone(result) == ["sum"] and exact(result) and result.record["drop_blocks"]["folded"] == 1


def test_an_exit_that_an_if_makes() -> None:
    """With the If goes what only its body reads."""
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", "N", 3, 8, 8), 8, name="stem"), name="start")
    b.op("Relu", b.conv(x, 8, name="a"), name="inner")
    info = helper.make_tensor_value_info("taken", onnx.TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Neg", ["inner"], ["taken"])], "body", [], [info])
    y = b.op("If", b.const(np.array(True)), then_branch=body, else_branch=body, name="end")
    b.declare(y, "N", 8, 8, 8)
    result = drop(b.model(b.conv(y, 4, 1, name="last")), consecutive=1)
    assert gone(result) == ["end"] and exact(result)
    assert "a" not in {t.name for t in result.model.graph.initializer}


def faint(number: int, blocks: int = 3, factor: float = 1e-3, relu: bool = True) -> ModelProto:
    """A residual network with a block that does next to nothing."""
    model = residual(blocks, batch_norm=False, relu=relu)
    for tensor in model.graph.initializer:
        if tensor.name in (f"{number}.b", f"{number}.b.bias"):
            tensor.CopyFrom(numpy_helper.from_array(np.float32(factor) * numpy_helper.to_array(tensor), tensor.name))
    return model


@pytest.mark.parametrize("importance", ["auto", "divergence", "influence", "angular", "weights", "latency"])
def test_what_does_least_goes_first(importance: str) -> None:
    for number in (0, 2):
        assert gone(drop(faint(number), importance=importance, consecutive=1)) == [f"sum{number}"]


def test_what_saves_next_to_nothing_stays() -> None:
    """A gate of one number a channel is a stage, too."""
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", "N", 3, 8, 8), 8, name="stem"))
    squeezed = b.op("Relu", b.conv(b.op("GlobalAveragePool", x), 2, 1, name="squeeze"))
    gated = b.op("Mul", x, b.op("Sigmoid", b.conv(squeezed, 8, 1, name="excite")), name="gated")
    model = b.model(b.conv(b.op("Relu", b.conv(gated, 8, name="conv"), name="end"), 4, 1))
    result = drop(model, consecutive=1)
    assert [c["exit"] for c in result.record["drop_blocks"]["candidates"]] == ["gated", "end"]
    assert gone(result) == ["end"] and exact(result)


def test_targets() -> None:
    for target in ("macs=0.7", "params=0.7"):
        result = drop(transformer(3), target=target)
        kind = target.partition("=")[0]
        found = result.record[kind]
        assert found["after"] <= 0.7 * found["before"] and exact(result)


def test_an_exit_that_a_layer_makes() -> None:
    """That layer goes as well, and counts."""
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", "N", 3, 8, 8), 8, name="stem"))
    for number in range(3):
        x = b.conv(x, 8, name=f"conv{number}")
    for target in ("macs=0.9", "params=0.9"):
        result = drop(b.model(x), target=target, consecutive=1)
        found = result.record[target.partition("=")[0]]
        assert len(gone(result)) == 1 and exact(result)
        assert found["after"] < 0.8 * found["before"]
    for layer in result.record["drop_blocks"]["candidates"]:
        assert layer["macs"] == 8 * 8 * 8 * 8 * 9


def test_a_block_whose_weights_are_not_known() -> None:
    """They are computed from an input."""
    b = Builder()
    x = b.conv(b.input("x", "N", 3, 8, 8), 8, name="stem")
    y = b.conv(b.op("Relu", x), 8, name="a")
    scale = b.op("Reshape", b.input("scale", 1, 1), np.array([1, 1, 1, 1]))
    y = b.op("Conv", y, b.op("Mul", b.weight(8, 8, 1, 1), scale))
    model = b.model(b.conv(b.op("Add", x, y), 4, 1))
    with pytest.raises(TargetError, match=r"without all blocks that save something and whose weights are known, 1.000"):
        Pipeline([get("drop_blocks")(importance="weights")]).run(model, threads=1)


def test_nothing_has_to_go() -> None:
    result = drop(residual(), target="macs=1")
    assert result.model == residual() and result.record["passes"][0]["said"] == "no block had to go"


def test_a_value_that_is_added_to_itself_takes_no_shift() -> None:
    b = Builder()
    x = b.conv(b.input("x", "N", 3, 8, 8), 8, name="stem")
    x = b.op("Add", x, x)
    x = b.op("Add", x, b.conv(b.op("Relu", x), 8, name="branch"), name="sum")
    result = drop(b.model(b.conv(x, 4, 1)), consecutive=1)
    assert gone(result) == ["sum"] and exact(result) and result.record["drop_blocks"]["folded"] == 0


def test_a_sum_that_has_a_value_twice_takes_no_shift() -> None:
    b = Builder()
    first, bias = b.conv(b.input("x", "N", 3, 8, 8), 8, name="stem"), b.weight(8, 1, 1)
    x = b.op("Sum", first, first, bias)
    x = b.op("Add", x, b.conv(b.op("Relu", x), 8, name="branch"), name="sum")
    result = drop(b.model(b.conv(x, 4, 1)), consecutive=1)
    assert gone(result) == ["sum"] and exact(result) and result.record["drop_blocks"]["folded"] == 0


def test_the_mean_of_a_sum_of_three() -> None:
    """y = x + x + f(x) is x and, on average, x + f(x): without data, what the normalisations say."""
    b = Builder()
    x = b.batch_norm(b.conv(b.input("x", "N", 3, 8, 8), 8), "stem")
    x = b.op("Sum", x, x, b.batch_norm(b.conv(x, 8), "branch"), name="sum")
    model = b.model(b.conv(x, 4, 1))
    steps = [get("drop_blocks")(importance="weights")]
    made = Pipeline(steps).run(model, threads=1, checks=Checks(seconds=0)).model
    old, new = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, made))
    (bias,) = (n.input[2] for n in made.graph.node if n.op_type == "BatchNormalization")
    mine, branch = (old[n.input[2]] for n in model.graph.node if n.op_type == "BatchNormalization")
    np.testing.assert_allclose(new[bias], 2 * mine + branch, rtol=1e-5)


def test_a_latency_is_met_by_the_clock() -> None:
    model = residual(6, width=24)
    steps = [get("drop_blocks")(target="latency=0.8", importance="influence")]
    result = Pipeline(steps).run(model, data=inputs(model), threads=1, checks=Checks(seconds=0.5))
    assert gone(result)
    with pytest.raises(OptionError, match="runs the models: leave validation and timing on"):
        drop(model, target="latency=0.8")


def test_what_cannot_be_met_is_one_line() -> None:
    with pytest.raises(
        TargetError, match=r"drop_blocks: target = 'macs=0.01' cannot be met: .* 0.\d+ remains"
    ) as error:
        drop(residual(), target="macs=0.01", importance="weights")
    assert "\n" not in str(error.value)
    with pytest.raises(TargetError, match="drop = 9 cannot be met: there are 3 blocks that may go"):
        drop(residual(), drop=9)
    with pytest.raises(TargetError, match="drop = 2 cannot be met: there is 1 block that may go"):
        drop(residual(1), drop=2)
    with pytest.raises(ModelError, match="finds no block to leave out"):
        drop(dense())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"importance": "luck"}, r"drop_blocks: importance = 'luck': choose one of auto, divergence"),
        ({"drop": 0}, r"drop_blocks: drop = 0: write a whole number from 1"),
        ({"consecutive": 0}, r"drop_blocks: consecutive = 0: write a whole number from 1"),
        ({"target": "channels=0.5"}, r"drop_blocks: target = 'channels=0.5': write macs=X"),
        ({"target": "much"}, r"--target much: write"),
        ({"distance": "far"}, r"drop_blocks: distance = 'far': choose one of auto, logits"),
        ({"drop": 2, "target": "macs=0.5"}, r"drop_blocks: drop = 2 and target = 'macs=0.5': write one of the two"),
        ({"keep": ["sum", "("]}, r"drop_blocks: keep = '\(': not a regular expression \(missing"),
    ],
)
def test_options_that_are_wrong_by_themselves(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OnnxPruneError, match=said):
        get("drop_blocks")(**options)


def test_keep() -> None:
    assert gone(drop(faint(0), keep="sum0", consecutive=1)) != ["sum0"]
    with pytest.raises(OptionError, match="keep = 'nowhere' matches no node, output or weight of a block"):
        drop(residual(), keep="nowhere")
    with pytest.raises(OptionError, match="keep leaves no block"):
        drop(residual(), keep=".")


@pytest.mark.parametrize("name", [r"^0\.a$", r"^0\.b\.bias$", "^sum0$", "^Conv_4$", "^Conv_2_0$"])
def test_keep_goes_by_nodes_outputs_and_weights(name: str) -> None:
    model = faint(0)
    assert gone(drop(model, consecutive=1)) == ["sum0"]
    assert gone(drop(model, keep=[name, "sum0"], consecutive=1)) != ["sum0"]


def test_recovery() -> None:
    """What comes after a block is fitted anew to the original's results."""
    model = faint(0, 2, factor=0.3)
    result = drop(model, inputs(model, 64), recover=True, keep="sum1", consecutive=1)
    assert exact(result)
    found = result.record["recovery"]
    assert found["layers"] and result.record["recover"] == "full"
    assert found["distance"]["after"] < 0.8 * found["distance"]["before"]


def test_recovery_where_nothing_comes_after() -> None:
    b = Builder()
    x = b.op("Relu", b.gemm(b.input("x", "N", 6), 8, "stem"))
    model = b.model(b.op("Add", x, b.gemm(b.op("Relu", b.gemm(x, 16, "up")), 8, "down"), name="sum"))
    result = drop(model, recover=True)
    assert gone(result) == ["sum"] and exact(result)
    assert result.record["recover"] == "none"


def shared() -> ModelProto:
    """Two layers with the same weights, as in ALBERT."""
    b = Builder()
    x = linear(b, b.input("x", "N", 5, 6), 8, "embed")
    w, v = b.weight(8, 16, name="w", fan=8), b.weight(16, 8, name="v", fan=16)
    for number in range(3):
        y = b.op("MatMul", b.op("Relu", b.op("MatMul", norm(b, x, f"norm{number}"), w)), v)
        x = b.op("Add", x, y, name=f"sum{number}")
    return b.model(linear(b, x, 4, "head"))


def test_tied_weights_stay_as_long_as_somebody_reads_them() -> None:
    result = drop(shared(), consecutive=1)
    assert {"w", "v"} <= {t.name for t in result.model.graph.initializer} and exact(result)
    every = drop(shared(), drop=3, consecutive=1)
    assert not {"w", "v"} & {t.name for t in every.model.graph.initializer} and exact(every)


def test_a_shared_bias_is_not_changed_for_others() -> None:
    b = Builder()
    bias = b.weight(8, name="bias")
    x = b.conv(b.input("x", "N", 3, 8, 8), 8, name="stem", bias=False)
    x = b.op("Conv", x, b.weight(8, 8, 1, 1), bias)
    y = b.op("Conv", b.op("Relu", x), b.weight(8, 8, 1, 1), bias)
    x = b.op("Add", x, y, name="sum")
    z = b.op("Conv", x, b.weight(8, 8, 1, 1), bias)
    result = drop(b.model(z), keep="^Conv_[15]$", consecutive=1)
    assert gone(result) == ["sum"] and exact(result)


def test_half_precision() -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    for model in (residual(), transformer()):
        half = convert_float_to_float16(model)
        assert exact(drop(half, drop=2))


def test_half_precision_inside() -> None:
    assert exact(drop(narrowing(), importance="weights", drop=2))


def test_weights_in_constant_nodes() -> None:
    model = residual(relu=False)
    for tensor in list(model.graph.initializer)[::-1]:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    result = drop(model, keep="sum0")
    assert exact(result) and result.record["drop_blocks"]["folded"] == 1
    assert len(result.model.graph.node) < len(model.graph.node) - 5


def test_external_data(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save_model(residual(relu=False), path, save_as_external_data=True, size_threshold=0)
    data = inputs(residual())
    result = Pipeline([get("drop_blocks")(keep="sum0")]).run(path, out=out, data=data, checks=Checks(seconds=0))
    assert exact(result) and out.exists()
    by_time = Pipeline([get("drop_blocks")(importance="latency")])
    timed = by_time.run(path, data=data, threads=1, checks=Checks(seconds=0))
    assert exact(timed)


def test_too_little_data() -> None:
    with pytest.raises(DataError, match="too few"):
        drop(residual(), inputs(residual(), 2))


def test_what_is_said() -> None:
    result = drop(residual(), consecutive=1)
    assert result.record["passes"][0]["said"].startswith("1 of 3 blocks left out, ")
    notes = result.record["drop_blocks"]
    assert {"entry", "exit", "parts", "nodes", "layers", "score", "macs"} == set(notes["candidates"][0])
    assert len(notes["candidates"]) == 3
