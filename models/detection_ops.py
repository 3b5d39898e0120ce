"""Non-maximum suppression and RoiAlign as operators of torch, in plain Python, which both exporters write as ONNX's.

torchvision's own need its compiled library; models in miniature can do with slow ones.
"""

from typing import Any

import torch
from torch import Tensor
from torch.onnx import symbolic_helper


@torch.library.custom_op("onnxprune::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes [n, 4] that overlap with no better one by more than a share, best first."""
    kept: list[int] = []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for i in scores.argsort(descending=True).tolist():
        low = torch.maximum(boxes[i, :2], boxes[kept, :2])
        high = torch.minimum(boxes[i, 2:], boxes[kept, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        if not bool((shared > threshold * (areas[i] + areas[kept] - shared)).any()):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.long)


@nms.register_fake
def nms_shape(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.long)


@torch.library.custom_op("onnxprune::roi_align", mutates_args=())
def roi_align(x: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    """What the first map of x [1, C, H, W] holds inside each of the boxes [n, 4]: [n, C, size, size].

    Bilinear, one sample for each place of the output.
    """
    height, width = x.shape[2:]
    steps = (torch.arange(size) + 0.5) / size
    corners = boxes * scale - 0.5
    made = []
    for x1, y1, x2, y2 in corners.tolist():
        rows, columns = (y1 + (y2 - y1) * steps).clamp(0, height - 1), (x1 + (x2 - x1) * steps).clamp(0, width - 1)
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), 2)
        grid = (2 * grid + 1) / torch.tensor([width, height]) - 1
        made.append(torch.nn.functional.grid_sample(x[:1], grid[None], padding_mode="border", align_corners=False))
    return torch.cat(made) if made else x.new_empty(0, x.shape[1], size, size)


@roi_align.register_fake
def roi_align_shape(x: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    return x.new_empty(boxes.shape[0], x.shape[1], size, size)


EVERYTHING = 2**31 - 1  # boxes that may be kept
known: Any = symbolic_helper._get_const  # the value of an argument that is a constant


def nms_torchscript(g: Any, boxes: Any, scores: Any, threshold: Any) -> Any:
    """What the older exporter writes for `nms`."""
    axes = [g.op("Constant", value_t=torch.tensor(a)) for a in ([0], [0, 1], [1])]
    most = g.op("Constant", value_t=torch.tensor([EVERYTHING]))
    limit = g.op("Constant", value_t=torch.tensor([known(threshold, "f", "threshold")]))
    boxes, scores = g.op("Unsqueeze", boxes, axes[0]), g.op("Unsqueeze", scores, axes[1])
    found = g.op("NonMaxSuppression", boxes, scores, most, limit)
    last = g.op("Constant", value_t=torch.tensor([2]))
    return g.op("Squeeze", g.op("Gather", found, last, axis_i=1), axes[2])


def roi_align_torchscript(g: Any, x: Any, boxes: Any, size: Any, scale: Any) -> Any:
    """What the older exporter writes for `roi_align`."""
    size, scale = known(size, "i", "size"), known(scale, "f", "scale")
    count = g.op("Shape", boxes, start_i=0, end_i=1)
    first = g.op("ConstantOfShape", count, value_t=torch.tensor([0]))
    attributes = {"output_height_i": size, "output_width_i": size, "sampling_ratio_i": 1, "spatial_scale_f": scale}
    return g.op("RoiAlign", x, boxes, first, **attributes)


def register_torchscript() -> None:
    """Tell the older exporter."""
    onnx: Any = torch.onnx
    onnx.register_custom_op_symbolic("onnxprune::nms", nms_torchscript, 16)
    onnx.register_custom_op_symbolic("onnxprune::roi_align", roi_align_torchscript, 16)


def translations() -> dict[Any, Any]:
    """What the newer exporter writes for each."""
    from onnxscript import opset18

    op: Any = opset18

    def suppress(boxes: Any, scores: Any, threshold: float) -> Any:
        limit = op.Constant(value_floats=[threshold])
        most = op.Constant(value_ints=[EVERYTHING])
        boxes = op.Unsqueeze(boxes, op.Constant(value_ints=[0]))
        scores = op.Unsqueeze(scores, op.Constant(value_ints=[0, 1]))
        found = op.NonMaxSuppression(boxes, scores, most, limit)
        return op.Squeeze(op.Gather(found, op.Constant(value_ints=[2]), axis=1), op.Constant(value_ints=[1]))

    def align(x: Any, boxes: Any, size: int, scale: float) -> Any:
        count = op.Shape(boxes, start=0, end=1)
        first = op.Expand(op.Constant(value_int=0), count)
        return op.RoiAlign(
            x, boxes, first, output_height=size, output_width=size, sampling_ratio=1, spatial_scale=scale
        )

    own: Any = torch.ops.onnxprune
    return {own.nms.default: suppress, own.roi_align.default: align}
