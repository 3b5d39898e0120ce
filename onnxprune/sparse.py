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
SINCE = 11  # the opset from which on a Constant node can hold a sparse tensor


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
    """A model with some of its constants sparse: those that get smaller by it, which are named.

    Args:
        proto: the model; not changed.
        folder: where its external data is.
        names: initializers and results of Constant nodes that may become sparse.
        store: where dense weights go; sparse ones stay in the model.
    """
    model, made = frame(proto), list[str]()

    def smaller(tensor: TensorProto, name: str) -> Array | None:
        array = read_tensor(tensor, folder) if name in names else None
        if array is None or sparse_bytes(array) >= array.nbytes:
            return None
        made.append(name)
        return array

    for tensor in proto.graph.initializer:
        if (array := smaller(tensor, tensor.name)) is not None:
            model.graph.sparse_initializer.append(_sparse(tensor, array))
        else:
            carry(model.graph.initializer.add(), tensor, tensor.name, folder, store)
    for node in model.graph.node:
        value = None if too_old(proto) else _value(node)
        if value is not None and (array := smaller(value, node.output[0])) is not None:
            held = AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR)
            held.sparse_tensor.CopyFrom(_sparse(value, array))
            node.ClearField("attribute")
            node.attribute.append(held)
        else:
            bring(node, folder, store)
    return model, made


def too_old(proto: ModelProto) -> bool:
    """Whether Constant nodes of a model cannot hold sparse tensors."""
    return all(o.version < SINCE for o in proto.opset_import if o.domain in ("", "ai.onnx"))


def _value(node: NodeProto) -> TensorProto | None:
    """What a Constant node holds as a dense tensor."""
    if node.op_type != "Constant" or len(node.attribute) != 1 or node.attribute[0].name != "value":
        return None
    held: TensorProto = node.attribute[0].t
    return held


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
