"""Import torchvision even where its compiled operators do not load.

torchvision refuses to import when its shared library does not match the installed torch (a CUDA build beside
a CPU build of torch, for instance), although classifiers and backbones need none of its operators. Declaring
the schemas is enough for the import; a model that calls one of them still fails when it does.
"""

import importlib
import sys
from types import ModuleType

import torch

_BOXES = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SHAPE = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_GRAD = "Tensor grad, Tensor rois"
_SIZES = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_DEFORM = "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias"
_STRIDES = (
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, "
    "SymInt groups, SymInt offset_groups, bool use_mask"
)
_FIVE = ", ".join(["Tensor"] * 5)
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_BOXES}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward({_GRAD}, {_SHAPE}, {_SIZES}, int sampling_ratio, bool aligned) -> Tensor",
    f"ps_roi_align({_BOXES}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward({_GRAD}, Tensor m, {_SHAPE}, int sampling_ratio, {_SIZES}) -> Tensor",
    f"roi_pool({_BOXES}) -> (Tensor, Tensor)",
    f"_roi_pool_backward({_GRAD}, Tensor argmax, {_SHAPE}, {_SIZES}) -> Tensor",
    f"ps_roi_pool({_BOXES}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward({_GRAD}, Tensor m, {_SHAPE}, {_SIZES}) -> Tensor",
    f"deform_conv2d({_DEFORM}, {_STRIDES}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_DEFORM}, {_STRIDES}) -> ({_FIVE})",
)

_libraries: list[torch.library.Library] = []  # schemas live as long as the library that defines them


def import_torchvision() -> ModuleType:
    """torchvision, with the schemas of its operators declared first if it does not import without."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _libraries.append(library)
    return importlib.import_module("torchvision")
