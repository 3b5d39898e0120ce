"""Opening a model's file: what is no model, or a broken one, says so in one line before anybody works with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxprune.errors import ModelError, one_line
from onnxprune.tensors import nodes_of, tensors_of
from onnxprune.wire import without_large

MAPPED = 1 << 26  # bytes of a file whose large weights stay in it


def read_model(path: Path) -> ModelProto:
    """The model in a file, without its external data; of a large file, without its large weights, which it points to.

    Raises:
        ModelError: there is no such file, or no model in it.
    """
    try:
        if path.stat().st_size >= MAPPED:
            return without_large(path)
        return onnx.load_model(path, format="protobuf", load_external_data=False)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({one_line(error, 200)})") from error
    except (DecodeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: not an ONNX model, or a truncated one; export or copy it again") from error


def check(proto: ModelProto, path: Path | None, name: str) -> None:
    """Refuse what is broken.

    Args:
        proto: the model.
        path: its file, if it has one.
        name: what messages call it.

    Raises:
        ModelError: not an ONNX model, or its external data is missing, cut off or outside its folder.
    """
    if not proto.HasField("graph") or not proto.graph.node:
        raise ModelError(f"{name}: not an ONNX model, or one without nodes; export the model again")
    if not proto.opset_import and proto.ir_version >= 3:
        raise ModelError(f"{name}: says no operator set, so it is cut off or broken; copy or export it again")
    if any(isinstance(text, bytes) for text in _texts(proto)):
        raise ModelError(f"{name}: has names that are not text, so it is broken; copy or export it again")
    _check_external(proto, path, name)


def _texts(proto: ModelProto) -> Iterator[str | bytes]:
    """Every string by which nodes and values are known; protobuf hands out broken UTF-8 as bytes."""
    yield from (proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
    for function in proto.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
        yield from (text for node in nodes_of(function) for text in _node_texts(node))
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        yield from (graph.name, graph.doc_string)
        for node in graph.node:
            yield from _node_texts(node)
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for named in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            yield from (named.name, named.doc_string)
        for info in (*graph.input, *graph.output, *graph.value_info):
            yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim)


def _node_texts(node: NodeProto) -> Iterator[str | bytes]:
    yield from (node.name, node.op_type, node.domain, node.doc_string, *node.input, *node.output)
    yield from (attribute.name for attribute in node.attribute)


def _check_external(proto: ModelProto, path: Path | None, name: str) -> None:
    folder = (path.parent if path else Path()).resolve()
    for tensor in tensors_of(proto):
        if not uses_external_data(tensor):
            continue
        if path is None:
            raise ModelError(f"tensor {tensor.name!r} is in an external file; pass the model's path, or load its data")
        try:
            info = ExternalDataInfo(tensor)
        except ValueError as error:
            raise ModelError(
                f"{name}: tensor {tensor.name!r}: {one_line(error, 200)}; export the model again"
            ) from error
        if path.name == info.location:  # itself, wherever a link to it leads
            continue
        where = (folder / info.location).resolve()
        if not where.is_relative_to(folder) or not info.location:
            raise ModelError(
                f"{name}: tensor {tensor.name!r} points outside the model's folder ({info.location!r}); refused"
            )
        if not where.is_file():
            raise ModelError(f"{name}: external data {info.location!r} of tensor {tensor.name!r} is missing")
        end = (info.offset or 0) + (info.length or 0)
        if where.stat().st_size < end:
            raise ModelError(f"{name}: external data {info.location!r} is cut off; copy it again")
