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
            graph.node.extend(_standard(node))
    return model


# ONNX Runtime's operators that the tool does not know -> a standard one of the same shapes, and the inputs it reads.
_LIKE: dict[str, tuple[str, tuple[int, ...]]] = {
    "FusedConv": ("Conv", (0, 1, 2)),
    "FusedGemm": ("Gemm", (0, 1, 2)),
    "QGemm": ("Gemm", (0, 3)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "QLinearConv": ("Conv", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
    "QLinearWhere": ("Where", (0, 1, 4)),
    "DynamicQuantizeLSTM": ("LSTM", (0, 1, 2)),
    "QAttention": ("Attention", (0, 1, 2, 5, 8)),
    "MatMulBnb4": ("MatMulNBits", (0, 1)),
}
_KEPT = {
    "auto_pad",
    "axis",
    "block_size",
    "ceil_mode",
    "count_include_pad",
    "dilations",
    "direction",
    "group",
    "hidden_size",
    "K",
    "kernel_shape",
    "N",
    "num_heads",
    "pads",
    "strides",
    "transA",
    "transB",
    "unidirectional",
}
_MICROSOFT = frozenset(["Attention", "MatMulNBits"])
_FLOATS = frozenset(["MatMulIntegerToFloat", "QAttention"])  # from integers


def _standard(node: NodeProto) -> list[NodeProto]:
    """The node, or what stands for it."""
    if node.domain != OWN:
        return [node]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    inputs, outputs = list(node.input), list(node.output)
    if node.op_type in ("FusedMatMul", "TransposeMatMul"):
        a = "...km" if attributes.get("transA", 0) else "...mk"
        b = "...nk" if attributes.get("transB", 0) else "...kn"
        return [helper.make_node("Einsum", inputs, outputs, equation=f"{a},{b}->...mn")]
    if node.op_type == "QLinearConcat":
        return [helper.make_node("Concat", inputs[2::3], outputs, axis=attributes["axis"])]
    if node.op_type not in _LIKE or attributes.get("channels_last", 0):
        return [node]
    kind, slots = _LIKE[node.op_type]
    read = [inputs[slot] if slot < len(inputs) else "" for slot in slots]
    kept = {k: v for k, v in attributes.items() if k in _KEPT and kind != "Identity"}
    domain = OWN if kind in _MICROSOFT else ""
    if node.op_type in _FLOATS or (node.op_type == "QGemm" and len([i for i in inputs[7:] if i]) == 0):
        whole = [f"{outputs[0]}/integers", *outputs[1:]]
        cast = helper.make_node("Cast", whole[:1], outputs[:1], to=TensorProto.FLOAT)
        return [helper.make_node(kind, read, whole, domain=domain, **kept), cast]
    return [helper.make_node(kind, read, outputs, domain=domain, **kept)]


def _has_data(tensor: TensorProto) -> bool:
    stored = any(f.name.endswith("_data") and len(v) for f, v in tensor.ListFields())
    return stored or 0 in tensor.dims
