"""Weights without most of their numbers, for tools that hold several copies of a model.

A scale depends on the least and the greatest number that it is for, and on nothing else. So a tool that is given these
two in the place of all numbers that are summed finds the scales of the whole weights; these become integers here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from onnxprune.feeds import Array
from onnxprune.formats import every_node
from onnxprune.sums import chunks
from onnxprune.tensors import copied, fill, read_tensor
from onnxprune.writing import DataFile, stream


@dataclass(frozen=True)
class Whole:
    """A weight that has a stand-in.

    Attributes:
        tensor: in its file.
        axis: of the stand-in, that it is short along; the other one of the first two is that of the output channels.
        turned: the stand-in is of the transposed weight.
    """

    tensor: TensorProto
    axis: int
    turned: bool = False

    def read(self, folder: Path) -> Array:
        """Its numbers, laid out as the stand-in's."""
        array = read_tensor(self.tensor, folder)
        return array.T if self.turned else array


def reduced(source: Path, target: Path) -> dict[str, Whole]:
    """Write a model whose larger weights are extremes: [2, outputs] for a matrix, [outputs, 2, ...] for a kernel.

    Args:
        source: the model; weights beside it have a stand-in, where all that reads them is known here.
        target: the new model.

    Returns:
        What has a stand-in, by name.
    """
    model = onnx.load(source, load_external_data=False)
    uses: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in every_node(model):
        for slot, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, slot))
    outputs, found = {o.name for o in model.graph.output}, dict[str, Whole]()
    for tensor in model.graph.initializer:
        kinds = {_summed(node, slot, len(tensor.dims)) for node, slot in uses.get(tensor.name, ())}
        plain = uses_external_data(tensor) and tensor.data_type == TensorProto.FLOAT and tensor.name not in outputs
        if plain and len(kinds) == 1 and (kind := kinds.pop()) is not None:
            before = TensorProto()
            before.CopyFrom(tensor)
            whole = found[tensor.name] = Whole(before, *kind)
            tensor.CopyFrom(numpy_helper.from_array(_extremes(whole.read(source.parent), whole.axis), tensor.name))
    for name, whole in found.items():
        for node, _ in uses[name] if whole.turned else ():
            next(a for a in node.attribute if a.name == "transB").i = 0
    short = {t.name: t.dims for t in model.graph.initializer if t.name in found}
    for info in model.graph.input:  # before IR version 4 weights are inputs, too
        if info.name in short:
            info.CopyFrom(helper.make_tensor_value_info(info.name, TensorProto.FLOAT, short[info.name]))
    for info in [v for v in model.graph.value_info if v.name in short]:
        model.graph.value_info.remove(info)
    stream(target, lambda store: copied(model, source.parent, store))
    return found


def _summed(node: NodeProto, slot: int, rank: int) -> tuple[int, bool] | None:
    """The axis of a weight that a node sums over, or picks from, and whether it is of the transposed weight."""
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv" and slot == 1 and rank > 1:
        return 1, False
    if rank == 2 and node.op_type == "MatMul" and slot == 1:
        return 0, False
    if rank == 2 and node.op_type == "Gemm" and slot == 1 and not attrs.get("transA"):  # that become a MatMul
        return (0, bool(attrs.get("transB"))) if attrs.get("alpha", 1) == attrs.get("beta", 1) == 1 else None
    if rank == 2 and node.op_type == "Gather" and slot == 0 and not attrs.get("axis"):
        return 0, False
    return None


def _extremes(array: Array, axis: int) -> Array:
    """The least and the greatest number along an axis."""
    return np.concatenate([array.min(axis=axis, keepdims=True), array.max(axis=axis, keepdims=True)], axis=axis)


def restored(made: ModelProto, wholes: Mapping[str, Whole], folder: Path, suffix: str) -> None:
    """Put the whole weights in the place of their stand-ins, as the numbers that these have become.

    Args:
        made: the tool's model; changed in place.
        wholes: what has a stand-in.
        folder: where their data are, and where the new ones go.
        suffix: what the tool adds to the name of a weight that becomes integers.
    """
    store, tensors = DataFile(folder / "wholes.data"), {t.name: t for t in made.graph.initializer}
    for name, whole in wholes.items():
        if (tensor := tensors.get(name)) is not None:
            tensor.Clear()
            if whole.turned:
                fill(tensor, whole.tensor, name, whole.read(folder), store)
            else:
                tensor.CopyFrom(whole.tensor)
        if (tensor := tensors.get(name + suffix)) is not None:
            scale, zero = (numpy_helper.to_array(tensors[f"{name}_{what}"]) for what in ("scale", "zero_point"))
            like = TensorProto(data_type=tensor.data_type)
            tensor.Clear()
            fill(tensor, like, name + suffix, _integers(whole, folder, scale, zero, like.data_type), store)


def _integers(whole: Whole, folder: Path, scale: Array, zero: Array, kind: int) -> Array:
    """A weight on a grid, with a scale for all or one for each output channel."""
    from onnxruntime.quantization.quant_utils import quantize_nparray

    array = whole.read(folder)
    found, shape = np.empty(array.shape, zero.dtype), [1] * array.ndim
    if scale.ndim:
        shape[1 - whole.axis] = -1
    scale, zero = scale.reshape(shape), zero.reshape(shape)
    for part in chunks(len(array), array[:1].size):
        own = (each[part] if len(each) > 1 else each for each in (scale, zero))
        found[part] = quantize_nparray(kind, array[part], *own)
    return found
