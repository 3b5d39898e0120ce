"""What does nothing, is done twice, is constant or never read goes; names of outputs and the function stay."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import Checks, Pipeline, Result
from onnxprune.errors import OptionError
from onnxprune.passes import get
from onnxprune.testing import Builder, arrays
from onnxprune.writing import write


def tidy(model: Any, **options: Any) -> Result:
    """Tidy; the Pipeline proves that the function is the same."""
    result = Pipeline([get("tidy")(**options)]).run(model, checks=Checks(seconds=0))
    onnx.checker.check_model(result.model, full_check=True)
    return result


def ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def said(result: Result) -> str:
    text: str = result.record["passes"][0]["said"]
    return text


def test_nothing_to_do() -> None:
    b = Builder()
    model = b.model(b.op("Relu", b.conv(b.input("x", 2, 3, 6, 6), 8)))
    result = tidy(model)
    assert result.model == model and said(result) == "nothing to tidy"


def test_nodes_that_do_nothing() -> None:
    b = Builder()
    x = b.input("x", 2, 3, 4, 4)
    y = b.op("Identity", b.op("Relu", x))
    y = b.op("Cast", b.op("Dropout", y), to=TensorProto.FLOAT)
    y = b.op("Transpose", y, perm=[0, 1, 2, 3])
    y = b.op("Reshape", y, [2, 3, 4, -1])
    y = b.op("Slice", y, [0], [2**31 - 1], [2])
    y = b.op("Pad", b.op("Concat", y, axis=1), [0] * 8)
    y = b.op("Sub", b.op("Mul", y, np.ones((3, 1, 1), np.float32)), 0.0)
    result = tidy(b.model(b.op("Sigmoid", y)))
    assert ops(result.model) == ["Relu", "Sigmoid"]
    assert result.record["tidy"]["dropped"]["Dropout"] == 1
    assert not result.model.graph.initializer
    assert "dropped 1 Cast, 1 Concat, 1 Dropout, 1 Identity" in said(result)


def test_what_looks_like_nothing_stays() -> None:
    b = Builder()
    x = b.input("x", 1, 3, 1, 4)
    y = b.op("Add", x, np.zeros((8, 1), np.float32))  # grows
    y = b.op("Slice", y, [-1], [-(2**31)], [3], [-1])  # turns round
    y = b.op("Slice", y, [0], [2], [2])
    y = b.op("Mul", y, np.array([1, 1, 1, 2], np.float32))
    model = b.model(b.op("Expand", b.op("Transpose", y, perm=[0, 1, 3, 2]), [2, 1, 1, 1]))
    assert ops(tidy(model).model) == ops(model)


def test_open_sizes() -> None:
    b = Builder()
    x = b.op("Relu", b.input("x", "n", 3, "h", 4))
    same = b.op("Reshape", b.input("z", "n", 6), [-1, 6])
    other = b.op("Reshape", x, [-1, 3, 4, 2])
    assert ops(tidy(b.model(b.op("Relu", same), b.op("Relu", other))).model).count("Reshape") == 1


def test_transposes_that_cancel_and_reshapes_in_a_row() -> None:
    b = Builder()
    x = b.op("Relu", b.input("x", 2, 3, 4, 5))
    y = b.op("Transpose", b.op("Transpose", x, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
    z = b.op("Reshape", b.op("Flatten", y), [2, 20, 3])
    result = tidy(b.model(b.op("Relu", z)))
    assert ops(result.model) == ["Relu", "Reshape", "Relu"]
    b = Builder()
    x = b.input("x", 2, 3, 4)
    y = b.op("Reshape", b.op("Reshape", x, [6, 4]), [0, 2, 2])  # 0: a size of the first one's result
    model = b.model(y)
    assert tidy(model).model == model


def test_what_is_done_twice_is_done_once() -> None:
    b = Builder()
    x = b.input("x", 2, 3, 4, 4)
    first, second = (b.op("Sigmoid", b.op("Relu", x)) for _ in range(2))
    chance = [b.op("RandomNormalLike", x) for _ in range(2)]
    y = b.op("Add", b.op("Mul", first, 2.0), b.op("Mul", second, 3.0))
    z = b.op("Mul", b.op("Sub", *chance), 0.0)
    assert ops(tidy(b.model(b.op("Add", y, z))).model).count("Sigmoid") == 1
    assert ops(tidy(b.model(b.op("Add", y, z))).model).count("RandomNormalLike") == 2


def test_outputs_keep_their_names() -> None:
    b = Builder()
    x = b.input("x", 2, 3, 4, 4)
    y = b.op("Relu", x)
    model = b.model(b.op("Identity", y, name="out"), b.op("Identity", y, name="again"), b.op("Identity", x, name="in"))
    result = tidy(model).model
    assert [o.name for o in result.graph.output] == ["out", "again", "in"]
    assert ops(result) == ["Relu", "Identity", "Identity"]
    assert result.graph.node[0].output[0] == "out"


def test_an_inner_value_that_is_an_output_keeps_its_name() -> None:
    b = Builder()
    y = b.op("Relu", b.input("x", 2, 3), name="inner")
    model = b.model("inner", b.op("Identity", y, name="out"))
    assert tidy(model).model == model


def test_constants_are_computed_beforehand() -> None:
    b = Builder()
    x = b.input("x", 2, 8)
    w = b.op("Transpose", b.op("Mul", b.weight(4, 8, name="w"), 0.5))
    y = b.op("Add", b.op("MatMul", x, w), b.op("Reshape", b.op("ConstantOfShape", [4]), [1, 4]))
    result = tidy(b.model(y))
    assert "Transpose" not in ops(result.model) and "ConstantOfShape" not in ops(result.model)
    assert result.record["tidy"]["computed"] >= 1
    b = Builder()
    big = b.op("ConstantOfShape", [2, 4096])
    model = b.model(b.op("Add", b.input("x", 2, 4096), big))
    assert tidy(model).model == model  # it would only make the file larger
    b = Builder()
    y = b.op("MatMul", b.input("x", 2, 8), b.op("Transpose", b.weight(4, 8)))
    model = b.model(y)
    assert tidy(model, largest=8).model == model


def test_quantised_weights_stay_quantised() -> None:
    b = Builder()
    w = b.op("DequantizeLinear", b.const(np.ones((8, 4), np.int8)), np.float32(0.1), np.int8(0))
    model = b.model(b.op("MatMul", b.input("x", 2, 8), w))
    assert tidy(model).model == model


def test_equal_constants() -> None:
    b = Builder()
    x = b.input("x", 2, 8)
    y = b.op("Reshape", b.op("Relu", b.op("Reshape", x, [4, 4])), [2, 2, 4])
    y = b.op("Reshape", b.op("Relu", b.op("Reshape", b.op("Relu", y), [4, 4])), [2, 8])
    w = b.rng.standard_normal((8, 8)).astype(np.float32)
    for name in ("w1", "w2"):
        y = b.op("Relu", b.op("MatMul", y, b.const(w, name)))
    result = tidy(b.model(y))
    assert said(result) == "1 constants fewer" and {"w1", "w2"} <= set(arrays(result.model))
    assert "w2" not in arrays(tidy(b.model(y), weights=True).model)


def test_dead_nodes_and_initializers() -> None:
    b = Builder()
    x = b.input("x", 2, 8)
    b.op("MatMul", x, b.weight(8, 8, name="unread"))
    b.const(np.zeros(3, np.float32), "never")
    result = tidy(b.model(b.op("Relu", x)))
    assert ops(result.model) == ["Relu"] and not result.model.graph.initializer
    assert result.record["tidy"] == {"dropped": {"MatMul": 1}, "computed": 0, "constants": 2, "functions": 0}


def test_functions_that_nothing_calls() -> None:
    b = Builder()
    body = [helper.make_node("Relu", ["a"], ["b"])]
    b.functions.append(helper.make_function("acme", "Unused", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    result = tidy(b.model(b.op("Relu", b.input("x", 2, 8))))
    assert not result.model.functions and said(result) == "1 functions that nothing calls"


def test_an_output_that_equals_a_computed_constant() -> None:
    b = Builder()
    w = b.op("Transpose", b.weight(8, 4))
    y = b.op("MatMul", b.input("x", 2, 4), w)
    result = tidy(b.model(y, b.op("Identity", w, name="weights"))).model
    assert [o.name for o in result.graph.output] == [y, "weights"]


def test_subgraphs_keep_what_they_read() -> None:
    b = Builder()
    x = b.op("Relu", b.input("x", 2, 3))
    same = b.op("Identity", x)
    c, d = b.const(np.array([2, 3]), "c"), b.const(np.array([2, 3]), "d")
    body = helper.make_graph(
        [helper.make_node("Reshape", [same, d], ["inner"])],
        "body",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [2, 3])],
    )
    y = b.op("If", b.const(np.array(True)), then_branch=body, else_branch=body)
    out = b.op("Add", y, b.op("Expand", b.op("Sigmoid", same), c))
    result = tidy(b.model(out)).model
    assert ops(result) == ["Relu", "Identity", "If", "Sigmoid", "Add"]
    assert "d" in arrays(result)


def test_old_ir_and_constant_nodes() -> None:
    b = Builder(9, ir_version=3)
    x = b.input("x", 2, 4)
    y = b.op("Reshape", b.op("Reshape", x, b.const([8], "s1")), b.const([4, 2], "s2"))
    result = tidy(b.model(y)).model
    assert [i.name for i in result.graph.input] == ["x", "s2"]
    b = Builder()
    twins = [b.op("Constant", value=numpy_helper.from_array(np.array([4, 2]))) for _ in range(2)]
    a, c = (b.op("Reshape", b.input(f"x{i}", 2, 4), t) for i, t in enumerate(twins))
    assert ops(tidy(b.model(b.op("Add", a, c))).model) == ["Constant", "Reshape", "Reshape", "Add"]


def test_options() -> None:
    with pytest.raises(OptionError, match="tidy: largest = -1: give a number of elements"):
        get("tidy")(largest=-1)


def test_external_data(tmp_path: Path) -> None:
    b = Builder()
    y = b.op("MatMul", b.op("Identity", b.op("Relu", b.input("x", 2, 64))), b.weight(64, 64))
    write(b.model(y), tmp_path / "m.onnx", external=True)
    Pipeline([get("tidy")()]).run(tmp_path / "m.onnx", out=tmp_path / "out.onnx", checks=Checks(seconds=0))
    assert ops(onnx.load(tmp_path / "out.onnx")) == ["Relu", "MatMul"]
    assert (tmp_path / "out.onnx.data").exists()
