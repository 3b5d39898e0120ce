"""What detectors do behind their heads: boxes are picked by data; the channels under them pass."""

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.testing import Builder, close, prove, sandwich

ROIS = np.array([[0.5, 0.5, 4.0, 4.5], [1.0, 0.0, 5.5, 3.0], [2.0, 2.0, 3.5, 5.0]], np.float32)


# Boxes


@pytest.mark.parametrize(("opset", "mode"), [(11, "avg"), (16, "avg"), (16, "max")])
def test_roi_align(opset: int, mode: str) -> None:
    """Two layers of a box head behind it, whose boxes come from a layer, too."""

    def middle(b: Builder, y: str) -> str:
        deltas = b.op("Flatten", b.op("GlobalAveragePool", b.conv(y, 4, name="deltas")))
        rois = b.op("Add", b.op("Gather", b.op("Tanh", deltas), [0, 1, 0]), ROIS)
        z = b.op("RoiAlign", y, rois, np.array([0, 1, 1]), output_height=2, output_width=2, mode=mode)
        return b.gemm(b.op("Flatten", z), 10, name="box")

    result = prove(sandwich(middle, opset=opset))
    assert result.choices("w1") == [8]
    assert result.choices("box", 1) == [8]
    assert result.choices("box") == [10]
    assert not result.can_cut("deltas")
    assert result.reason("deltas") == "the coordinates of a box, and what is read inside of it"


def test_max_roi_pool() -> None:
    rois = np.concatenate([np.array([[0], [1], [1]], np.float32), ROIS], axis=1)
    result = prove(sandwich(lambda b, y: b.op("MaxRoiPool", y, rois, pooled_shape=[2, 2])))
    assert result.choices("w1") == [8]


def test_a_head_before_non_max_suppression() -> None:
    """The towers are cut; only the outputs of the predictors stay."""
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", 1, 3, 6, 6), 8, name="w1"))
    heads = []
    for name, wide in (("boxes", 4), ("scores", 5)):
        tower = b.op("Relu", b.conv(y, 6, name=f"{name}.tower"))
        heads.append(b.op("Reshape", b.conv(tower, wide, 1, name=name), [1, wide, 36]))
    corners = b.op("Transpose", heads[0], perm=[0, 2, 1])
    scores = b.op("Sigmoid", heads[1])
    picked = b.op("NonMaxSuppression", corners, scores, np.array([3]), np.array([0.9], np.float32))
    boxes = b.op("Squeeze", b.op("Gather", picked, np.array([2]), axis=1), [1])
    result = prove(b.model(b.op("Gather", corners, boxes, axis=1), picked))
    assert result.choices("w1") == [8]
    for name in ("boxes", "scores"):
        assert result.choices(f"{name}.tower") == [6]
        assert result.choices(name, 1) == [6]
        assert result.reason(name) == "NonMaxSuppression compares all boxes, and numbers them"


def test_queries_picked_by_their_scores() -> None:
    """The best positions by TopK, gathered with all their channels, as detectors with transformers do."""
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", 1, 3, 6, 6), 8, name="w1"))
    score = b.op("Reshape", b.conv(b.op("Relu", b.conv(y, 6, name="tower")), 1, 1, name="score"), [1, 36])
    index = b.op("Unsqueeze", b.ops("TopK", score, np.array([5]), axis=1, outputs=2)[1], [2])
    memory = b.op("Transpose", b.op("Reshape", y, [1, 8, 36]), perm=[0, 2, 1])
    shape = b.op("Concat", [1, 5], b.op("Slice", b.op("Shape", memory), [2], [3], [0]), axis=0)
    queries = b.op("GatherElements", memory, b.op("Expand", index, shape), axis=1)
    result = prove(b.model(b.op("MatMul", queries, b.weight(8, 4, name="w2"))))
    assert result.choices("w1") == result.choices("w2") == [8]
    assert result.choices("tower") == [6]


# Deformable convolution


def deformed(groups: int = 1, moved: int = 1, mask: bool = True, out: int = 8) -> ModelProto:
    """Offsets and masks from layers of their own."""

    def middle(b: Builder, y: str) -> str:
        offset = b.conv(b.conv(y, 5, name="tower"), moved * 18, name="offset")
        gate = b.op("Sigmoid", b.conv(y, moved * 9, name="mask")) if mask else None
        weight, bias = b.weight(out, 8 // groups, 3, 3, name="deform"), b.weight(out, name="bias")
        attrs: dict[str, Any] = {"group": groups, "offset_group": moved, "pads": [1, 1, 1, 1]}
        return b.op("DeformConv", y, weight, offset, bias, gate, **attrs)

    return sandwich(middle, opset=19, spatial=(4, 4))


@pytest.mark.parametrize("mask", [True, False])
def test_deformable_convolution(mask: bool) -> None:
    result = prove(deformed(mask=mask, out=6))
    assert result.choices("w1") == result.choices("deform", 1) == [8]
    assert result.choices("deform") == result.choices("bias") == [6]
    assert result.choices("tower") == [5]
    assert not result.can_cut("offset")
    assert not mask or not result.can_cut("mask")


@pytest.mark.parametrize("groups", [2, 8])
def test_grouped_deformable_convolution(groups: int) -> None:
    result = prove(deformed(groups))
    assert result.choices("w1") == [8 // groups if groups < 8 else 8]


@pytest.mark.parametrize("groups", [1, 2])
def test_channels_that_share_offsets(groups: int) -> None:
    """Both runs lose the same places, so that each keeps its offsets."""
    result = prove(deformed(groups, moved=2))
    assert result.choices("w1") == [4]


def test_a_deformable_convolution_counts_as_a_layer() -> None:
    """Its cost and its weights are known to the criteria."""
    b = Builder(19)
    y = b.conv(b.input("x", 1, 3, 4, 4), 8, name="w1")
    y = b.op("DeformConv", y, b.weight(6, 8, 1, 1, name="deform"), b.conv(y, 2, 1, name="offset"))
    result = prove(b.model(close(b, y)))
    assert any(node.op == "DeformConv" for node, _ in result.coupling.linears)
