"""Float16 by `onnxruntime.transformers.float16`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from onnxprune.graph import Graph

LARGEST = float(np.finfo(np.float16).max)


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


def clipped(graph: Graph) -> int:
    """Finite numbers in the weights that are too large for float16: they become its largest."""
    floats = (n for n, t in graph.constants.items() if t.data_type == TensorProto.FLOAT)
    return sum(_beyond(np.abs(graph.array(name))) for name in floats)


def _beyond(sizes: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> int:
    return int(np.count_nonzero((sizes > LARGEST) & np.isfinite(sizes)))
