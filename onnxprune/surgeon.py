"""`ModelProto` <-> `onnx_graphsurgeon.Graph` without loss: for passes that rewire a graph instead of shrinking tensors.

Graph-surgeon's own round trip drops what its classes have no field for: doc strings, metadata, function and opset
order, quantisation annotations, the order of value infos, attributes of rarer types. Whatever an edit left alone is
therefore taken from the model that the graph came from; what "left alone" means is decided by comparing with an
unedited round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from onnxprune.errors import ModelError, one_line
from onnxprune.tensors import copy_field, hollow

Proto = TypeVar("Proto", NodeProto, ValueInfoProto, TensorProto)


def to_graphsurgeon(model: ModelProto) -> gs.Graph:
    """The model as a graph to edit; weights are copied once and become arrays only when somebody asks for them.

    Args:
        model: with its weights in memory (`onnx.load` reads external ones too).

    Raises:
        ModelError: graph-surgeon cannot read it.
    """
    copy = ModelProto()
    copy.CopyFrom(model)  # graph-surgeon writes names into the tensors that it is given
    try:
        return gs.import_onnx(copy)
    except Exception as error:
        raise ModelError(f"the model cannot be read as a graph to edit: {one_line(error, 200)}") from error


def from_graphsurgeon(graph: gs.Graph, like: ModelProto) -> ModelProto:
    """The edited graph as a model; all that the edit left alone is as in `like`, the model that the graph came from.

    Raises:
        ModelError: graph-surgeon cannot write the graph.
    """
    try:
        made = gs.export_onnx(graph, do_type_check=False)
    except Exception as error:
        raise ModelError(f"the edited graph cannot be written as a model: {one_line(error, 200)}") from error
    plain = gs.export_onnx(to_graphsurgeon(hollow(like)), do_type_check=False)
    model = ModelProto()
    for field, value in like.ListFields():
        if field.name not in ("graph", "functions", "opset_import"):
            copy_field(model, field, value)
    model.functions.extend(like.functions if list(made.functions) == list(plain.functions) else made.functions)
    model.opset_import.extend(like.opset_import)
    known = {o.domain for o in like.opset_import} | {"", "ai.onnx"}
    model.opset_import.extend(o for o in made.opset_import if o.domain not in known)

    source, target = like.graph, model.graph
    for field, value in source.ListFields():
        if field.name not in ("node", "input", "output", "value_info", "initializer"):
            copy_field(target, field, value)
    target.node.extend(_nodes(made.graph.node, plain.graph.node, source.node))
    unread = {t.name for t in source.initializer} - {t.name for t in plain.graph.initializer}
    target.initializer.extend(_initializers(made.graph.initializer, source.initializer, unread))
    weights = {t.name for t in target.initializer}
    inputs = {v.name: v for v in _named(made.graph.input, plain.graph.input, source.input)}
    # An initializer that is also an input is one of both only here.
    target.input.extend(inputs.get(v.name, v) for v in source.input if v.name in weights or v.name in inputs)
    target.input.extend(v for v in inputs.values() if v.name not in {i.name for i in source.input})
    target.output.extend(_named(made.graph.output, plain.graph.output, source.output))
    # Graph-surgeon writes value infos for whatever has a type: keep the original's selection, and what is new.
    gone = {v for n in source.node for v in n.output} - {v for n in target.node for v in n.output}
    declared = {v.name for v in source.value_info}
    before = {v.name for v in plain.graph.value_info}
    selected = [v for v in made.graph.value_info if v.name in declared or v.name not in before]
    infos = {v.name: v for v in _named(selected, plain.graph.value_info, source.value_info)}
    order = [v.name for v in source.value_info] + [v.name for v in selected if v.name not in declared]
    kept = {v.name: v for v in source.value_info} | infos
    target.value_info.extend(kept[name] for name in order if name in infos or name not in gone)
    return model


def _nodes(made: Iterable[NodeProto], plain: Iterable[NodeProto], source: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Original nodes where the edit did not touch them; edited ones with the notes of the original."""
    originals = {tuple(n.output): n for n in source}
    untouched = {tuple(n.output): n for n in plain}
    for node in made:
        key = tuple(node.output)
        original = originals.get(key)
        if original is None or original.op_type != node.op_type:
            yield node
        elif untouched.get(key) == node:
            yield original
        else:
            node.doc_string, node.overload = original.doc_string, original.overload
            node.metadata_props.extend(original.metadata_props)
            yield node


def _named(
    made: Iterable[ValueInfoProto], plain: Iterable[ValueInfoProto], source: Iterable[ValueInfoProto]
) -> Iterator[ValueInfoProto]:
    originals = {v.name: v for v in source}
    untouched = {v.name: v for v in plain}
    for info in made:
        same = untouched.get(info.name) == info
        yield originals[info.name] if same and info.name in originals else info


def _initializers(
    made: Iterable[TensorProto], source: Iterable[TensorProto], unread: set[str]
) -> Iterator[TensorProto]:
    """In the original's order; those that nothing reads are dropped by graph-surgeon, not by an edit."""
    edited = {t.name: t for t in made}
    for tensor in source:
        if tensor.name in edited:
            yield edited.pop(tensor.name)
        elif tensor.name in unread:
            yield tensor
    yield from edited.values()
