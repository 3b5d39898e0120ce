"""Float16 by `onnxruntime.transformers.float16`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxprune.feeds import Array
from onnxprune.graph import Graph
from onnxprune.quantized.bodies import bodies, captured, rename

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

    Args:
        source: the model's file; its weights are all read.
        blocked: names of nodes that stay, besides `unfit_ops`.
        keep_io: inputs and outputs stay float32.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made: ModelProto = convert_float_to_float16(str(source), keep_io_types=keep_io, node_block_list=sorted(blocked))
    _widen(made)
    return made


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
    finite = weights[np.abs(weights) < INFINITE]
    rounded = finite.clip(-LARGEST, LARGEST).astype(np.float16).astype(np.float32)
    return bool(np.abs(finite - rounded).sum(dtype=np.float64) > TOLERATED * np.abs(finite).sum(dtype=np.float64))
