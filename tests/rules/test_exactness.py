"""What once came out inexact, or crashed: each must be cut exactly or locked."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxprune.rules.base import Dim
from onnxprune.testing import Builder, oracle, prove, sandwich

MS = "com.microsoft::"


def reduced(b: Builder, y: str) -> str:
    """A sum over the channels, which needs zeros to arrive."""
    return b.op("Mul", b.conv(y, 4), b.op("ReduceSum", y, [1], keepdims=1))


def fused(b: Builder, y: str, activation: str) -> str:
    """A depthwise convolution with its activation."""
    b.imports.append(helper.make_opsetid("com.microsoft", 1))
    shape, weights = b.shape(y), b.weight(8, 1, 1, 1)
    return b.declare(b.op(f"{MS}FusedConv", y, weights, group=8, activation=activation, kernel_shape=[1, 1]), *shape)


@pytest.mark.parametrize(
    "middle",
    [
        lambda b, y: b.op("Clip", y, np.array([0.5], np.float32), np.array([1.0], np.float32)),
        lambda b, y: b.op("Shrink", y, bias=1.0, lambd=-0.5),
        lambda b, y: b.op("Pow", b.op("Relu", y), b.near_one(8, 1, 1)),
        lambda b, y: fused(b, y, "Sigmoid"),
        lambda b, y: fused(b, y, "Relu"),
    ],
    ids=[
        "clip with bounds of one axis",
        "shrink that moves zero",
        "an exponent for each channel",
        "fused sigmoid",
        "fused relu",
    ],
)
def test_what_does_not_keep_zero_is_not_summed_over(middle: Callable[[Builder, str], str]) -> None:
    oracle(sandwich(lambda b, y: reduced(b, middle(b, y))), 0.5)


def test_a_slice_with_bounds_that_are_known_in_part_is_locked() -> None:
    b = Builder()
    x = b.input("x", 1, 3, "h", "w")
    y = b.conv(x, 8, name="w1")
    height = b.op("Slice", b.op("Shape", y), [2], [3], [0])
    y = b.op("Slice", y, [0, 0], b.op("Concat", [6], height, axis=0), [1, 2])
    result = oracle(b.model(b.op("Conv", y, b.weight(4, 6, 1, 1, name="w2"))))
    assert not result.can_cut("w1")


def attention(b: Builder, heads: int, *rest: Any, **attrs: Any) -> str:
    x = b.input("x", 2, 5, 16)
    weights, bias = b.weight(16, 48, name="w"), b.weight(48, name="b")
    y = b.declare(b.op(f"{MS}Attention", x, weights, bias, *rest, num_heads=heads, **attrs), 2, 5, 16)
    return b.op("MatMul", y, b.weight(16, 8, name="out"))


def test_a_bias_of_fused_attention_goes_with_its_heads() -> None:
    b = Builder()
    b.imports.append(helper.make_opsetid("com.microsoft", 1))
    y = attention(b, 4, None, None, b.weight(1, 4, 5, 5, name="per head"))
    result = prove(b.model(y))
    assert result.choices("w", 1) == result.choices("per head", 1) == [4]


def test_a_mask_with_heads_goes_with_them() -> None:
    b = Builder(23)
    x = b.input("x", 2, 5, 6)
    parts = [b.op("MatMul", x, b.weight(6, 12, name=name)) for name in "qkv"]
    mask = b.weight(3, 5, 5, name="mask")
    y = b.op("Attention", *parts, mask, q_num_heads=3, kv_num_heads=3)
    result = prove(b.model(b.op("MatMul", y, b.weight(12, 4, name="out"))))
    assert result.choices("mask", 0) == result.choices("q", 1) == [3]
    assert result.coupling.unit_of(Dim("mask", 0)) is not None


def test_a_resize_that_keeps_the_size_by_rounding_is_locked() -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Resize", y, None, np.array([1, 1.1, 1, 1], np.float32), mode="linear")

    result = oracle(sandwich(middle), 0.5)
    assert not result.can_cut("w1")


def test_a_shared_scale_whose_size_is_read() -> None:
    """Its other readers are cut; what reads its size goes on reading the whole."""

    def middle(b: Builder, y: str) -> str:
        scale = b.near_one(1, 8, 1, 1, name="scale")
        y = b.op("Mul", y, scale)
        size = b.op("Gather", b.op("Shape", scale), [1])
        y = b.op("Tanh", b.op("Reshape", y, b.op("Concat", [2], size, [36], axis=0)))
        return b.op("Reshape", y, [2, -1, 6, 6])

    prove(sandwich(middle))


def test_a_grouped_convolution_of_channels_whose_number_is_not_known() -> None:
    def middle(b: Builder, y: str) -> str:
        y = b.op("Compress", y, b.const(np.arange(8) % 4 != 1), axis=1)
        return b.op("Conv", y, b.weight(9, 2, 1, 1, name="grouped"), group=3)

    result = oracle(sandwich(middle), 0.5)
    assert not result.can_cut("w1") and not result.can_cut("grouped", 1)


def test_a_unit_of_a_shared_vector_alone_is_none() -> None:
    """Nothing else would tell, when a plan is replayed, which reader of the vector loses it."""
    b = Builder()
    row = b.weight(1, 8, name="row")
    b.op("Transpose", b.op("Gemm", b.input("z", 2, 1), row), perm=[1, 0])  # a dead end
    y = b.op("Gemm", b.input("x", 2, 6), b.weight(6, 8, name="w1"))
    y = b.op("Relu", b.op("Mul", y, row))
    result = prove(b.model(b.op("Gemm", y, b.weight(8, 4, name="w2"))))
    assert result.choices("w1", 1) == [8]
    assert len(result.coupling.groups) == 1
