"""The masked original: zeros wherever a plan drops a slice, from the plan alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.edits import is_added
from onnxprune.plan import Plan
from onnxprune.tensors import FLOATS

# Where integer ops read a weight, and its zero points with the axis along which those run (None: an attribute).
_ZERO_POINTS: dict[tuple[str, int], tuple[int, int | None]] = {
    ("DequantizeLinear", 0): (2, None),
    ("QLinearConv", 3): (5, 0),
    ("ConvInteger", 1): (3, 0),
    ("QLinearMatMul", 3): (5, -1),
    ("MatMulInteger", 1): (3, -1),
    ("DynamicQuantizeMatMul", 1): (3, -1),
    ("MatMulIntegerToFloat", 1): (5, -1),
    ("QGemm", 3): (5, -1),
    ("QAttention", 1): (7, -1),
}
# Constants that are divided by, or that say how others are to be read: zero would not mean "gone".
_NO_ZERO = frozenset(
    {("Div", 1), ("Mod", 1), ("Pow", 0), ("Reciprocal", 0), ("Log", 0), ("BatchNormalization", 4)}
    | {(f"{kind}Linear", slot) for kind in ("Quantize", "Dequantize") for slot in (1, 2)}
    | {(f"QLinear{kind}", slot) for kind in ("Conv", "MatMul") for slot in (1, 2, 4, 5, 6, 7)}
    | {(op, slot) for (op, _), (slot, _) in _ZERO_POINTS.items()}
    | {("DynamicQuantizeMatMul", 2), ("MatMulIntegerToFloat", 3)}
)
_PASS = frozenset(["Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Expand", "Sqrt", "Abs"])
_WHOLE = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32})


def _store(model: ModelProto, plan: Plan) -> None:
    """Weights that ConstantOfShape makes and the plan cuts, as initializers."""
    values = tensors(model)
    for node in [n for n in model.graph.node if n.op_type == "ConstantOfShape" and n.output[0] in plan.kept]:
        dims, fill = numpy_helper.to_array(values[node.input[0]]), numpy_helper.to_array(node.attribute[0].t)
        model.graph.initializer.append(numpy_helper.from_array(np.full(dims, fill.reshape(-1)[0]), node.output[0]))
        node.output[0] += "/unused"


def mask(original: ModelProto, plan: Plan, pruned: ModelProto) -> ModelProto:
    """The original with zeros in every slice that the plan drops; nodes read split copies where the cut model does."""
    model = ModelProto()
    model.CopyFrom(original)
    _store(model, plan)
    held = tensors(model)
    for copy, source in plan.splits.items():
        model.graph.initializer.add().CopyFrom(held[source])
        model.graph.initializer[-1].name = copy
    same = [n for n in pruned.graph.node if not is_added(n)]
    for node, cut_node in zip(model.graph.node, same, strict=True):
        for slot, name in enumerate(cut_node.input[: len(node.input)]):
            if name in plan.splits:
                node.input[slot] = name
    for tensor in tensors(model).values():
        axes = plan.kept.get(tensor.name, {})
        fill = _fill(model, tensor)
        if axes and fill is not None:
            array = np.array(numpy_helper.to_array(tensor))
            for axis, kept in axes.items():
                gone = np.setdiff1d(np.arange(array.shape[axis]), kept)
                rows = np.moveaxis(array, axis, 0)
                rows[gone] = np.moveaxis(np.broadcast_to(fill, array.shape), axis, 0)[gone]
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


def tensors(model: ModelProto) -> dict[str, TensorProto]:
    """Every constant by name: initializers, and the tensors of Constant nodes (which take the output's name)."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            if node.attribute[0].name != "value":
                array = np.asarray(helper.get_attribute_value(node.attribute[0]))
                array = array.astype(np.float32) if array.dtype.kind == "f" else array
                node.attribute[0].CopyFrom(helper.make_attribute("value", numpy_helper.from_array(array)))
            node.attribute[0].t.name = node.output[0]
            found[node.output[0]] = node.attribute[0].t
    return found


def arrays(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Every constant of a model."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors(copy).items()}


def _fill(model: ModelProto, tensor: TensorProto) -> NDArray[Any] | None:
    """What zero is in a constant: 0, or its zero points, laid out to broadcast; None where nothing is."""
    names, dims = {tensor.name}, len(tensor.dims)
    fill = np.zeros((), dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type))
    for node in model.graph.node:
        slots = [slot for slot, name in enumerate(node.input) if name in names]
        if any((node.op_type, slot) in _NO_ZERO for slot in slots):
            return None
        if slots and node.op_type in _PASS:
            names.add(node.output[0])
        for slot in slots:
            place, axis = _ZERO_POINTS.get((node.op_type, slot), (len(node.input), None))
            if place < len(node.input) and node.input[place]:
                points = numpy_helper.to_array(tensors(model)[node.input[place]])
                if any(a.name == "transB" and a.i for a in node.attribute):
                    axis = 0
                along = next((a.i for a in node.attribute if a.name == "axis"), 1) if axis is None else axis
                shape = [-1 if a == along % dims else 1 for a in range(dims)]
                fill = points.reshape(shape) if points.ndim else points
    return fill if tensor.data_type in FLOATS | _WHOLE else None
