"""Float16 by `onnxruntime.transformers.float16`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from onnxprune.feeds import Array
from onnxprune.graph import Graph

LARGEST = float(np.finfo(np.float16).max)
INFINITE = 1e38  # and more stands for infinity
TOLERATED = 2.0**-8  # change of a tensor's numbers, relative to their sum; of what float16 holds it is below 2^-11
LOST = "float16 does not hold its constants"


def unfit_ops() -> frozenset[str]:
    """Operators that stay float32: without a float16 kernel, or of no use in it."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    return frozenset(DEFAULT_OP_BLOCK_LIST)


def half(source: Path, blocked: Collection[str], keep_io: bool) -> ModelProto:
    """The model in float16, with casts around what stays.

    Args:
        source: the model's file; its weights are all read.
        blocked: names of nodes that stay, besides `unfit_ops`.
        keep_io: inputs and outputs stay float32.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made = convert_float_to_float16(str(source), keep_io_types=keep_io, node_block_list=sorted(blocked))
    sorted_model = ONNXModel(made)
    sorted_model.topological_sort()  # casts were put at the end
    model: ModelProto = sorted_model.model
    return model


def losing(graph: Graph) -> set[str]:
    """Labels of nodes that read a constant which float16 does not hold.

    Variances and epsilons vanish in it, and large numbers are cut. What stands for infinity (a bound of a Clip, a mask)
    may be cut.
    """
    floats = (name for name, tensor in graph.constants.items() if tensor.data_type == TensorProto.FLOAT)
    lost = {name for name in floats if _is_lost(graph.array(name))}
    return {node.label for node in graph.nodes if not lost.isdisjoint(node.inputs)}


def _is_lost(weights: Array) -> bool:
    finite = weights[np.abs(weights) < INFINITE]
    rounded = finite.clip(-LARGEST, LARGEST).astype(np.float16).astype(np.float32)
    return bool(np.abs(finite - rounded).sum(dtype=np.float64) > TOLERATED * np.abs(finite).sum(dtype=np.float64))
