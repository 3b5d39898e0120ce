"""Weights as their extremes: the tool finds the scales of the whole weights, which become the same integers."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from onnxprune.graph import load
from onnxprune.quantized.extremes import reduced
from onnxprune.quantized.integers import OF_GEMM, Grid, dynamic
from onnxprune.quantized.working import working
from onnxprune.runtime import run, session
from onnxprune.testing import Builder
from onnxprune.writing import stream

DONE = {"plain", "straight", "turned", "last", "table", "kernel", "twice", "twice_Transposed"}
OPS = ("Conv", "Gather", "Gemm", "MatMul")


def network() -> ModelProto:
    """Every kind of weight that has a stand-in, larger than what stays in the proto; and one read in two ways."""
    b = Builder(13)
    y = b.op("Add", b.op("MatMul", b.input("x", 5, 40), b.weight(40, 24, name="plain")), b.near_one(24))
    y = b.op("Gemm", y, b.weight(24, 32, name="straight"), b.near_one(32))
    y = b.op("Gemm", y, b.weight(48, 32, name="turned"), b.near_one(48), transB=1)
    y = b.op("Gemm", y, b.weight(32, 48, name="scaled"), b.near_one(32), transB=1, alpha=0.5)
    y = b.op("Gemm", y, b.weight(16, 32, name="kept"), b.near_one(16), transB=1)
    twice = b.weight(16, 20, name="twice")
    y = b.op("MatMul", b.op("Gemm", b.op("MatMul", y, twice), twice, transB=1), b.weight(16, 36, name="last"))
    y = b.op("Add", y, b.op("Gather", b.weight(9, 36, name="table"), b.const(np.array([3, 1, 0, 2, 8]))))
    pictures = b.op("Reshape", y, b.const(np.array([5, 4, 3, 3])))
    return b.model(b.op("Conv", pictures, b.weight(16, 4, 3, 3, name="kernel"), kernel_shape=[3, 3]))


@pytest.mark.parametrize("grid", [Grid("int8", "uint8", True, False), Grid("uint8", "uint8", False, True)])
def test_as_the_tool_alone(tmp_path: Path, grid: Grid) -> None:
    graph = load(network())
    work, stays = working(graph, tmp_path), [n.label for n in graph.nodes if "kept" in n.inputs]
    made = stream(tmp_path / "made.onnx", lambda store: dynamic(work.path, tmp_path / "out.onnx", grid, OPS, stays))
    theirs = tmp_path / "theirs.onnx"
    quantize_dynamic(
        work.path,
        theirs,
        op_types_to_quantize=["Conv", "Gather", "MatMul"],
        per_channel=grid.per_channel,
        reduce_range=grid.reduce_range,
        weight_type=QuantType.QInt8 if grid.weights == "int8" else QuantType.QUInt8,
        nodes_to_exclude=[*stays, *(f"{name}{OF_GEMM}" for name in stays)],
    )
    mine, other = numbers(made), numbers(theirs)
    assert mine.keys() == other.keys()
    assert {name for name in mine if name.endswith("_quantized")} == {f"{name}_quantized" for name in DONE}
    for name, value in other.items():
        np.testing.assert_array_equal(mine[name], value, name, strict=True)
    feed = {"x": np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)}
    (answer,), (known,) = (run(session(path), feed).values() for path in (made, theirs))
    np.testing.assert_array_equal(answer, known)


def numbers(path: Path) -> dict[str, Any]:
    """By name; of a transposed weight, that of the weight."""
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return {k if "twice" in k else k.replace("_Transposed", ""): v for k, v in found.items()}


def test_what_has_a_stand_in(tmp_path: Path) -> None:
    work = working(load(network()), tmp_path)
    found = reduced(work.path, tmp_path / "reduced.onnx")
    assert set(found) == {"plain", "straight", "turned", "kept", "last", "table", "kernel"}
    small = {t.name: tuple(t.dims) for t in onnx.load(tmp_path / "reduced.onnx").graph.initializer}
    assert small["plain"] == (2, 24)
    assert small["turned"] == (2, 48)
    assert small["kernel"] == (16, 2, 3, 3)
    assert small["twice"] == (16, 20)


def test_the_tool_never_has_all_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.sums.CHUNK", 1 << 16)
    b = Builder(13)
    y = b.op("Gemm", b.input("x", 1, 1024), b.weight(2048, 1024, name="w"), transB=1)
    work = working(load(b.model(b.op("MatMul", y, b.weight(2048, 1024, name="v")))), tmp_path)
    tracemalloc.start()
    dynamic(work.path, tmp_path / "out.onnx", Grid("int8", "uint8", True, False), OPS, ())
    assert tracemalloc.get_traced_memory()[1] < 0.5 * 2 * 2048 * 1024 * 4
    tracemalloc.stop()
