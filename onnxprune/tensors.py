"""Tensors as bytes: where those of a model are, and where those of a new model go.

A `Store` takes the bytes of one tensor after the other. `in_proto` puts them into the tensor itself; a
`writing.DataFile` puts them into a file at once, so that a model of any size can be made with one tensor in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxprune.errors import ModelError, one_line

# Operators that change a tensor's place, shape or type alone: a weight that goes through them is a weight.
PLAIN = frozenset(
    ["Identity", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat"]
) | {"Gather"}

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})

Array: TypeAlias = NDArray[Any]
Bytes: TypeAlias = bytes | memoryview
Store: TypeAlias = Callable[[TensorProto, Bytes], None]

# Types of which several elements share a byte, and the bits of one. NumPy has them a byte each.
_NIBBLES = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
PACKED = {getattr(TensorProto, name): bits for name, bits in _NIBBLES.items() if hasattr(TensorProto, name)}


def in_proto(tensor: TensorProto, data: Bytes) -> None:
    """The store of models in memory."""
    tensor.raw_data = bytes(data)


def read_tensor(tensor: TensorProto, folder: Path | None) -> Array:
    """A tensor's value, read-only and without a copy where the data is external.

    Raises:
        ModelError: the bytes do not fit the tensor's type and shape.
    """
    try:
        if not uses_external_data(tensor):
            return numpy_helper.to_array(tensor)
        if tensor.data_type in PACKED:
            whole = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            whole.raw_data = bytes(_mapped(tensor, folder).data)
            return numpy_helper.to_array(whole)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        return _mapped(tensor, folder).view(dtype).reshape(tuple(tensor.dims))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise _unreadable(tensor, error) from error


def payload(array: Array, data_type: int) -> Bytes:
    """The bytes of an array as a tensor of a type holds them; a view where nothing has to be packed."""
    if data_type in PACKED:
        return bytes(numpy_helper.from_array(array).raw_data)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def fill(target: TensorProto, like: TensorProto, name: str, array: Array, store: Store) -> None:
    """Make an empty tensor one of `like`'s type and notes, with another name and value."""
    _head(target, like, name, array.shape)
    store(target, payload(array, like.data_type))


def carry(target: TensorProto, source: TensorProto, name: str, folder: Path | None, store: Store) -> None:
    """Make an empty tensor the same as `source`, under a name; external data are looked for in `folder`.

    Raises:
        ModelError: they cannot be read.
    """
    external = uses_external_data(source)
    if not external and (store is in_proto or not source.HasField("raw_data")):
        target.CopyFrom(source)
        target.name = name
        return
    _head(target, source, name, source.dims)
    try:
        data = _mapped(source, folder).data if external else source.raw_data
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise _unreadable(source, error) from error
    store(target, data)


def bring(node: NodeProto, folder: Path | None, store: Store) -> None:
    """External tensors inside a copied node (a subgraph's weights, say) come along."""
    for tensor in in_node(node):
        if uses_external_data(tensor):
            source = TensorProto()
            source.CopyFrom(tensor)
            tensor.Clear()
            carry(tensor, source, source.name, folder, store)


def copied(source: ModelProto, folder: Path | None, store: Store) -> ModelProto:
    """A copy of a model with its weights in a store, one at a time; external data are looked for in `folder`."""
    model = frame(source)
    for tensor in source.graph.initializer:
        carry(model.graph.initializer.add(), tensor, tensor.name, folder, store)
    for owner in (model.graph, *model.functions):
        for node in owner.node:
            bring(node, folder, store)
    return model


def frame(source: ModelProto) -> ModelProto:
    """A copy of a model without its initializers."""
    model = ModelProto()
    for field, value in source.ListFields():
        if field.name != "graph":
            copy_field(model, field, value)
    for field, value in source.graph.ListFields():
        if field.name != "initializer":
            copy_field(model.graph, field, value)
    return model


def hollow(source: ModelProto) -> ModelProto:
    """A copy of a model whose initializers have names, types and dims, but no data."""
    model = frame(source)
    for tensor in source.graph.initializer:
        model.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return model


def declare(model: ModelProto) -> None:
    """Before IR version 4 every initializer is an input, too."""
    known = {i.name for i in model.graph.input}
    fresh = [t for t in model.graph.initializer if t.name not in known] if model.ir_version < 4 else []
    model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in fresh)


def tensors_of(proto: ModelProto) -> Iterator[TensorProto]:
    """Every dense tensor that may hold weights: initializers and attributes, subgraphs and functions included."""
    yield from _of_graph(proto.graph)
    yield from _of_nodes(node for function in proto.functions for node in function.node)


def nodes_of(owner: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """The nodes of a graph or a function, and those of their subgraphs."""
    for node in owner.node:
        yield node
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                yield from nodes_of(graph)


def in_node(node: NodeProto) -> Iterator[TensorProto]:
    """The tensors in a node's attributes and subgraphs."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t
        yield from attribute.tensors
        for graph in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
            yield from _of_graph(graph)


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        yield from in_node(node)


def _mapped(tensor: TensorProto, folder: Path | None) -> Array:
    """The bytes of an external tensor as they are in its file: a map, not a copy."""
    info = ExternalDataInfo(tensor)
    bits = PACKED.get(tensor.data_type) or 8 * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    count = -(-math.prod(tensor.dims) * bits // 8)
    length = int(info.length or count)
    if length < count:
        raise ValueError(f"{length} bytes for {count}")
    if not count:
        return np.zeros(0, np.uint8)
    return np.memmap((folder or Path()) / info.location, np.uint8, "r", info.offset or 0, (count,))


def _head(target: TensorProto, like: TensorProto, name: str, dims: Iterable[int]) -> None:
    target.name, target.data_type = name, like.data_type
    if like.HasField("doc_string"):
        target.doc_string = like.doc_string
    target.dims.extend(dims)
    target.metadata_props.extend(like.metadata_props)


def copy_field(target: Any, field: Any, value: Any) -> None:
    """Give a message one field of another, of whichever kind (see `ListFields`)."""
    if field.is_repeated:
        getattr(target, field.name).extend(value)
    elif field.message_type is not None:
        getattr(target, field.name).CopyFrom(value)
    else:
        setattr(target, field.name, value)


def _unreadable(tensor: TensorProto, error: Exception) -> ModelError:
    return ModelError(f"tensor {tensor.name!r}: its data cannot be read ({one_line(error, 200)}); export again")
