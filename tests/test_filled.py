"""Weights that ConstantOfShape makes: models that are shipped without their weights can be cut, too."""

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune import load
from onnxprune.testing import Builder, prove


def filled(b: Builder, value: float, *dims: int) -> str:
    number = numpy_helper.from_array(np.array([value], np.float32))
    return b.op("ConstantOfShape", np.array(dims), value=number)


@pytest.mark.parametrize("version", [3, 8])
def test_filled_weights_are_cut(version: int) -> None:
    """The shape is rewritten: the model stays as small as it was."""
    b = Builder(ir_version=version, opset=9)
    w1, w2 = filled(b, 0.02, 8, 3, 3, 3), filled(b, 0.05, 4, 8, 1, 1)
    y = b.op("Conv", b.input("x", 2, 3, 6, 6), w1, pads=[1] * 4)
    y = b.op("Conv", b.op("Sigmoid", y), w2)
    model = b.model(y)
    assert load(model).size(w1) == 216
    result = prove(model)
    assert result.choices(w1) == result.choices(w2, 1) == [8]
    assert sum(n.op_type == "ConstantOfShape" for n in result.model.graph.node) == 2
    assert not any(len(t.dims) == 4 for t in result.model.graph.initializer)


def test_a_filled_vector_that_two_layers_read_couples_them() -> None:
    b = Builder()
    scale, other = filled(b, 1.5, 8), b.near_one(8)
    y = b.input("x", 2, 3, 6, 6)
    for name in ("w1", "w2"):
        y = b.op("BatchNormalization", b.conv(y, 8, name=name), scale, other, other, other)
        y = b.op("Relu", y)
    result = prove(b.model(b.conv(y, 4, 1, name="w3")))
    assert result.choices("w1") == result.choices("w2") == [8]


def test_a_mask_is_no_weight() -> None:
    b = Builder()
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    y = b.op("Mul", y, filled(b, 2.0, 8, 1, 1))
    model = b.model(b.conv(y, 4, 1, name="w2"))
    assert not load(model).filled
    assert prove(model).can_cut("w1")
