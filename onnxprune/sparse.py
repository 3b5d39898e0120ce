"""Sparse tensors of ONNX: those of a model that is read become dense; large and mostly zero ones can be written sparse.

ONNX Runtime takes both, and makes dense tensors of sparse ones when it loads them: it is the file that gets smaller. A
number that is not zero takes its own bytes and eight for its index.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from onnxprune.tensors import Array, Store, bring, carry, fill, frame, in_proto, payload, read_tensor

INDEX = 8  # bytes: ONNX asks for int64


def densified(proto: ModelProto, folder: Path | None) -> ModelProto:
    """A model whose constants are all dense.

    Args:
        proto: the model; not changed.
        folder: where its external data is.

    Raises:
        ModelError: a sparse tensor cannot be read.
    """
    if not proto.graph.sparse_initializer and not any(map(_sparse_value, proto.graph.node)):
        return proto
    model = frame(proto)
    model.graph.ClearField("sparse_initializer")
    model.graph.initializer.extend(proto.graph.initializer)
    model.graph.initializer.extend(_dense(s, s.values.name, folder) for s in proto.graph.sparse_initializer)
    for node in model.graph.node:
        if (held := _sparse_value(node)) is not None:
            value = AttributeProto(name="value", type=AttributeProto.TENSOR, t=_dense(held, node.output[0], folder))
            node.ClearField("attribute")
            node.attribute.append(value)
    return model


def sparse_bytes(array: Array) -> int:
    """Bytes of an array as a sparse tensor."""
    return int(np.count_nonzero(array)) * (array.itemsize + INDEX)


def with_sparse(
    proto: ModelProto, folder: Path | None, names: Collection[str], store: Store = in_proto
) -> tuple[ModelProto, list[str]]:
    """A model with some of its initializers sparse: those that get smaller by it, which are named.

    Args:
        proto: the model; not changed.
        folder: where its external data is.
        names: initializers that may become sparse.
        store: where dense weights go; sparse ones stay in the model.
    """
    model, made = frame(proto), list[str]()
    for tensor in proto.graph.initializer:
        array = read_tensor(tensor, folder) if tensor.name in names else None
        if array is not None and sparse_bytes(array) < array.nbytes:
            model.graph.sparse_initializer.append(_sparse(tensor, array))
            made.append(tensor.name)
        else:
            carry(model.graph.initializer.add(), tensor, tensor.name, folder, store)
    for node in model.graph.node:
        bring(node, folder, store)
    return model, made


def _sparse_value(node: NodeProto) -> SparseTensorProto | None:
    """What a Constant node holds as a sparse tensor."""
    if node.op_type != "Constant" or len(node.attribute) != 1 or node.attribute[0].name != "sparse_value":
        return None
    held: SparseTensorProto = node.attribute[0].sparse_tensor
    return held


def _dense(held: SparseTensorProto, name: str, folder: Path | None) -> TensorProto:
    values, at = read_tensor(held.values, folder), read_tensor(held.indices, folder)
    dims = tuple(held.dims)
    array = np.zeros(math.prod(dims), values.dtype)
    array[np.ravel_multi_index(tuple(at.T), dims) if at.ndim == 2 else at] = values
    tensor = TensorProto()
    fill(tensor, held.values, name, array.reshape(dims), in_proto)
    return tensor


def _sparse(tensor: TensorProto, array: Array) -> SparseTensorProto:
    flat = array.reshape(-1)
    at = np.flatnonzero(flat)
    made = SparseTensorProto(dims=tensor.dims)
    made.values.name, made.values.data_type, made.values.doc_string = tensor.name, tensor.data_type, tensor.doc_string
    made.values.dims.append(at.size)
    made.values.raw_data = bytes(payload(flat[at], tensor.data_type))
    made.indices.data_type = TensorProto.INT64
    made.indices.dims.append(at.size)
    made.indices.raw_data = at.astype("<i8").tobytes()
    return made
