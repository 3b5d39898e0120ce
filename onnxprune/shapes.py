"""Shapes of all values, by ONNX shape inference over a shell: a copy of the model that carries no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import ModelProto, TensorProto, TypeProto
from onnx.external_data_helper import uses_external_data

from onnxprune.errors import ShapeError

# One entry an axis: an int, a symbol, or None; the whole is None where even the rank is unknown.
Shape = tuple[int | str | None, ...] | None

# Tensors up to this many elements travel along: inference reads shapes, axes and scales.
SHAPE_DATA = 64

# Operators that ONNX cannot infer; their output is like their first input.
LIKE_INPUT = frozenset({"GroupNormalization", "MeanVarianceNormalization", "Scaler", "Normalizer"})


def shell_of(proto: ModelProto, given: Mapping[str, tuple[int, ...]], name: str) -> ModelProto:
    """The model without its weights, with all shapes that inference finds.

    Args:
        proto: the model; not changed.
        given: input name -> shape, for inputs that the model leaves open.
        name: what messages call the model.

    Raises:
        ShapeError: `given` does not fit the model's inputs.
    """
    shell = without_weights(proto)
    _set_inputs(shell, given, name)
    return infer(shell)


def infer(shell: ModelProto) -> ModelProto:
    """ONNX shape inference with data propagation."""
    try:
        return onnx.shape_inference.infer_shapes(shell, data_prop=True)
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        return shell  # inference chokes on an op: what stays without a shape is locked, not guessed


def shapes_of(shell: ModelProto) -> dict[str, Shape]:
    """Value name -> shape, as the shell declares them."""
    shapes: dict[str, Shape] = {}
    for info in (*shell.graph.value_info, *shell.graph.input, *shell.graph.output):
        if (shape := _shape(info.type)) is not None or info.name not in shapes:
            shapes[info.name] = shape
    return shapes


def without_weights(proto: ModelProto) -> ModelProto:
    """The model with every large tensor's data dropped (names, types and dims stay)."""
    shell = ModelProto(ir_version=proto.ir_version)
    shell.opset_import.extend(proto.opset_import)
    shell.functions.extend(proto.functions)
    graph, source = shell.graph, proto.graph
    graph.name = source.name
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.sparse_initializer.extend(source.sparse_initializer)
    for tensor in source.initializer:
        graph.initializer.append(_light(tensor))
    for node in source.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            light = graph.node.add(op_type="Constant", domain=node.domain, output=node.output)
            light.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(_light(node.attribute[0].t))
        elif node.op_type in LIKE_INPUT and node.domain in ("", "ai.onnx", "ai.onnx.ml"):
            graph.node.add(op_type="Identity", input=node.input[:1], output=node.output)
        else:
            graph.node.append(node)
    return shell


def _light(tensor: TensorProto) -> TensorProto:
    count = 1
    for dim in tensor.dims:
        count *= dim
    if count <= SHAPE_DATA and not uses_external_data(tensor):
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _set_inputs(shell: ModelProto, given: Mapping[str, tuple[int, ...]], name: str) -> None:
    inputs = {i.name: i for i in shell.graph.input}
    for key, wanted in given.items():
        if key not in inputs:
            raise ShapeError(f"{name}: --shape names {key!r}, but the inputs are {', '.join(inputs)}")
        tensor = inputs[key].type.tensor_type
        known = _shape(inputs[key].type)
        clash = known is not None and (
            len(known) != len(wanted) or any(isinstance(k, int) and k != w for k, w in zip(known, wanted, strict=True))
        )
        if clash:
            raise ShapeError(f"{name}: --shape {key}={'x'.join(map(str, wanted))} contradicts the model's {known}")
        tensor.shape.ClearField("dim")
        for size in wanted:
            tensor.shape.dim.add(dim_value=size)
    for key, info in inputs.items():  # an open size gets a name, so that inference can follow it
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and not dim.dim_param:
                dim.dim_param = f"{key}.{axis}"
    if given:  # what the model says of inner values may carry the open sizes: infer them anew
        shell.graph.ClearField("value_info")


def _shape(kind: TypeProto) -> Shape:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(_size(d) for d in kind.tensor_type.shape.dim)


def _size(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value > 0 else None
    return dim.dim_param or None
