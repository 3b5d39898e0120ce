"""Where `--target lossless` has to be careful: number formats, what it does not know, plans of other models."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.coupling import couple
from onnxprune.errors import PlanError
from onnxprune.graph import load
from onnxprune.lossless import lossless
from onnxprune.plan import make_plan, removed_units
from onnxprune.rules.base import Options
from onnxprune.surgery import cut
from onnxprune.testing import Builder, arrays

Shrink = Callable[..., Any]
Change = Callable[..., ModelProto]
Edit = Callable[[NDArray[Any]], None]


def put(value: Any, index: Any, axis: int = 0) -> Edit:
    """An edit that writes a value at some indices of an axis."""

    def edit(array: NDArray[Any]) -> None:
        array[(slice(None),) * axis + (index,)] = value

    return edit


def biased() -> ModelProto:
    """x -> conv `w1` with a bias -> ReLU -> conv `w2` -> y; the channels 1 and 6 in between are constant."""
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1"))
    return b.model(b.conv(y, 4, 1, name="w2", bias=False))


def test_quantised_weights(shrink: Shrink) -> None:
    """Zero points are zeros; nothing is added to integers."""
    b = Builder()
    x = b.input("x", 1, 3, 4, 4)
    w = b.rng.integers(0, 255, (6, 3, 1, 1)).astype(np.uint8)
    w[1], w[2] = 7, w[3]
    bias = np.array([0.1, 0, 0.2, 0.2, 0.3, 0.4], np.float32)

    def dequantised(array: NDArray[Any], name: str) -> str:
        return b.op("DequantizeLinear", b.const(array, name), np.float32(0.1), np.uint8(7))

    y = b.op("Relu", b.op("Conv", x, dequantised(w, "w1"), b.const(bias)))
    y = b.op("DequantizeLinear", b.op("QuantizeLinear", y, 0.05, np.uint8(3)), 0.05, np.uint8(3))
    w2 = b.rng.integers(0, 255, (4, 6, 1, 1)).astype(np.uint8)
    w2[:, 4] = 7
    result = shrink(b.model(b.op("Conv", y, dequantised(w2, "w2"))))
    assert result.gone("w1") == [1, 4] and not result.plan.folds


def test_half_precision(shrink: Shrink, change: Change) -> None:
    b = Builder()
    x = b.op("Cast", b.input("x", 1, 3, 6, 6), to=10)
    w1, w2 = (b.rng.standard_normal(s).astype(np.float16) / 4 for s in ((6, 3, 1, 1), (4, 6, 1, 1)))
    bias = np.array([0.5, -1, 0, 0, 0, 0], np.float16)
    w1[:2], w1[5] = 0, w1[4]
    y = b.op("Relu", b.op("Conv", x, b.const(w1, "w1"), b.const(bias)))
    result = shrink(b.model(b.op("Cast", b.op("Conv", y, b.const(w2, "w2")), to=1)), tolerance=3e-3)
    assert result.gone("w1") == [0, 1, 5]


@pytest.mark.parametrize("what", ["unknown", "channel softmax", "output", "tied"])
def test_what_is_read_by_something_else_stays(what: str, shrink: Shrink, change: Change) -> None:
    b = Builder(acme=1)
    w = b.weight(8, 3, name="w1")
    y = b.op("Gemm", b.input("x", 4, 3), w, transB=1)
    outputs = [b.op("Gemm", y, b.weight(8, 4, name="w2"))]
    if what == "unknown":
        outputs.append(b.declare(b.op("acme::Odd", y), 4, 8))
    elif what == "channel softmax":
        outputs.append(b.op("ReduceMax", b.op("Softmax", y, axis=-1), axes=[1]))
    elif what == "output":
        outputs.append(y)
    else:
        outputs.append(b.op("Gemm", b.input("z", 4, 8), w))  # nothing says that z does not matter
    model = b.model(*outputs)
    if what == "unknown":
        coupling = couple(load(change(model, {"w2": put(0, [0, 1])})))
        assert not lossless(coupling)[0].any()
    else:
        assert not shrink(change(model, {"w2": put(0, [0, 1])})).removed.any()


def test_norms_opened_by_an_option_still_read_their_channels(shrink: Shrink, change: Change) -> None:
    b = Builder()
    y = b.op("Gemm", b.input("x", 4, 3), b.weight(3, 8, name="w1"), b.weight(8))
    y = b.op("LayerNormalization", y, b.near_one(8), b.weight(8))
    model = change(b.model(b.op("Gemm", y, b.weight(8, 4, name="w2"))), {"w2": put(0, [0, 1])})
    assert not shrink(model, options=Options(inexact=True)).removed.any()


def test_units_that_have_to_stay(change: Change, shrink: Shrink) -> None:
    model = change(biased(), {"w1": put(0, [1, 6]), "w1.bias": put(0.5, [1, 6])})
    coupling = couple(load(model))
    keep = np.isin(np.arange(coupling.units), [6])
    assert shrink(model, keep=keep).gone("w1") == [1]


def test_folds_of_another_model_are_refused(change: Change) -> None:
    model = change(biased(), {"w1": put(0, [1, 6]), "w1.bias": put(0.5, [1, 6])})
    coupling = couple(load(model))
    removed, folds = lossless(coupling)
    for broken in ({"bias": [["no such value", [0], [1.0]]]}, {"add": [["w2", 1, [99], [0], [1.0]]]}, {"add": 5}):
        plan = make_plan(coupling, removed)
        object.__setattr__(plan, "folds", broken)
        with pytest.raises(PlanError):
            cut(coupling, plan, removed_units(coupling, plan))
    assert arrays(cut(coupling, make_plan(coupling, removed, folds), removed))["w2"].shape[1] == 6
