"""The number formats that a model computes in."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.formats import formats, is_half


def test_weights_values_and_casts() -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Add", ["h", "w"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.DOUBLE),
    ]
    weights = [numpy_helper.from_array(np.ones(3, np.float16), "w"), numpy_helper.from_array(np.ones(2, np.int64), "i")]
    x, y = value("x", TensorProto.FLOAT, [3]), value("y", TensorProto.DOUBLE, [3])
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights))
    kinds = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.DOUBLE}
    assert formats(model) == formats(model.SerializeToString()) == kinds


@pytest.mark.parametrize(("dtype", "half"), [(np.float16, True), (np.float32, False), (np.int8, False)])
def test_half_is_what_most_weights_are(dtype: type, half: bool) -> None:
    weights = [numpy_helper.from_array(np.ones(30, dtype), "w"), numpy_helper.from_array(np.ones(2, np.float32), "b")]
    assert is_half(helper.make_model(helper.make_graph([], "g", [], [], weights))) is half
    assert not is_half(helper.make_model(helper.make_graph([], "g", [], [])))
