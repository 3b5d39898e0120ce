"""Operators of ai.onnx.ml."""

import pytest

from onnxprune.testing import Builder, prove

ML = "ai.onnx.ml::"


def builder() -> tuple[Builder, str]:
    b = Builder(17, **{"ai.onnx.ml": 3})
    return b, b.gemm(b.input("x", 5, 3), 6, "a")


@pytest.mark.parametrize("each", [False, True], ids=["one scale", "a scale for each feature"])
def test_scaler(each: bool) -> None:
    b, y = builder()
    count = 6 if each else 1
    scale, offset = [0.5 + 0.1 * i for i in range(count)], [0.1 * i for i in range(count)]
    y = b.declare(b.op(f"{ML}Scaler", y, scale=scale, offset=offset), 5, 6)
    result = prove(b.model(b.gemm(y, 4, "b")))
    assert result.choices("a") == result.choices("b", 1) == [6]
    assert all(len(a.floats) == (3 if each else 1) for a in result.model.graph.node[1].attribute)


def test_normalizer() -> None:
    b, y = builder()
    y = b.declare(b.op(f"{ML}Normalizer", y, norm="L2"), 5, 6)
    result = prove(b.model(b.gemm(b.op("Tanh", b.gemm(y, 7, "b")), 4)))
    assert result.reason("a") == "Normalizer takes the norm over the axis"
    assert result.choices("b") == [7]


def test_features_by_index() -> None:
    b, y = builder()
    y = b.declare(b.op(f"{ML}ArrayFeatureExtractor", y, [0, 2]), 5, 2)
    result = prove(b.model(b.gemm(b.op("Tanh", b.gemm(y, 7, "b")), 4)))
    assert result.reason("a") == "features are picked by index"
