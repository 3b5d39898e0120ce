"""Ops on positions: the channels beside them pass."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.rules.base import RULES
from onnxprune.testing import Builder, close, prove, sandwich

Middle = Callable[[Builder, str], str]


@pytest.mark.parametrize("opset", [16, 20])
def test_grid_sample(opset: int) -> None:
    """The grid comes from a layer of its own, whose two channels stay."""

    def middle(b: Builder, y: str) -> str:
        grid = b.op("Tanh", b.conv(b.op("Relu", b.conv(y, 6, name="inner")), 2, name="grid"))
        return b.op("GridSample", y, b.op("Transpose", grid, perm=[0, 2, 3, 1]))

    result = prove(sandwich(middle, opset=opset))
    assert result.choices("w1") == [8]
    assert result.choices("inner") == [6]
    assert not result.can_cut("grid")


def test_a_transformer_of_positions() -> None:
    """AffineGrid and GridSample by what a small network says."""

    def middle(b: Builder, y: str) -> str:
        pooled = b.op("Flatten", b.op("GlobalAveragePool", y))
        theta = b.op("Reshape", b.gemm(b.op("Relu", b.gemm(pooled, 5, "inner")), 6, "theta"), [2, 2, 3])
        return b.op("GridSample", y, b.op("AffineGrid", theta, [2, 8, 4, 4]))

    result = prove(sandwich(middle, opset=20))
    assert result.choices("w1") == [8]
    assert result.choices("inner") == [5]
    assert not result.can_cut("theta")


@pytest.mark.parametrize("last", [True, False])
def test_trilu(last: bool) -> None:
    def middle(b: Builder, y: str) -> str:
        if last:
            return b.op("Trilu", y, np.array(-1), upper=0)
        return b.op("Transpose", b.op("Trilu", b.op("Transpose", y, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])

    result = prove(sandwich(middle))
    assert result.choices("w1") == ([8] if last else [])


def test_determinants() -> None:
    result = prove(sandwich(lambda b, y: b.op("Unsqueeze", b.op("Det", y), [2, 3])))
    assert result.choices("w1") == [8]


@pytest.mark.parametrize(("opset", "axis"), [(17, 2), (20, 2), (20, -4)])
def test_dft(opset: int, axis: int) -> None:
    def middle(b: Builder, y: str) -> str:
        z = b.op("Unsqueeze", y, [4])  # real numbers
        out = b.op("DFT", z, None, np.array(axis)) if opset >= 20 else b.op("DFT", z, axis=axis)
        return b.op("Reshape", out, [0, 0, 0, 12])

    result = prove(sandwich(middle, opset=opset))
    assert result.choices("w1") == ([8] if axis == 2 else [])
    assert result.reason("w1") == ("" if axis == 2 else "DFT mixes the axis")


def test_spectra_of_a_batch_of_channels() -> None:
    """STFT knows no channels: nothing passes but the batch."""
    b = Builder()
    y = b.op("Reshape", b.conv(b.input("x", 1, 3, 6, 6), 8, name="w1"), [1, -1, 1])
    y = b.op("STFT", y, np.array(8), np.hanning(16).astype(np.float32))
    y = b.conv(b.op("Transpose", y, perm=[0, 3, 1, 2]), 8, name="w")
    result = prove(b.model(close(b, y)))
    assert not result.can_cut("w1")
    assert result.choices("w") == [8]


def test_col2im() -> None:
    """Patches are folded back: a channel is a run of rows."""

    def middle(b: Builder, y: str) -> str:
        rows = b.op("Reshape", b.conv(y, 20, name="rows"), [2, 20, 36])
        return b.op("Col2Im", rows, [12, 12], [2, 2], strides=[2, 2])

    result = prove(sandwich(middle, opset=18))
    assert result.choices("w1") == [8]
    assert result.choices("rows") == result.choices("w2", 1) == [5]


@pytest.mark.parametrize("axes", [[2, 3], [-3, -1]])
def test_center_crop_pad(axes: list[int]) -> None:
    result = prove(sandwich(lambda b, y: b.op("CenterCropPad", y, [4, 9], axes=axes), opset=18))
    assert result.choices("w1") == ([8] if axes == [2, 3] else [])


def test_max_unpool_locks_the_channels() -> None:
    def middle(b: Builder, y: str) -> str:
        pooled, indices = b.ops("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2], outputs=2)
        z = b.op("MaxUnpool", pooled, indices, kernel_shape=[2, 2], strides=[2, 2])
        return b.conv(b.declare(z, 2, 8, 6, 6), 7, name="after")

    result = prove(sandwich(middle))
    assert not result.can_cut("w1")
    assert result.choices("after") == [7]


@pytest.mark.parametrize("op", ["EyeLike", "Range"])
def test_numbered_axes_stay(op: str) -> None:
    def middle(b: Builder, y: str) -> str:
        z = b.op("Reshape", b.conv(y, 6, name="w"), [2, 6, 36])
        if op == "EyeLike":
            square = b.op("Gather", b.op("MatMul", z, b.weight(36, 6)), np.array(0))
            scale = b.op("Add", b.op("EyeLike", square), 1.0)
        else:
            scale = b.op("Add", b.op("Range", 0.0, 6.0, 1.0), 1.0)
        z = b.op("MatMul", b.op("Transpose", z, perm=[0, 2, 1]), scale) if op == "EyeLike" else b.op("Mul", y, scale)
        return b.op("Reshape", b.op("Transpose", z, perm=[0, 2, 1]), [2, -1, 6, 6]) if op == "EyeLike" else z

    result = prove(sandwich(middle))
    assert result.choices("w1") == [8]
    assert op == "Range" or result.reason("w") == "EyeLike numbers this axis"


def test_a_constant_of_the_channels_shape() -> None:
    """Its sizes are read off, or written down."""
    for size in ("read", "written"):

        def middle(b: Builder, y: str, size: str = size) -> str:
            shape = b.op("Shape", y) if size == "read" else b.const([2, 8, 6, 6])
            ones = b.op("ConstantOfShape", shape, value=onnx.numpy_helper.from_array(np.ones(1, np.float32)))
            return b.op("Concat", y, b.conv(b.op("Add", y, ones), 6, name="w"), axis=1)

        result = prove(sandwich(middle))
        assert result.choices("w1") == [8]
        assert result.choices("w") == [6]


def test_every_operator_for_inference_is_known_or_left_out_on_purpose() -> None:
    """Up to opset 24; what is not known locks what it touches."""
    sequences = {"ConcatFromSequence", "SplitToSequence", *(f"Optional{s}" for s in ("", "GetElement", "HasElement"))}
    sequences |= {f"Sequence{s}" for s in ("At", "Construct", "Empty", "Erase", "Insert", "Length", "Map")}
    strings = {"RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"}
    random = {"Bernoulli", "Multinomial"} | {f"Random{k}{s}" for k in ("Normal", "Uniform") for s in ("", "Like")}
    losses = {"NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"}
    windows = {"BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"}  # nothing goes in
    other = {"If", "Loop", "Scan", "ImageDecoder", "Size"}
    known = {s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and s.since_version <= 24}
    assert {name for name in known if RULES.find(name) is None} <= (
        sequences | strings | random | losses | windows | other
    )


def corners(b: Builder, y: str) -> str:
    return b.op("GridSample", y, b.op("Tanh", b.weight(2, 6, 6, 2, fan=2)), padding_mode="border")


def columns(b: Builder, y: str) -> str:
    rows = b.conv(y, 32, name="folded")
    return b.op("Col2Im", b.op("Reshape", rows, [2, 32, 36]), [12, 12], [2, 2], strides=[2, 2])


def spectrum(b: Builder, y: str) -> str:
    return b.op("Reshape", b.op("DFT", b.op("Unsqueeze", y, [4]), axis=2), [0, 0, 0, 12])


def scattered(b: Builder, y: str) -> str:
    index = np.random.default_rng(0).integers(0, 6, (2, 8, 6, 6))
    return b.op("ScatterElements", y, index, b.op("Relu", y), axis=2, reduction="max")


def rois(b: Builder, y: str) -> str:
    boxes = np.array([[0.5, 0.5, 4.0, 4.5], [1.0, 0.0, 5.5, 3.0]], np.float32)
    return b.op("RoiAlign", y, boxes, np.array([0, 1]), output_height=6, output_width=6)


def written(b: Builder, y: str) -> str:
    z = b.op("Transpose", y, perm=[0, 2, 3, 1])
    z = b.op("ScatterND", z, np.array([[0, 3, 1]]), b.op("GatherND", z, np.array([[1, 5, 0]])), reduction="add")
    return b.op("Transpose", z, perm=[0, 3, 1, 2])


def deformed(b: Builder, y: str) -> str:
    return b.op("DeformConv", y, b.weight(8, 8, 1, 1, name="deform"), b.weight(2, 2, 6, 6), b.weight(8))


@pytest.mark.parametrize("middle", [corners, columns, spectrum, scattered, rois, written, deformed])
def test_zeros_pass_so_that_a_sum_over_channels_misses_nothing(middle: Middle) -> None:
    def summed(b: Builder, y: str) -> str:
        z = middle(b, y)
        return b.conv(b.op("ReduceSum", z, [1], keepdims=1), 5, name="after")

    result = prove(sandwich(summed, opset=19), rounds=3)
    assert result.choices("w1") == [8]
    for name in {"deform", "folded"} & set(result.coupling.uses):
        assert result.choices(name) == [8]
