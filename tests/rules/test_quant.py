"""Quantised models as QDQ: scales and zero points go with their channels."""

from typing import Any

import numpy as np
import pytest

from onnxprune.testing import Builder, prove, sandwich


def quantised_weight(b: Builder, shape: tuple[int, ...], dtype: type, axis: int | None, zero: bool, name: str) -> str:
    """A stored integer weight behind a DequantizeLinear; `axis`: where the scales run, None: one for all."""
    info = np.iinfo(dtype)
    values: Any = b.rng.integers(info.min, info.max + 1, shape).astype(dtype)
    count = () if axis is None else (shape[axis],)
    scale = b.const(b.rng.uniform(0.001, 0.003, count).astype(np.float32), f"{name}.scale")
    middle = (int(info.max) + int(info.min)) // 2
    points: Any = np.asarray(b.rng.integers(middle - 5, middle + 6, count)).astype(dtype)
    rest = [b.const(points, f"{name}.zero")] if zero else []
    attrs: dict[str, Any] = {} if axis is None else {"axis": axis}
    return b.op("DequantizeLinear", b.const(values, name), scale, *rest, **attrs)


def quantised(b: Builder, y: str) -> str:
    """An activation through QuantizeLinear and DequantizeLinear, per tensor."""
    point = np.array(3, dtype=np.int8)
    return b.op("DequantizeLinear", b.op("QuantizeLinear", y, 0.02, point), 0.02, point)


@pytest.mark.parametrize("zero", [True, False], ids=["zero point", "no zero point"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("axis", [None, 0, 1], ids=["per tensor", "per filter", "per input"])
def test_weights(axis: int | None, dtype: type, zero: bool) -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Conv", b.op("Relu", y), quantised_weight(b, (6, 8, 1, 1), dtype, axis, zero, "w"))

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("w", 1) == [8]
    assert result.choices("w") == result.choices("w2", 1) == [6]
    if axis is not None:
        assert result.shape("w.scale") == (result.shape("w")[axis],)


def test_a_whole_model_in_integers() -> None:
    """Activations per tensor, weights per filter, biases in int32, a residual sum."""
    b = Builder()
    y = quantised(b, b.input("x", 2, 3, 6, 6))
    cin, skip = 3, ""
    for name in ("a", "b", "c"):
        w = quantised_weight(b, (8, cin, 3, 3), np.int8, 0, True, name)
        values: Any = b.rng.integers(-500, 500, 8).astype(np.int32)
        scale = b.const(b.rng.uniform(0.0005, 0.001, 8).astype(np.float32), f"{name}.bias.scale")
        bias = b.op("DequantizeLinear", b.const(values, f"{name}.bias"), scale, axis=0)
        y = quantised(b, b.op("Relu", b.op("Conv", y, w, bias, pads=[1, 1, 1, 1])))
        skip, cin = skip or y, 8
    y = quantised(b, b.op("Add", y, skip))
    result = prove(b.model(b.conv(y, 4, 1, "w2")))
    assert result.choices("a") == result.choices("c") == result.choices("a.bias") == [8]
    assert result.choices("b") == [8]
    assert result.shape("b.bias") == result.shape("b.bias.scale") == (4,)


def test_activations_per_channel() -> None:
    def middle(b: Builder, y: str) -> str:
        scale, point = b.const(b.rng.uniform(0.01, 0.02, 8).astype(np.float32), "s"), np.zeros(8, np.int8)
        q = b.op("QuantizeLinear", y, scale, point, axis=1)
        return b.op("DequantizeLinear", q, scale, point, axis=1)

    result = prove(sandwich(middle))
    assert result.choices("w1") == result.choices("s") == [8]


def test_a_scale_per_position() -> None:
    """The scales run along an axis that is not cut."""

    def middle(b: Builder, y: str) -> str:
        scale = b.const(b.rng.uniform(0.01, 0.02, 6).astype(np.float32))
        q = b.op("QuantizeLinear", y, scale, np.zeros(6, np.uint8), axis=-1)
        return b.op("DequantizeLinear", q, scale, np.zeros(6, np.uint8), axis=-1)

    assert prove(sandwich(middle)).choices("w1") == [8]


def test_fake_quantisation_of_a_float_weight() -> None:
    """Quantisation-aware training keeps the float weight in front of both."""

    def middle(b: Builder, y: str) -> str:
        scale, point = b.const(np.full(6, 0.01, np.float32), "s"), b.const(np.zeros(6, np.int8), "z")
        q = b.op("QuantizeLinear", b.weight(6, 8, 1, 1, name="w"), scale, point, axis=0)
        return b.op("Conv", b.op("Relu", y), b.op("DequantizeLinear", q, scale, point, axis=0))

    result = prove(sandwich(middle))
    assert result.choices("w") == [6]
    assert result.can_cut("w1")


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_of_scales(axis: int) -> None:
    """From opset 21 on: neighbours along an axis share a scale, and go together."""

    def middle(b: Builder, y: str) -> str:
        values = b.const(b.rng.integers(-128, 128, (6, 8)).astype(np.int8), "w")
        shape = (6, 4) if axis == 1 else (3, 8)
        scale = b.const(b.rng.uniform(0.01, 0.02, shape).astype(np.float32), "scale")
        w = b.op("DequantizeLinear", values, scale, axis=axis, block_size=2)
        return b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", y)), w, transB=1)

    result = prove(sandwich(middle, opset=21))
    assert result.choices("w1") == result.choices("scale", 1) == ([4] if axis == 1 else [8])
    assert result.choices("w") == result.choices("scale") == ([6] if axis == 1 else [3])
    assert result.shape("scale") == ((3, 2) if axis == 1 else (2, 4))


def test_blocks_with_zero_points_lock() -> None:
    def middle(b: Builder, y: str) -> str:
        values = b.const(b.rng.integers(0, 255, (6, 8)).astype(np.uint8), "w")
        scale, point = b.const(b.rng.uniform(0.01, 0.02, (6, 4)).astype(np.float32)), np.full((6, 4), 128, np.uint8)
        w = b.op("DequantizeLinear", values, scale, point, axis=1, block_size=2)
        return b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", y)), w, transB=1)

    result = prove(sandwich(middle, opset=21))
    assert not result.can_cut("w1")
    assert result.reason("w", 1) == "blocked quantisation with zero points"


def test_zeros_of_quantised_weights_reach_weights_that_are_computed() -> None:
    """exp(w) is never zero, so the zeros must come from the quantised layer: zero points are not zeroed with it."""

    def middle(b: Builder, y: str) -> str:
        y = b.op("Conv", y, quantised_weight(b, (6, 8, 1, 1), np.int8, 0, True, "w"))
        return b.op("Conv", y, b.op("Exp", b.weight(5, 6, 1, 1, name="logs")))

    result = prove(sandwich(middle))
    assert result.choices("w") == result.choices("logs", 1) == [6]
    assert result.choices("logs") == [5]
