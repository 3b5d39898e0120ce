"""Resize and Upsample: the channels pass, however the target size is written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxprune.testing import Builder, prove, sandwich

Middle = Callable[[Builder, str], str]


def scales(b: Builder, y: str) -> str:
    return b.op("Resize", y, None, [1.0, 1.0, 2.0, 2.0], mode="nearest")


def constant_sizes(b: Builder, y: str) -> str:
    return b.op("Resize", y, None, None, [2, 8, 9, 11], mode="linear")


def computed_sizes(b: Builder, y: str) -> str:
    """As torch exports `interpolate(x, size=other.shape[2:])`."""
    other = b.conv(y, 6, strides=[1, 1])
    head = b.op("Slice", b.op("Shape", y), [0], [2], [0])
    tail = b.op("Slice", b.op("Shape", other), [2], [4], [0])
    small = b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    return b.op("Resize", small, None, None, b.op("Concat", head, tail, axis=0), mode="linear")


def sizes_of_another(b: Builder, y: str) -> str:
    """All four sizes come from a tensor with the same channels."""
    small = b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    return b.op("Add", y, b.op("Resize", small, None, None, b.op("Shape", y)))


def scaled_sizes(b: Builder, y: str) -> str:
    """Sizes computed by arithmetic: twice as many rows and columns."""
    shape = b.op("Shape", y)
    doubled = b.op("Mul", b.op("Slice", shape, [2], [4]), [2, 2])
    whole = b.op("Concat", b.op("Slice", shape, [0], [2]), doubled, axis=0)
    return b.op("Resize", y, None, None, whole)


def only_axes(b: Builder, y: str) -> str:
    return b.op("Resize", y, None, None, [9, 9], axes=[2, 3])


def negative_axes(b: Builder, y: str) -> str:
    return b.op("Resize", y, None, [2.0], axes=[-1])


OPSETS: dict[Any, int] = {only_axes: 18, negative_axes: 18}


@pytest.mark.parametrize(
    "middle",
    [scales, constant_sizes, computed_sizes, sizes_of_another, scaled_sizes, only_axes, negative_axes],
    ids=lambda f: f.__name__,
)
def test_channels_pass(middle: Middle) -> None:
    result = prove(sandwich(middle, opset=OPSETS.get(middle, 17)))
    assert result.choices("w1") == result.choices("w2", 1) == [8]


@pytest.mark.parametrize("middle", [computed_sizes, sizes_of_another, scaled_sizes], ids=lambda f: f.__name__)
def test_channels_pass_where_the_sizes_are_open(middle: Middle) -> None:
    result = prove(sandwich(middle, spatial=("H", "W")))
    assert result.choices("w1") == [8]


def test_a_constant_size_of_the_channels_is_rewritten() -> None:
    assert prove(sandwich(constant_sizes)).sizes("Resize", 3) == [[2, 4, 9, 11]]


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample(opset: int) -> None:
    def middle(b: Builder, y: str) -> str:
        factors = [1.0, 1.0, 2.0, 2.0]
        return b.op("Upsample", y, scales=factors) if opset < 9 else b.op("Upsample", y, factors)

    assert prove(sandwich(middle, opset=opset)).choices("w1") == [8]


def test_resize_of_opset_10() -> None:
    result = prove(sandwich(lambda b, y: b.op("Resize", y, [1.0, 1.0, 2.0, 2.0]), opset=10))
    assert result.choices("w1") == [8]


def test_interpolated_channels_stay() -> None:
    result = prove(sandwich(lambda b, y: b.op("Resize", y, None, [1.0, 2.0, 1.0, 1.0], mode="nearest")))
    assert not result.can_cut("w1")
    assert result.reason("w1") == "the axis is resized"


def test_cropping_reads_every_axis() -> None:
    def middle(b: Builder, y: str) -> str:
        roi = np.array([0, 0, 0, 0, 1, 1, 0.5, 0.5], dtype=np.float32)
        mode = "tf_crop_and_resize"
        return b.op("Resize", y, roi, None, [2, 8, 4, 4], coordinate_transformation_mode=mode, mode="linear")

    assert not prove(sandwich(middle)).can_cut("w1")
