"""Float16 by `onnxruntime.transformers.float16`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper
from onnx.external_data_helper import uses_external_data

from onnxprune.feeds import Array
from onnxprune.graph import Graph
from onnxprune.quantized.bodies import bodies, captured, rename
from onnxprune.sums import chunks
from onnxprune.tensors import bring, fill, in_proto, read_tensor
from onnxprune.writing import DataFile

LARGEST = float(np.finfo(np.float16).max)
INFINITE = 1e38  # and more stands for infinity
TOLERATED = 2.0**-8  # change of a tensor's numbers, relative to their sum; of what float16 holds it is below 2^-11
LOST = "float16 does not hold its constants"
BODIES = "its subgraphs stay float32"
RECURRENT = dict.fromkeys(("LSTM", "GRU", "RNN"), "no float16 kernel on the CPU; name it in ops")


def unfit_ops() -> frozenset[str]:
    """Operators that stay float32: without a float16 kernel, or of no use in it."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    return frozenset(DEFAULT_OP_BLOCK_LIST)


def half(source: Path, blocked: Collection[str], keep_io: bool) -> ModelProto:
    """The model in float16, with casts around what stays, in no order.

    The tool sees no numbers of larger weights: what it makes of their types is then done to them one by one.

    Args:
        source: the model's file. Weights of the new model lie beside it, too.
        blocked: names of nodes that stay, besides `unfit_ops`.
        keep_io: inputs and outputs stay float32.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    known = source.with_name("known.onnx")
    onnx.shape_inference.infer_shapes_path(str(source), str(known))
    seen = onnx.load(known, load_external_data=False)
    for node in seen.graph.node:
        bring(node, source.parent, in_proto)
    weights = {t.name: _without_numbers(t) for t in seen.graph.initializer if uses_external_data(t)}
    made: ModelProto = convert_float_to_float16(
        seen, keep_io_types=keep_io, node_block_list=sorted(blocked), disable_shape_infer=True
    )
    store = DataFile(source.with_name("halves.data"))
    for tensor in made.graph.initializer:
        if tensor.name not in weights:
            continue
        before, kind = weights[tensor.name], tensor.data_type
        tensor.CopyFrom(before)
        if kind != before.data_type:
            values = rounded(read_tensor(before, source.parent))
            tensor.Clear()
            before.data_type = kind
            fill(tensor, before, before.name, values, store)
    _widen(made)
    casts = {node.output[0]: node.input[0] for node in made.graph.node if node.op_type == "Cast"}
    for info in made.graph.value_info:
        if (name := casts.get(info.name)) in weights:
            kind = info.type.tensor_type.elem_type
            info.CopyFrom(helper.make_tensor_value_info(info.name, kind, list(weights[name].dims)))
    return made


def _without_numbers(tensor: TensorProto) -> TensorProto:
    """The tensor as it was; it has no elements any more."""
    before = TensorProto()
    before.CopyFrom(tensor)
    tensor.Clear()
    tensor.name, tensor.data_type = before.name, before.data_type
    tensor.dims.append(0)
    return before


def rounded(weights: Array) -> Array:
    """Weights in float16, as the tool makes them: none vanishes or becomes infinite."""
    from onnxruntime.transformers.float16 import convert_np_to_float16

    found = np.empty(weights.shape, np.float16)
    source, target = weights.reshape(-1), found.reshape(-1)
    for part in chunks(source.size):
        target[part] = convert_np_to_float16(source[part])
    return found


def _widen(model: ModelProto) -> None:
    """Casts to float32 for what subgraphs, which stay so, read from outside."""
    values = (*model.graph.input, *model.graph.value_info)
    half = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    half |= {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    inner = [node for node in model.graph.node if bodies(node)]
    read = set[str]().union(*map(captured, inner))
    wide = {name: f"{name}_widened" for name in sorted(half & read)}
    for node in inner:
        rename(node, wide)
    model.graph.node.extend(helper.make_node("Cast", [a], [b], b, to=TensorProto.FLOAT) for a, b in wide.items())


def staying(graph: Graph) -> dict[str, str]:
    """Labels of nodes that must stay float32 -> why.

    A node with subgraphs: the tools put no casts into them. One that reads a constant which float16 does not hold:
    variances and epsilons vanish in it, and large numbers are cut. What stands for infinity (a bound of a Clip, a mask)
    may be cut.
    """
    floats = (name for name, tensor in graph.constants.items() if tensor.data_type == TensorProto.FLOAT)
    lost = {name for name in floats if _is_lost(graph.array(name))}
    found = {node.label: LOST for node in graph.nodes if not lost.isdisjoint(node.inputs)}
    return found | {node.label: BODIES for node in graph.nodes if bodies(node.proto)}


def _is_lost(weights: Array) -> bool:
    flat, change, total = weights.reshape(-1), 0.0, 0.0
    for values in (flat[part] for part in chunks(flat.size)):
        finite = values[np.abs(values) < INFINITE]
        held = finite.clip(-LARGEST, LARGEST).astype(np.float16).astype(np.float32)
        change += float(np.abs(finite - held).sum(dtype=np.float64))
        total += float(np.abs(finite).sum(dtype=np.float64))
    return change > TOLERATED * total
