"""What `--target lossless` removes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.testing import Builder, sandwich

Shrink = Callable[..., Any]
Change = Callable[..., ModelProto]
Edit = Callable[[NDArray[Any]], None]


def put(value: Any, index: Any, axis: int = 0) -> Edit:
    """An edit that writes a value at some indices of an axis."""

    def edit(array: NDArray[Any]) -> None:
        array[(slice(None),) * axis + (index,)] = value

    return edit


def copy(source: int, target: int, axis: int = 0) -> Edit:
    """An edit that makes one index of an axis equal to another."""

    def edit(array: NDArray[Any]) -> None:
        array[(slice(None),) * axis + (target,)] = array[(slice(None),) * axis + (source,)]

    return edit


def relu(b: Builder, y: str) -> str:
    """The plainest middle of a sandwich."""
    return b.op("Relu", y)


def biased(middle: Callable[[Builder, str], str], kernel: int = 1, out: int = 4, **attrs: Any) -> ModelProto:
    """x -> conv `w1` with bias -> `middle` -> conv `w2` without -> y."""
    b = Builder()
    y = middle(b, b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1"))
    return b.model(b.conv(y, out, kernel, name="w2", bias=False, **attrs))


def test_where_nothing_can_go_nothing_changes(shrink: Shrink) -> None:
    model = sandwich(lambda b, y: b.op("Relu", b.batch_norm(y)))
    result = shrink(model)
    assert not result.removed.any() and not result.plan.folds
    assert result.model == model


def test_masked_filters_go_and_no_others(shrink: Shrink, change: Change) -> None:
    b = Builder()
    y = b.op("Relu", b.batch_norm(b.conv(b.input("x", 1, 3, 8, 8), 8, name="w1"), name="bn"))
    y = b.op("Relu", b.batch_norm(b.conv(y, 6, name="w2"), name="bn2"))
    model = b.model(b.conv(y, 4, name="w3"))
    zeros = put(0, [1, 5])
    names = ["w1", "w1.bias", "bn.scale", "bn.bias"]
    result = shrink(change(model, dict.fromkeys(names, zeros)))
    assert result.gone("w1") == result.gone("bn.mean") == result.gone("w2", 1) == [1, 5]
    assert result.removed.sum() == 2 and not result.plan.folds


def test_a_scale_of_zero_is_enough(shrink: Shrink, change: Change) -> None:
    """What training with L1 on the scales leaves (network slimming): the filter itself is not zero."""
    model = sandwich(lambda b, y: b.op("Relu", b.batch_norm(y, "bn")))
    model = change(model, {"bn.scale": put(0, [2]), "bn.bias": put([-1.0, 0.5], [2, 3])})
    assert shrink(model).gone("w1") == [2]


def test_channels_that_nobody_reads_take_their_producers_along(shrink: Shrink, change: Change) -> None:
    b = Builder()
    y = b.input("x", 1, 3, 8, 8)
    for number in (1, 2, 3):
        y = b.op("Relu", b.conv(y, 8, name=f"w{number}"))
    model = change(b.model(b.conv(y, 4, name="w4")), {"w4": put(0, [0, 7], axis=1)})
    model = change(model, {"w3": lambda w: w[:, 4].__imul__(np.isin(np.arange(8), [0, 7])[:, None, None])})
    result = shrink(model)
    assert result.gone("w3") == [0, 7]
    assert result.gone("w2") == [4]
    assert result.gone("w1") == []


def test_a_branch_that_nobody_reads_shrinks_to_one_channel_each(shrink: Shrink, change: Change) -> None:
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    dead = b.conv(b.op("Relu", b.conv(x, 8, name="d1")), 8, name="d2")
    y = b.op("Concat", b.conv(x, 8, name="w1"), dead, axis=1)
    result = shrink(change(b.model(b.conv(y, 4, name="w2")), {"w2": put(0, slice(8, 16), axis=1)}))
    assert result.left("d1")[0] == result.left("d2")[0] == 1
    assert result.left("w1")[0] == 8


@pytest.mark.parametrize("bias", [-1.0, 0.0, 0.7], ids=["dead", "zero", "constant"])
def test_constants_go_into_the_bias(bias: float, shrink: Shrink, change: Change) -> None:
    """A ReLU that is never active, one that is always zero, and one that always says the same."""
    model = change(biased(relu), {"w1": put(0, [1, 6]), "w1.bias": put(bias, [1, 6])})
    result = shrink(model)
    assert result.gone("w1") == [1, 6]
    assert len(result.folded("bias")) == (bias > 0)
    conv = result.model.graph.node[-1]
    assert len(conv.input) == (3 if bias > 0 else 2)


@pytest.mark.parametrize("how", ["inside", "shared", "computed"])
def test_a_bias_that_is_there(how: str, shrink: Shrink) -> None:
    """Added to, or copied first where another layer reads it too, or left alone where it depends on the input."""
    b = Builder()
    w, bias = np.ones((5, 3, 1, 1), np.float32), np.array([0.5, 0, 0, 0, 2], np.float32)
    w[1:] *= b.rng.standard_normal((4, 3, 1, 1)).astype(np.float32)
    w[0] = 0
    x = b.input("x", 1, 3, 4, 4)
    y = b.op("Conv", x, b.const(w, "w1"), b.const(bias, "b1"))
    given = b.const(np.array([1, 2, 3, 4], np.float32), "b2")
    if how == "computed":
        given = b.op("Mul", given, b.op("Slice", b.op("Reshape", x, [48]), [0], [1], [0]))
    z = b.op("Conv", y, b.weight(4, 5, 1, 1, name="w2"), given)
    outputs = [z]
    if how == "shared":
        outputs.append(b.op("Conv", x, b.weight(4, 3, 1, 1), given))
    result = shrink(b.model(*outputs))
    assert result.gone("w1") == ([] if how == "computed" else [0])
    assert next("b2" in n.input for n in result.model.graph.node if "w2" in n.input) == (how == "inside")


def test_padding_lets_zeros_go_and_leaves_one_constant(shrink: Shrink, change: Change) -> None:
    """Beside zero padding a constant is no constant; but two constants stay in proportion."""
    model = change(
        biased(relu, kernel=3), {"w1": put(0, [0, 1, 2, 3]), "w1.bias": put([-1, 0.5, 2, 0.25], [0, 1, 2, 3])}
    )
    result = shrink(model)
    assert result.gone("w1") == [0, 1, 3]
    assert [entry[4] for entry in result.folded("add")] == [[0.25, 0.125]]


def test_a_pad_of_its_own_is_padding_too(shrink: Shrink, change: Change) -> None:
    edits = {"w1": put(0, [0, 1]), "w1.bias": put([0, 0.5], [0, 1])}
    middle = [0, 0, 1, 1, 0, 0, 1, 1]
    result = shrink(change(biased(lambda b, y: b.op("Pad", y, middle)), edits))
    assert result.gone("w1") == [0]
    result = shrink(change(biased(lambda b, y: b.op("Pad", y, middle, np.float32(0.5))), edits))
    assert result.gone("w1") == [1]
    result = shrink(change(biased(lambda b, y: b.op("Pad", y, middle, mode="reflect")), edits))
    assert result.gone("w1") == [0, 1]


def test_linear_layers(shrink: Shrink, change: Change) -> None:
    """A MatMul has no bias, but the Add right after it does; one without is left alone unless the constant is zero."""
    b = Builder()
    x = b.input("x", 4, 6)
    y = b.op("Relu", b.gemm(x, 8, "w1"))
    y = b.op("Relu", b.op("Add", b.op("MatMul", y, b.weight(8, 7, name="w2")), b.weight(7, name="b2")))
    y = b.op("Relu", b.op("MatMul", y, b.weight(7, 5, name="w3")))
    model = b.model(b.op("Gemm", y, b.weight(5, 3, name="w4"), b.weight(3), alpha=0.5, beta=2.0))
    edits = {
        "w1": put(0, [2]),
        "w1.bias": put(0.5, [2]),
        "w2": put(0, [1, 3], axis=1),
        "b2": put([0.5, -0.5], [1, 3]),
        "w3": put(0, [4], axis=1),
    }
    result = shrink(change(model, edits))
    assert result.gone("w1") == [2]
    assert result.gone("w2", 1) == [3]
    assert result.gone("w3", 1) == [4]


def test_twins_are_merged_until_nothing_changes(shrink: Shrink, change: Change) -> None:
    """Once its inputs are one channel, the next layer's filters may be equal, or cancel out."""
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", 1, 3, 8, 8), 6, name="w1"))
    y = b.op("Tanh", b.conv(y, 6, name="w2"))
    model = b.model(b.conv(y, 4, name="w3"))
    model = change(model, {"w1": copy(0, 5), "w1.bias": copy(0, 5)})
    model = change(model, {"w2": copy(1, 2), "w2.bias": copy(1, 2)})

    def swap(w: NDArray[Any]) -> None:
        w[2, [0, 5]] = w[1, [5, 0]]
        w[3], w[3, 0] = 0, w[4, 0]
        w[3, 5] = -w[3, 0]

    result = shrink(change(model, {"w2": swap, "w2.bias": put(0, [3])}))
    assert result.gone("w1") == [5]
    assert result.gone("w2") == [2, 3]


def test_twins_whose_weights_cancel_go_both(shrink: Shrink, change: Change) -> None:
    model = change(biased(relu, kernel=3), {"w1": copy(0, 5), "w1.bias": copy(0, 5)})
    model = change(model, {"w2": copy(0, 5, axis=1)})
    model = change(model, {"w2": lambda w: w[:, 5].__imul__(-1)})
    assert shrink(model).gone("w1") == [0, 5]


def test_residual_streams(shrink: Shrink, change: Change) -> None:
    """A channel of the stream goes when all that is added to it is constant; twins need equal summands everywhere."""
    b = Builder()
    y = b.conv(b.input("x", 1, 3, 6, 6), 8, name="w0")
    for number in (1, 2):
        y = b.op("Add", y, b.conv(b.op("Relu", b.conv(y, 6, name=f"a{number}")), 8, name=f"w{number}"))
    model = b.model(b.gemm(b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", y))), 4, "head"))
    makers = [name for n in (0, 1, 2) for name in (f"w{n}", f"w{n}.bias")]
    model = change(model, dict.fromkeys(makers, put(0, [1])))
    model = change(model, dict.fromkeys(makers[:4], put(0, [2])))
    model = change(model, dict.fromkeys(makers, copy(3, 4)))
    model = change(model, dict.fromkeys(makers[:4], copy(5, 6)))
    assert shrink(model).gone("w0") == [1, 4]


@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_depthwise_filters_of_zeros(bias: float, shrink: Shrink, change: Change) -> None:
    """They make a constant of whatever comes in."""

    def middle(b: Builder, y: str) -> str:
        y = b.op("Conv", y, b.weight(8, 1, 3, 3, name="dw"), b.weight(8, name="dwb"), group=8, pads=[1] * 4)
        return b.op("HardSwish", y)

    result = shrink(change(biased(middle), {"dw": put(0, [3, 4]), "dwb": put(bias, [3, 4])}))
    assert result.gone("w1") == result.gone("dw") == [3, 4]


def test_a_gate_of_a_masked_channel_goes_with_it(shrink: Shrink, change: Change) -> None:
    """Squeeze and excitation: 0 * gate = 0; a closed gate, 0 * channel = 0; an open one is read."""

    def middle(b: Builder, y: str) -> str:
        gate = b.conv(b.op("Relu", b.conv(b.op("GlobalAveragePool", y), 4, 1, "fc1")), 8, 1, "fc2")
        return b.op("Mul", y, b.op("HardSigmoid", gate))

    edits = {"w1": put(0, [0, 1]), "w1.bias": put([0, 0.5], [0, 1])}
    edits |= {"fc2": put(0, [2, 3]), "fc2.bias": put([-9, 9], [2, 3])}
    result = shrink(change(biased(middle), edits))
    assert result.gone("w1") == [0]
    masked = put(0, [2, 3], axis=1)
    assert shrink(change(biased(middle), edits | {"fc1": masked})).gone("fc2") == [0, 2]
