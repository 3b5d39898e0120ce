"""Reductions and pooling: what they run over stays, channels pass."""

from typing import Any

import numpy as np
import pytest

from onnxprune.rules.reduce import REDUCE
from onnxprune.testing import Builder, prove, sandwich

AS_INPUT = {"Sum": 13}  # the others take their axes as an input from opset 18 on


def reduced(b: Builder, kind: str, y: str, axes: list[int], as_input: bool, keepdims: int = 1) -> str:
    """A reduction whose axes are an attribute or an input; positive inputs for the logarithms."""
    y = b.op("Add", b.op("Abs", y), 0.5) if "Log" in kind else y
    if as_input:
        return b.op(f"Reduce{kind}", y, axes, keepdims=keepdims)
    return b.op(f"Reduce{kind}", y, axes=axes, keepdims=keepdims)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("as_input", [False, True], ids=["attribute", "input"])
@pytest.mark.parametrize("kind", REDUCE)
def test_reductions_over_the_positions(kind: str, as_input: bool, keepdims: int) -> None:
    opset = 18 if as_input else 12
    result = prove(sandwich(lambda b, y: reduced(b, kind, y, [2, -1], as_input, keepdims), opset=opset))
    assert result.choices("w1") == result.choices("w2", 1) == [8]


@pytest.mark.parametrize("as_input", [False, True], ids=["attribute", "input"])
@pytest.mark.parametrize("kind", REDUCE)
def test_reductions_over_the_channels_lock_them(kind: str, as_input: bool) -> None:
    """A spatial gate, as in CBAM."""

    def middle(b: Builder, y: str) -> str:
        y = b.op("Sigmoid", y)
        return b.op("Mul", y, b.conv(reduced(b, kind, y, [1], as_input), 1))

    result = prove(sandwich(middle, opset=18 if as_input else 12))
    assert not result.can_cut("w1")
    assert result.reason("w1") == f"Reduce{kind} mixes the axis"


@pytest.mark.parametrize("kind", ["L1", "L2", "Sum", "SumSquare"])
def test_sums_do_not_miss_channels_that_are_zero(kind: str) -> None:
    def middle(b: Builder, y: str) -> str:
        y = b.op("Relu", b.batch_norm(y))
        return b.op("Mul", y, b.conv(reduced(b, kind, y, [1], as_input=True), 1))

    result = prove(sandwich(middle, opset=18))
    assert result.choices("w1") == [8]


@pytest.mark.parametrize(
    ("opset", "attrs", "extra"),
    [
        (12, {}, []),
        (18, {}, []),
        (18, {}, [np.zeros(0, dtype=np.int64)]),
    ],
    ids=["no attribute", "no input", "empty input"],
)
def test_without_axes_everything_is_reduced(opset: int, attrs: dict[str, Any], extra: list[Any]) -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("Mul", y, b.op("ReduceMean", y, *extra, **attrs))

    assert not prove(sandwich(middle, opset=opset)).can_cut("w1")


@pytest.mark.parametrize("extra", [[], [np.zeros(0, dtype=np.int64)]], ids=["no input", "empty input"])
def test_nothing_is_reduced_with_noop(extra: list[Any]) -> None:
    def middle(b: Builder, y: str) -> str:
        return b.op("ReduceMean", y, *extra, noop_with_empty_axes=1)

    assert prove(sandwich(middle, opset=18)).choices("w1") == [8]


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("kind", ["ArgMax", "ArgMin"])
def test_arg(kind: str, keepdims: int, axis: int) -> None:
    """Positions of the largest channel lock the channels; of the largest column, they pass."""

    def middle(b: Builder, y: str) -> str:
        best = b.op("Cast", b.op(kind, y, axis=axis, keepdims=keepdims), to=1)
        best = best if keepdims else b.op("Unsqueeze", best, [axis])
        return b.op("Mul", y, best)

    result = prove(sandwich(middle))
    assert result.can_cut("w1") == (axis == -1)
    if axis == 1:
        assert result.reason("w1") == f"{kind} mixes the axis"


POOLS: list[tuple[str, dict[str, Any]]] = [
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("MaxPool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1, "strides": [2, 2]}),
    ("LpPool", {"kernel_shape": [2, 2]}),
    ("GlobalAveragePool", {}),
    ("GlobalMaxPool", {}),
    ("GlobalLpPool", {"p": 2}),
]


@pytest.mark.parametrize(("kind", "attrs"), POOLS)
def test_pools(kind: str, attrs: dict[str, Any]) -> None:
    assert prove(sandwich(lambda b, y: b.op(kind, y, **attrs))).choices("w1") == [8]


@pytest.mark.parametrize("size", [5, 16], ids=["1d", "3d"])
def test_pools_of_other_ranks(size: int) -> None:
    rank = 1 if size == 5 else 3
    result = prove(sandwich(lambda b, y: b.op("MaxPool", y, kernel_shape=[2] * rank), spatial=[4] * rank))
    assert result.choices("w1") == [8]


def test_indices_of_a_max_pool_lock_the_channels() -> None:
    def middle(b: Builder, y: str) -> str:
        pooled, where = b.ops("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2], outputs=2)
        return b.op("Add", pooled, b.op("Cast", where, to=1))

    result = prove(sandwich(middle))
    assert not result.can_cut("w1")
    assert result.reason("w1") == "MaxPool's indices count across the channels"


def test_global_pool_into_a_gemm() -> None:
    result = prove(sandwich(lambda b, y: b.op("Flatten", b.op("GlobalAveragePool", y))))
    assert result.choices("w1") == result.choices("w2", 1) == [8]
    assert result.shape("w2") == (4, 4)
