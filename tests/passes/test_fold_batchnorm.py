"""Scales and shifts go into the weights beside them; the function stays, and what cannot go is said."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from onnxprune import Checks, Pipeline, Result
from onnxprune.passes import get
from onnxprune.testing import Builder, arrays
from onnxprune.writing import write


def fold(model: Any, **options: Any) -> Result:
    """Fold; the Pipeline proves that the function is the same."""
    result = Pipeline([get("fold_batchnorm")(**options)]).run(model, checks=Checks(seconds=0))
    onnx.checker.check_model(result.model, full_check=True)
    return result


def ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def of(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = result.record["fold_batchnorm"]
    return found


def column(b: Builder, n: int) -> str:
    return b.near_one(n, 1, 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, 8])
def test_conv(bias: bool, group: int) -> None:
    b = Builder()
    y = b.batch_norm(b.conv(b.input("x", 2, 8, 6, 6), 8, name="w", bias=bias, group=group))
    result = fold(b.model(b.op("Relu", y)))
    assert ops(result.model) == ["Conv", "Relu"]
    assert of(result) == {"folded": {"BatchNormalization": 1}, "into": {"Conv": 1}, "kept": []}
    assert result.record["parity"]["exact"]
    assert result.record["passes"][0]["said"] == "folded 1 BatchNormalization into 1 Conv"
    assert set(arrays(result.model)) == {"w", "w.bias" if bias else f"{y}_bias"}


@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(group: int) -> None:
    b = Builder()
    y = b.op("ConvTranspose", b.input("x", 2, 8, 6, 6), b.weight(8, 3, 2, 2), strides=[2, 2], group=group)
    assert ops(fold(b.model(b.batch_norm(y))).model) == ["ConvTranspose"]


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_with_factors(trans: int) -> None:
    b = Builder()
    x, w = b.input("x", 3, 6), b.weight(*((5, 6) if trans else (6, 5)))
    y = b.batch_norm(b.op("Gemm", x, w, b.weight(1, 5), alpha=0.5, beta=2.0, transB=trans))
    assert ops(fold(b.model(y)).model) == ["Gemm"]


def test_what_stands_before_goes_too() -> None:
    b = Builder()
    y = b.batch_norm(b.op("MaxPool", b.input("x", 2, 8, 6, 6), kernel_shape=[2, 2]))
    model = b.model(b.conv(y, 4, 1), b.conv(y, 6, 3, bias=False, pads=[0, 0, 0, 0]))
    assert ops(fold(model).model) == ["MaxPool", "Conv", "Conv"]


def test_a_shift_does_not_go_where_zeros_are_padded() -> None:
    b = Builder()
    x = b.op("Relu", b.input("x", 2, 8, 6, 6))
    y = b.batch_norm(x)
    result = fold(b.model(b.conv(y, 4, 3)))
    assert ops(result.model) == ["Relu", "BatchNormalization", "Conv"]
    assert "Relu comes before it" in of(result)["kept"][0]["reason"]
    assert result.record["passes"][0]["said"] == "nothing to fold; 1 BatchNormalization kept"
    b = Builder()
    y = b.op("Mul", b.op("Relu", b.input("x", 2, 8, 6, 6)), column(b, 8))  # a scale does
    assert ops(fold(b.model(b.conv(y, 4, 3))).model) == ["Relu", "Conv"]


def test_chains_of_constants() -> None:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8)
    y = b.op("Sub", column(b, 8), b.op("Div", y, column(b, 8)))
    y = b.op("Neg", b.op("Add", b.op("Mul", y, 0.5), column(b, 8)))
    y = b.op("Clip", b.batch_norm(y), 0.0, 6.0)
    model = b.model(b.conv(b.op("Add", b.op("Mul", y, column(b, 8)), column(b, 8)), 4, 1))
    result = fold(model)
    assert ops(result.model) == ["Conv", "Clip", "Conv"]
    assert of(result)["folded"] == {"Mul": 2, "Add": 2, "Sub": 1, "Div": 1, "Neg": 1, "BatchNormalization": 1}
    assert ops(fold(model, chains=False).model) == ops(model)


def test_matmul_keeps_one_add() -> None:
    b = Builder()
    y = b.op("Add", b.op("MatMul", b.input("x", 2, 5, 6), b.weight(6, 4)), b.weight(4))
    plain = b.model(y)
    assert fold(plain).model == plain
    following = b.model(b.op("MatMul", y, b.weight(4, 3)))
    assert fold(following).model == following  # another Add would follow
    b.graph.node.pop()
    result = fold(b.model(b.op("Mul", y, b.near_one(4))))
    assert ops(result.model) == ["MatMul", "Add"]


def test_a_bias_goes_into_the_next_gemm() -> None:
    b = Builder()
    y = b.op("Add", b.op("MatMul", b.input("x", 5, 6), b.weight(6, 4)), b.weight(4))
    assert ops(fold(b.model(b.gemm(y, 3))).model) == ["MatMul", "Gemm"]


def test_what_is_read_elsewhere_stays() -> None:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8)
    model = b.model(b.batch_norm(y), y)
    result = fold(model)
    assert result.model == model
    assert of(result)["kept"][0]["reason"] == "the result of the Conv before it is read elsewhere, too"


def test_shared_weights_are_copied() -> None:
    b = Builder()
    x, w, v = b.input("x", 2, 8, 6, 6), b.weight(8, 8, 1, 1), b.weight(8)
    first = b.batch_norm(b.op("Conv", x, w, v))
    second = b.op("Conv", b.op("Relu", first), w, v)
    result = fold(b.model(second))
    assert ops(result.model) == ["Conv", "Relu", "Conv"]
    np.testing.assert_array_equal(arrays(result.model)[w], numpy_helper.to_array(b.graph.initializer[0]))


def test_training_mode_stays() -> None:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8)
    names = [b.near_one(8), b.weight(8), b.weight(8), b.near_one(8)]
    y = b.ops("BatchNormalization", y, *names, outputs=["y", "m", "v"], training_mode=1)[0]
    result = fold(b.model(y))
    assert of(result)["kept"][0]["reason"] == "it takes its statistics from the batch"


def test_what_grows_in_an_add_is_left() -> None:
    b = Builder()
    y = b.op("Add", b.op("Relu", b.input("x", 2, 1, 6, 6)), b.weight(8, 1, 1))
    model = b.model(b.conv(y, 4, 1))
    assert fold(model).model == model
    b = Builder()
    y = b.op("Mul", b.conv(b.input("x", 2, 3, 6, 6), 1), b.weight(8, 1, 1))
    model = b.model(b.op("Add", y, b.weight(6)))  # along the width
    assert fold(model).model == model


@pytest.mark.parametrize(("opset", "ir"), [(9, 3), (13, 7), (21, 10)])
def test_opsets_and_open_batch(opset: int, ir: int) -> None:
    b = Builder(opset, ir_version=ir)
    x = b.input("x", "n", 3, 6, 6)
    y = b.op("Conv", x, b.weight(8, 3, 3, 3), pads=[1, 1, 1, 1])
    scale, shift, mean, var = b.near_one(8), b.weight(8), b.weight(8), b.near_one(8)
    y = b.op("BatchNormalization", y, scale, shift, mean, var, epsilon=0.01)
    result = fold(b.model(b.op("Relu", y)))
    assert ops(result.model) == ["Conv", "Relu"]
    assert [i.name for i in result.model.graph.input if i.name in (scale, shift, mean, var)] == []


def test_half_precision() -> None:
    b = Builder()
    y = b.batch_norm(b.conv(b.input("x", 2, 3, 6, 6), 8))
    model = convert_float_to_float16(b.model(b.op("Relu", y)))
    result = fold(model)
    assert ops(result.model).count("BatchNormalization") == 0
    b = Builder()
    y = b.op("Mul", b.conv(b.input("x", 2, 3, 6, 6), 8), 60000.0)
    y = b.op("Mul", b.op("Mul", y, 60000.0), 1e-3)
    halved = convert_float_to_float16(b.model(y))
    assert ops(fold(halved).model).count("Mul") >= 1  # the weights would be infinite


def test_weights_in_constant_nodes_and_behind_transposes() -> None:
    b = Builder()
    w = numpy_helper.from_array(np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32))
    weights = b.op("Constant", value=w, name="w")
    y = b.batch_norm(b.op("Conv", b.input("x", 2, 3, 6, 6), weights))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    y = b.op("MatMul", y, b.op("Transpose", b.weight(5, 8)))
    result = fold(b.model(b.op("Mul", y, b.near_one(5))))
    assert ops(result.model) == ["Constant", "Conv", "GlobalAveragePool", "Flatten", "MatMul"]
    assert result.model.graph.node[0].output[0] == "w"


def test_names_metadata_and_the_rest_stay() -> None:
    b = Builder()
    y = b.batch_norm(b.conv(b.input("x", 2, 3, 6, 6), 8, name="w"))
    model = b.model(b.op("Relu", y, name="y"))
    helper.set_model_props(model, {"author": "somebody"})
    model.graph.node[0].doc_string = "the stem"
    result = fold(model).model
    assert result.metadata_props == model.metadata_props
    assert result.graph.node[0].doc_string == "the stem" and result.graph.node[0].output[0] == y
    assert result.graph.output == model.graph.output and result.opset_import == model.opset_import


def test_values_that_subgraphs_read_stay() -> None:
    b = Builder()
    x = b.input("x", 2, 3, 6, 6)
    y = b.conv(x, 8)
    z = b.batch_norm(y)
    body = helper.make_graph(
        [helper.make_node("Identity", [y], ["inner"])],
        "body",
        [],
        [helper.make_tensor_value_info("inner", 1, [2, 8, 6, 6])],
    )
    out = b.op("If", b.const(np.array(True)), then_branch=body, else_branch=body)
    model = b.model(b.op("Add", z, out))
    assert fold(model).model == model


def test_external_data_go_from_file_to_file(tmp_path: Path) -> None:
    b = Builder()
    y = b.batch_norm(b.conv(b.input("x", 2, 16, 6, 6), 64))
    write(b.model(b.op("Relu", y)), tmp_path / "m.onnx", external=True)
    out = tmp_path / "out.onnx"
    Pipeline([get("fold_batchnorm")()]).run(tmp_path / "m.onnx", out=out, checks=Checks(seconds=0))
    assert ops(onnx.load(out)) == ["Conv", "Relu"]
    assert (tmp_path / "out.onnx.data").exists()


def test_what_runtimes_put_together_stays_whole() -> None:
    b = Builder()
    x = b.op("MatMul", b.input("x", 2, 5, 8), b.weight(8, 8))
    y = b.op("Mul", b.op("Mul", x, b.op("Add", b.op("Erf", b.op("Div", x, 2**0.5)), 1.0)), 0.5)
    model = b.model(b.op("MatMul", y, b.weight(8, 4)))
    assert fold(model).model == model
    b = Builder()
    x = b.input("x", 2, 5, 8)
    off = b.op("Sub", x, b.op("ReduceMean", x, axes=[-1]))
    spread = b.op("Sqrt", b.op("Add", b.op("ReduceMean", b.op("Pow", off, 2.0), axes=[-1]), 1e-5))
    y = b.op("Mul", b.op("Div", off, spread), b.near_one(8))
    model = b.model(b.op("MatMul", y, b.weight(8, 4)))
    assert fold(model).model == model
