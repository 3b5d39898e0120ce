"""What ONNX Runtime's own tools make of a model: fused by its optimisers, quantised by its quantiser."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto
from onnxruntime import quantization
from onnxruntime.transformers import optimizer

from onnxprune.testing import Builder, OracleResult, prove

HEADS, WIDTH, TOKENS, INNER = 4, 8, 5, 48
HIDDEN = HEADS * WIDTH


def linear(b: Builder, y: str, rows: int, columns: int, name: str) -> str:
    return b.op(
        "Add", b.op("MatMul", y, b.weight(rows, columns, name=name, fan=rows)), b.weight(columns, name=f"{name}.b")
    )


def norm(b: Builder, y: str) -> str:
    return b.op("LayerNormalization", y, b.near_one(HIDDEN), b.weight(HIDDEN), axis=-1)


def heads(b: Builder, y: str, perm: list[int]) -> str:
    return b.op("Transpose", b.op("Reshape", y, [0, 0, HEADS, WIDTH]), perm=perm)


def transformer(opset: int = 17) -> ModelProto:
    """An encoder layer as torch exports it, norms after the sums, one sum in between."""
    b = Builder(opset)
    x = norm(b, linear(b, b.input("x", 2, TOKENS, 6), 6, HIDDEN, "embed"))
    q, k, v = (linear(b, x, HIDDEN, HIDDEN, name) for name in "qkv")
    scores = b.op("Div", b.op("MatMul", heads(b, q, [0, 2, 1, 3]), heads(b, k, [0, 2, 3, 1])), WIDTH**0.5)
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1), heads(b, v, [0, 2, 1, 3]))
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, HIDDEN])
    x = norm(b, b.op("Add", linear(b, y, HIDDEN, HIDDEN, "out"), x))
    y = linear(b, x, HIDDEN, INNER, "up")
    half = b.op("Mul", y, b.op("Add", b.op("Erf", b.op("Div", y, 2**0.5)), 1.0))
    x = norm(b, b.op("Add", linear(b, b.op("Mul", half, 0.5), INNER, HIDDEN, "down"), x))
    return b.model(linear(b, x, HIDDEN, 4, "head"))


def convolutions() -> ModelProto:
    b = Builder(17)
    y = b.op("Relu", b.conv(b.input("x", 2, 3, 8, 8), 8, name="a"))
    z = b.op("Relu", b.conv(y, 8, name="b"))
    y = b.op("Add", y, z)
    y = b.op(
        "Concat",
        b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]),
        b.op("AveragePool", z, kernel_shape=[2, 2], strides=[2, 2]),
        axis=1,
    )
    y = b.op("Relu", b.conv(y, 6, 1, "c"))
    return b.model(b.gemm(b.op("Flatten", b.op("GlobalAveragePool", y)), 4, "out"))


def sizes(result: OracleResult) -> list[int]:
    """The sizes of all groups in which something can be chosen."""
    return sorted(g.units.size for g in result.coupling.groups if g.units.size > 1)


def ops(model: ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    yield tmp_path / "before.onnx", tmp_path / "after.onnx"


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_the_optimiser_for_transformers(kind: str, files: tuple[Path, Path]) -> None:
    """Attention, SkipLayerNormalization, BiasGelu."""
    before, after = files
    onnx.save(transformer(), before)
    made = optimizer.optimize_model(str(before), model_type=kind, num_heads=HEADS, hidden_size=HIDDEN, opt_level=0)
    made.save_model_to_file(str(after))
    model = onnx.load(after)
    assert {"Attention", "SkipLayerNormalization"} <= ops(model)
    assert sizes(prove(model)) == [HEADS, INNER]


@pytest.mark.parametrize("make", [transformer, convolutions])
def test_a_saved_session(make: Callable[[], ModelProto], files: tuple[Path, Path]) -> None:
    """The graph as ONNX Runtime runs it, after all that is not bound to a machine."""
    before, after = files
    onnx.save(make(), before)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(after)
    ort.InferenceSession(before, options, providers=["CPUExecutionProvider"])
    model = onnx.load(after)
    assert ops(model) & {"FusedConv", "SkipLayerNormalization"}
    assert sizes(prove(model)) == sizes(prove(make()))


class Feeds(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Three batches of noise."""

    def __init__(self, model: ModelProto) -> None:
        info = model.graph.input[0]
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        draw = np.random.default_rng(0).standard_normal
        self.rest = iter([{info.name: draw(shape).astype(np.float32)} for _ in range(3)])

    def get_next(self) -> Any:
        return next(self.rest, None)


@pytest.mark.parametrize("columns", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("make", [transformer, convolutions])
def test_static_quantisation(
    make: Callable[[], ModelProto], form: str, columns: bool, files: tuple[Path, Path]
) -> None:
    before, after = files
    onnx.save(make(), before)
    quantization.quantize_static(
        before,
        after,
        Feeds(make()),
        quant_format=quantization.QuantFormat[form],
        per_channel=columns,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    assert sizes(prove(onnx.load(after), rounds=1)) == ([HEADS, INNER] if make is transformer else [6, 8])


@pytest.mark.parametrize("columns", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
def test_dynamic_quantisation(kind: str, columns: bool, files: tuple[Path, Path]) -> None:
    """Ranges are those of whole tensors: what arrives with zeros can go."""
    before, after = files
    onnx.save(transformer(), before)
    quantization.quantize_dynamic(before, after, per_channel=columns, weight_type=quantization.QuantType[kind])
    assert sizes(prove(onnx.load(after), rounds=1)) == [HEADS, INNER]


def test_four_bits(files: tuple[Path, Path]) -> None:
    """MatMulNBits contracts blocks of 16: two heads, or 16 inner units, go together."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    made = MatMulNBitsQuantizer(transformer(), block_size=16, is_symmetric=True)
    made.process()
    model = made.model.model
    assert "MatMulNBits" in ops(model)
    assert sizes(prove(model)) == [HEADS * WIDTH // 16, INNER // 16]
