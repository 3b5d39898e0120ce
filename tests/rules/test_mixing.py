"""Ops that mix an axis lock it, say so, and leave the other axes free."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxprune.testing import Builder, prove, sandwich

Middle = Callable[[Builder, str], str]


def layer_norm(kind: str, axis: int) -> Middle:
    def middle(b: Builder, y: str) -> str:
        scale = b.near_one(*b.shape(y)[axis:], name="scale")
        return b.op(kind, y, scale, axis=axis)

    return middle


def one(kind: str, **attrs: Any) -> Middle:
    return lambda b, y: b.op(kind, y, **attrs)


def cumsum(axis: int) -> Middle:
    return lambda b, y: b.op("CumSum", y, np.array(axis))


def mean_variance(b: Builder, y: str) -> str:
    """By default per channel; ONNX Runtime divides a constant one, such as a masked one, by zero."""
    return b.op("MeanVarianceNormalization", b.op("Add", y, b.weight(6, 6)))


MIXED: list[tuple[Middle, int, str]] = [
    (one("Softmax", axis=1), 17, "Softmax mixes the axis"),
    (one("LogSoftmax", axis=-3), 17, "LogSoftmax mixes the axis"),
    (one("Hardmax", axis=1), 13, "Hardmax mixes the axis"),
    (one("Softmax"), 11, "Softmax mixes the axis"),
    (layer_norm("LayerNormalization", 1), 17, "LayerNormalization takes its statistics over the axis"),
    (layer_norm("RMSNormalization", 1), 23, "RMSNormalization takes its statistics over the axis"),
    (one("LpNormalization", axis=1), 17, "LpNormalization takes the norm over the axis"),
    (one("MeanVarianceNormalization", axes=[1, 2, 3]), 17, "the axis is normalised over"),
    (cumsum(1), 17, "CumSum depends on every index of the axis"),
]

PASSED: list[tuple[Middle, int]] = [
    (one("Softmax", axis=-1), 17),
    (one("Softmax", axis=2), 11),
    (one("LogSoftmax"), 13),
    (layer_norm("LayerNormalization", 2), 17),
    (one("LpNormalization"), 17),
    (mean_variance, 17),
    (cumsum(-1), 17),
]


@pytest.mark.parametrize(("middle", "opset", "reason"), MIXED)
def test_channels_that_are_mixed_stay(middle: Middle, opset: int, reason: str) -> None:
    result = prove(sandwich(middle, opset=opset))
    assert not result.can_cut("w1")
    assert result.reason("w1") == reason


@pytest.mark.parametrize(("middle", "opset"), PASSED)
def test_channels_beside_a_mixed_axis_pass(middle: Middle, opset: int) -> None:
    assert prove(sandwich(middle, opset=opset)).choices("w1") == [8]


@pytest.mark.parametrize("axis", [1, 3])
def test_top_k(axis: int) -> None:
    def middle(b: Builder, y: str) -> str:
        return b.ops("TopK", y, np.array([4]), axis=axis, outputs=2)[0]

    result = prove(sandwich(middle))
    assert result.can_cut("w1") == (axis == 3)


def test_layer_norm_on_channels_last_names_the_option_that_opens_it() -> None:
    def middle(b: Builder, y: str) -> str:
        z = b.op("Transpose", y, perm=[0, 2, 3, 1])
        z = b.op("LayerNormalization", z, b.near_one(8), b.weight(8))
        return b.op("Transpose", z, perm=[0, 3, 1, 2])

    result = prove(sandwich(middle))
    assert not result.can_cut("w1")
    locked = next(entry for entry in result.coupling.locked if entry.value == "w1")
    assert locked.op == "LayerNormalization"
    assert locked.option == "--allow-inexact"
