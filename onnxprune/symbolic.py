"""ONNX Runtime's symbolic shape inference, for the operators of its own that ONNX's inference does not know."""

from __future__ import annotations

from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxprune.shapes import infer

OWN = "com.microsoft"


def infer_symbolically(shell: ModelProto) -> ModelProto:
    """The shell with the shapes that ONNX Runtime's inference finds; as far as it gets."""
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    # The tool's public entry point saves a file where it does not get to the end.
    tool: Any = SymbolicShapeInference(2**31 - 1, True, False, 0)
    try:
        tool._preprocess(_typed(shell))
        while tool.run_:
            tool._infer_impl()
        tool._update_output_from_vi()
    except Exception:  # it raises what it likes; what stays without a shape is locked
        if getattr(tool, "out_mp_", None) is None:
            return shell
    known = {v.name: v for v in tool.out_mp_.graph.value_info}
    result = ModelProto()
    result.CopyFrom(shell)
    declared = {v.name for v in shell.graph.value_info if v.type.tensor_type.HasField("shape")}
    fresh = [v for name, v in known.items() if name not in declared and v.type.tensor_type.HasField("shape")]
    names = {v.name for v in fresh}
    kept = [v for v in shell.graph.value_info if v.name not in names]
    result.graph.ClearField("value_info")
    result.graph.value_info.extend([*kept, *fresh])
    return infer(result)


def _typed(shell: ModelProto) -> ModelProto:
    """The shell with its weights, which have no data, as inputs of the same type, and with operators that the tool
    does not know written as standard ones of the same shapes."""
    model = ModelProto(ir_version=shell.ir_version)
    model.opset_import.extend(shell.opset_import)
    model.functions.extend(shell.functions)
    source, graph = shell.graph, model.graph
    graph.name = source.name
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    declared = {i.name for i in source.input}
    for tensor in source.initializer:
        if _has_data(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for node in source.node:
        tensor = node.attribute[0].t if node.op_type == "Constant" and node.attribute else None
        if tensor is not None and node.attribute[0].name == "value" and not _has_data(tensor):
            graph.input.append(helper.make_tensor_value_info(node.output[0], tensor.data_type, list(tensor.dims)))
        else:
            graph.node.append(_standard(node))
    return model


def _standard(node: NodeProto) -> NodeProto:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.domain == OWN and node.op_type == "FusedConv":
        kept = {k: v for k, v in attributes.items() if not k.startswith("activation")}
        return helper.make_node("Conv", list(node.input)[:3], list(node.output), **kept)
    if node.domain == OWN and node.op_type == "FusedMatMul":
        a = "...km" if attributes.get("transA", 0) else "...mk"
        b = "...nk" if attributes.get("transB", 0) else "...kn"
        return helper.make_node("Einsum", list(node.input), list(node.output), equation=f"{a},{b}->...mn")
    return node


def _has_data(tensor: TensorProto) -> bool:
    stored = any(f.name.endswith("_data") and len(v) for f, v in tensor.ListFields())
    return stored or 0 in tensor.dims
