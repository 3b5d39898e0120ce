"""Sparse tensors: read as dense ones, written where that is smaller, and the same to ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.feeds import input_specs, random_feeds
from onnxprune.graph import load
from onnxprune.sparse import densified, sparse_bytes, with_sparse
from onnxprune.tensors import in_proto
from onnxprune.testing import Builder


def mostly_zero(*shape: int, dtype: type = np.float32) -> NDArray[np.floating]:
    rng = np.random.default_rng(0)
    return np.where(rng.random(shape) < 0.9, 0, rng.standard_normal(shape)).astype(dtype)


def tiny(dtype: type = np.float32) -> ModelProto:
    b = Builder()
    x = b.input("x", 1, 3, 6, 6, dtype=dtype)
    w, v = b.const(mostly_zero(8, 3, 3, 3, dtype=dtype), "w"), b.const(np.ones((4, 8, 1, 1), dtype), "v")
    return b.model(b.op("Conv", b.op("Conv", x, w, pads=[1, 1, 1, 1]), v))


def answer(model: ModelProto) -> NDArray[np.floating]:
    ready = runtime.session(model, threads=1)
    return next(iter(runtime.run(ready, random_feeds(input_specs(model))[0]).values()))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_there_and_back(dtype: type) -> None:
    dense = tiny(dtype)
    sparse, made = with_sparse(dense, None, {"w", "v"})
    assert made == ["w"]  # ones would take three times as much
    assert [t.name for t in sparse.graph.initializer] == ["v"] and sparse.ByteSize() < dense.ByteSize()
    onnx.checker.check_model(sparse)
    np.testing.assert_array_equal(answer(sparse), answer(dense))
    back = load(sparse)
    assert back.array("w").dtype == dtype
    np.testing.assert_array_equal(back.array("w"), load(dense).array("w"))
    assert back.shapes == load(dense).shapes
    assert not back.proto.graph.sparse_initializer and sparse.graph.sparse_initializer  # what was given is as it was


def test_indices_a_row_for_each_axis() -> None:
    """ONNX has two ways to say where values are."""
    w = mostly_zero(8, 3, 3, 3)
    sparse, _ = with_sparse(tiny(), None, {"w"})
    at = np.argwhere(w)
    held = sparse.graph.sparse_initializer[0]
    held.indices.CopyFrom(numpy_helper.from_array(at))
    np.testing.assert_array_equal(load(sparse).array("w"), w)


def test_a_sparse_constant_node() -> None:
    w = mostly_zero(8, 3, 3, 3)
    at = np.flatnonzero(w)
    value: SparseTensorProto = helper.make_sparse_tensor(
        numpy_helper.from_array(w.reshape(-1)[at], "values"), numpy_helper.from_array(at), list(w.shape)
    )
    b = Builder()
    y = b.op("Conv", b.input("x", 1, 3, 6, 6), b.op("Constant", name="w", value=numpy_helper.from_array(w)))
    model = b.model(y)
    dense = answer(model)
    model.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("sparse_value", value))
    np.testing.assert_array_equal(answer(model), dense)
    graph = load(model)
    np.testing.assert_array_equal(graph.array("w"), w)
    np.testing.assert_array_equal(answer(graph.proto), dense)


@pytest.mark.parametrize("opset", [10, 11, 13])
def test_constant_nodes_become_sparse(opset: int, tmp_path: Path) -> None:
    """From opset 11 on they can."""
    w, v = mostly_zero(8, 3, 3, 3), np.ones((4, 8, 1, 1), np.float32)
    b = Builder(opset=opset)
    held = [b.op("Constant", name=name, value=numpy_helper.from_array(a)) for name, a in (("w", w), ("v", v))]
    dense = b.model(b.op("Conv", b.op("Conv", b.input("x", 1, 3, 6, 6), held[0], pads=[1, 1, 1, 1]), held[1]))
    before = dense.SerializeToString()
    sparse, made = with_sparse(dense, None, {"w", "v"})
    assert made == (["w"] if opset >= 11 else []) and dense.SerializeToString() == before
    assert (sparse.ByteSize() < dense.ByteSize()) == (opset >= 11)
    onnx.checker.check_model(sparse)
    np.testing.assert_array_equal(answer(sparse), answer(dense))
    np.testing.assert_array_equal(load(sparse).array("w"), w)


def test_values_in_another_file(tmp_path: Path) -> None:
    sparse, _ = with_sparse(tiny(), None, {"w"})
    values = sparse.graph.sparse_initializer[0].values
    (tmp_path / "values.bin").write_bytes(values.raw_data)
    values.ClearField("raw_data")
    values.data_location = TensorProto.EXTERNAL
    values.external_data.add(key="location", value="values.bin")
    (tmp_path / "m.onnx").write_bytes(sparse.SerializeToString())
    np.testing.assert_array_equal(load(tmp_path / "m.onnx").array("w"), mostly_zero(8, 3, 3, 3))


def test_bytes() -> None:
    w = mostly_zero(8, 3, 3, 3)
    sparse, _ = with_sparse(tiny(), None, {"w"})
    held = sparse.graph.sparse_initializer[0]
    assert sparse_bytes(w) == len(held.values.raw_data) + len(held.indices.raw_data)


def test_dense_models_are_not_copied() -> None:
    model = tiny()
    assert densified(model, None) is model
    model.graph.initializer[0].raw_data = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32)).raw_data
    assert with_sparse(model, None, {"w"}, in_proto)[1] == []
