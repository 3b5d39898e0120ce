"""Float16 without all numbers at once: the tool decides about types, and weights follow one by one."""

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from onnxprune.graph import load
from onnxprune.quantized import halves
from onnxprune.quantized.halves import half, rounded
from onnxprune.quantized.working import working
from onnxprune.testing import Builder
from onnxprune.writing import stream


def network() -> ModelProto:
    """Weights for float16, for float32 alone, and for both; all larger than what stays in the proto."""
    b = Builder(13)
    shared = b.weight(32, 32, name="shared")
    y = b.op("MatMul", b.input("x", 2, 32), shared)
    y = b.op("MatMul", b.op("MatMul", y, b.weight(32, 32, name="alone")), shared)
    return b.model(b.op("MatMul", y, b.weight(32, 40, name="last")))


def test_as_the_tool_alone(tmp_path: Path) -> None:
    graph = load(network())
    work, kept = working(graph, tmp_path), [n.label for n in graph.nodes[1:3]]
    path = stream(tmp_path / "made.onnx", lambda store: half(work.path, kept, True))
    mine, theirs = onnx.load(path), convert_float_to_float16(str(work.path), keep_io_types=True, node_block_list=kept)
    assert mine.graph.node == theirs.graph.node
    assert list(mine.graph.value_info) == list(theirs.graph.value_info)
    for a, b in zip(mine.graph.initializer, theirs.graph.initializer, strict=True):
        assert (a.name, a.data_type) == (b.name, b.data_type)
        np.testing.assert_array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))
    kinds = {t.name: t.data_type for t in mine.graph.initializer}
    assert kinds == {
        "shared": TensorProto.FLOAT16,
        "alone": TensorProto.FLOAT,
        "last": TensorProto.FLOAT16,
    }


def test_numbers_as_the_tool_rounds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.sums.CHUNK", 2)
    given = np.array([[1e-9, -1e-9, 0.1], [1e6, -np.inf, -0.0]], np.float32)
    found = rounded(given)
    np.testing.assert_array_equal(found, np.array([[6e-8, -6e-8, 0.1], [65504, -np.inf, 0]], np.float16), strict=True)


def test_the_tool_never_has_all_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.sums.CHUNK", 1 << 16)
    b, size = Builder(13), 1024
    y = b.input("x", 1, size)
    for _ in range(4):
        y = b.op("MatMul", y, b.weight(size, size))
    work = working(load(b.model(y)), tmp_path)
    tracemalloc.start()
    halves.staying(load(work.path))
    half(work.path, (), True)
    assert tracemalloc.get_traced_memory()[1] < 0.5 * 4 * size * size * 4
    tracemalloc.stop()
