"""What exporters split is one operator again, where the opset has it."""

from math import pi, sqrt
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnxprune import Checks, Pipeline, Result
from onnxprune.errors import OptionError
from onnxprune.passes import get
from onnxprune.testing import Builder


def fuse(model: Any, **options: Any) -> Result:
    """Fuse; the Pipeline proves that the function is the same."""
    result = Pipeline([get("fuse")(**options)]).run(model, checks=Checks(seconds=0))
    onnx.checker.check_model(result.model, full_check=True)
    return result


def ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def gate(b: Builder, x: str) -> str:
    return b.op("Clip", b.op("Add", 3.0, x), 0.0, 6.0)


SWISHES = [
    lambda b, x: b.op("Div", b.op("Mul", x, gate(b, x)), 6.0),
    lambda b, x: b.op("Mul", b.op("Div", gate(b, x), 6.0), x),
    lambda b, x: b.op("Mul", x, b.op("Mul", gate(b, x), np.float32(1 / 6))),
    lambda b, x: b.op("Mul", b.op("Mul", gate(b, x), x), np.float32(1 / 6)),
]


@pytest.mark.parametrize("form", SWISHES)
@pytest.mark.parametrize("opset", [11, 14])
def test_hard_swish(form: Any, opset: int) -> None:
    b = Builder(opset)
    result = fuse(b.model(form(b, b.op("Relu", b.input("x", 2, 8, 4)))))
    assert ops(result.model) == (["Relu", "HardSwish"] if opset == 14 else ["Relu", "HardSigmoid", "Mul"])


def test_clip_with_attributes() -> None:
    b = Builder(10)
    x = b.input("x", 2, 8)
    y = b.op("Div", b.op("Clip", b.op("Add", x, 3.0), min=0.0, max=6.0), 6.0)
    result = fuse(b.model(y))
    assert ops(result.model) == ["HardSigmoid"]
    assert result.record["fuse"] == {"fused": {"Add": 1, "Clip": 1, "Div": 1}, "into": {"HardSigmoid": 1}}
    assert result.record["passes"][0]["said"] == "fused 1 Add, 1 Clip, 1 Div into 1 HardSigmoid"


def test_hard_sigmoid_times_x_is_hard_swish() -> None:
    b = Builder(14)
    x = b.op("Relu", b.input("x", 2, 8))
    y = b.op("Mul", b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5), x)
    z = b.op("Mul", b.op("HardSigmoid", x), x)  # alpha is 0.2
    assert ops(fuse(b.model(y, z)).model) == ["Relu", "HardSwish", "HardSigmoid", "Mul"]


GELUS = [
    lambda b, x: b.op("Mul", b.op("Mul", x, b.op("Add", b.op("Erf", b.op("Div", x, sqrt(2))), 1.0)), 0.5),
    lambda b, x: b.op("Mul", b.op("Mul", 0.5, x), b.op("Add", 1.0, b.op("Erf", b.op("Mul", x, sqrt(0.5))))),
    lambda b, x: b.op("Mul", x, b.op("Mul", 0.5, b.op("Add", b.op("Erf", b.op("Div", x, sqrt(2))), 1.0))),
]


@pytest.mark.parametrize("form", GELUS)
def test_gelu(form: Any) -> None:
    b = Builder(20)
    assert ops(fuse(b.model(form(b, b.input("x", 2, 8)))).model) == ["Gelu"]
    b = Builder(17)
    model = b.model(form(b, b.input("x", 2, 8)))
    assert fuse(model).model == model


def test_gelu_by_tanh() -> None:
    b = Builder(20)
    x = b.input("x", 2, 8)
    inner = b.op("Mul", b.op("Add", x, b.op("Mul", b.op("Pow", x, 3.0), 0.044715)), sqrt(2 / pi))
    y = b.op("Mul", b.op("Mul", 0.5, x), b.op("Add", 1.0, b.op("Tanh", inner)))
    result = fuse(b.model(y))
    assert ops(result.model) == ["Gelu"]
    assert result.model.graph.node[0].attribute[0].s == b"tanh"


def norm(b: Builder, x: str, square: str = "Pow", last: Any = None, **attrs: Any) -> str:
    def mean(value: str) -> str:
        return b.op("ReduceMean", value, *([last] if last else []), **attrs)

    off = b.op("Sub", x, mean(x))
    squared = b.op("Pow", off, 2.0) if square == "Pow" else b.op("Mul", off, off)
    return b.op("Div", off, b.op("Sqrt", b.op("Add", mean(squared), 1e-5)))


@pytest.mark.parametrize(("opset", "axes"), [(17, {"axes": [-1]}), (18, None)])
@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_layer_norm(opset: int, axes: Any, square: str) -> None:
    b = Builder(opset)
    y = norm(b, b.input("x", 2, 3, 8), square, None if axes else [-1], **(axes or {}))
    y = b.op("Add", b.op("Mul", y, b.near_one(8, name="g")), b.weight(8, name="b"))
    result = fuse(b.model(y))
    assert ops(result.model) == ["LayerNormalization"]
    assert list(result.model.graph.node[0].input) == ["x", "g", "b"]
    assert {t.name for t in result.model.graph.initializer} == {"g", "b"}


def test_what_is_no_layer_norm() -> None:
    b = Builder()
    y = b.op("Mul", norm(b, b.input("x", 2, 3, 8), keepdims=1), b.near_one(8))  # over all axes
    z = b.op("Mul", norm(b, b.input("z", 2, 3, 8), axes=[-1]), b.near_one(3, 8))
    model = b.model(y, z)
    assert fuse(model).model == model


def test_what_is_read_on_the_way_stays() -> None:
    b = Builder(14)
    x = b.input("x", 2, 8)
    inner = gate(b, x)
    model = b.model(b.op("Div", b.op("Mul", x, inner), 6.0), inner)
    result = fuse(model)
    assert result.model == model and result.record["passes"][0]["said"] == "nothing to fuse"


def test_other_numbers_and_integers_stay() -> None:
    b = Builder(14)
    x = b.input("x", 2, 8)
    z = b.input("z", 2, 8, dtype=np.int64)
    y = b.op("Div", b.op("Mul", x, b.op("Clip", b.op("Add", x, 2.5), 0.0, 6.0)), 6.0)
    w = b.op("Div", b.op("Clip", b.op("Add", z, 3), 0, 6), 6)
    model = b.model(y, w)
    assert fuse(model).model == model


def test_skip() -> None:
    b = Builder(14)
    model = b.model(SWISHES[0](b, b.input("x", 2, 8)))
    assert "HardSwish" not in ops(fuse(model, skip=("HardSwish",)).model)
    with pytest.raises(OptionError, match="fuse: skip = 'Conv': choose among LayerNormalization, Gelu"):
        get("fuse")(skip=["Conv"])


def test_half_precision() -> None:
    b = Builder(14)
    x = b.input("x", 2, 8, dtype=np.float16)
    number = np.float16
    y = b.op("Clip", b.op("Add", x, number(3)), number(0), number(6))
    y = b.op("Mul", x, b.op("Mul", y, number(1 / 6)))
    assert ops(fuse(b.model(y)).model) == ["HardSwish"]
