"""Read and write `.onnx` files, and look at a model as nodes, values, shapes and constants.

A `Graph` is a read-only view of a `ModelProto`. Weights stay where they are (in the proto, in an external data file, or
in the file of a large model) and become arrays only when somebody asks for one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxprune.folding import folded
from onnxprune.inlining import inlined
from onnxprune.opening import check, read_model
from onnxprune.shapes import Shape, shapes_of, shell_of
from onnxprune.sparse import densified
from onnxprune.stamps import Stamp, stamp
from onnxprune.tensors import read_tensor, tensors_of

# Arrays up to this many elements are kept once read: shape constants, biases, quantisation scales.
SMALL = 4096
PROTOBUF_LIMIT = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Node:
    """One node of the main graph. `captures` are the outer values that its subgraphs read."""

    index: int
    proto: NodeProto
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captures: tuple[str, ...] = ()

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """Attribute name -> Python value (bytes are decoded)."""
        return {a.name: _attribute(a) for a in self.proto.attribute}

    @property
    def label(self) -> str:
        """What a person finds in a viewer: the node's name, or else its first output's."""
        return self.proto.name or next(filter(None, self.outputs), self.op)


@dataclass(eq=False)
class Graph:
    """A model as nodes, values and constants. Build one with `load`; never changed afterwards."""

    proto: ModelProto
    shell: ModelProto  # the same without weights, with inferred shapes
    path: Path | None
    nodes: list[Node]
    constants: dict[str, TensorProto]
    shapes: Mapping[str, Shape]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    filled: Mapping[str, TensorProto] = field(default_factory=dict)  # weights that are one number: no data of their own
    folded: tuple[str, ...] = ()  # weights that the graph computed from weights
    inlined: tuple[str, ...] = ()  # the local functions that were written out where they were called
    called: str = ""  # in messages; "": by its path
    owned: object = None  # what its file needs to stay there
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)  # of its files, by absolute paths
    _small: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """How messages call this model."""
        return self.called or (str(self.path) if self.path else "the model")

    @property
    def folder(self) -> Path | None:
        """Where external data are."""
        return self.path.parent if self.path else None

    @cached_property
    def opset(self) -> int:
        """Version of the default operator set."""
        return max((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), default=1)

    @cached_property
    def producer(self) -> dict[str, Node]:
        """Value -> the node that computes it."""
        return {value: node for node in self.nodes for value in node.outputs if value}

    @cached_property
    def consumers(self) -> dict[str, list[tuple[Node, int]]]:
        """Value -> the (node, input slot) pairs that read it."""
        users: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for slot, value in enumerate(node.inputs):
                if value:
                    users.setdefault(value, []).append((node, slot))
        return users

    @cached_property
    def captured(self) -> frozenset[str]:
        """Values that some subgraph reads from the outer scope."""
        return frozenset(value for node in self.nodes for value in node.captures)

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Values that are constants, or made of constants alone."""
        found = set(self.constants)
        for node in self.nodes:
            if node.inputs and not node.captures and all(name in found for name in node.inputs if name):
                found.update(node.outputs)
        return frozenset(found)

    @cached_property
    def types(self) -> Mapping[str, int]:
        """Value -> the type of its elements (as in TensorProto), where it is known."""
        graph = self.shell.graph
        infos = {i.name: i.type.tensor_type.elem_type for i in (*graph.value_info, *graph.input, *graph.output)}
        return {name: t for name, t in infos.items() if t} | {n: t.data_type for n, t in self.constants.items()}

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """The value of a constant, read-only; a memory map where the data is external.

        Raises:
            ModelError: the data cannot be read.
        """
        if name in self._small:
            return self._small[name]
        if name in self.filled:
            return np.broadcast_to(
                numpy_helper.to_array(self.filled[name]).reshape(()), tuple(self.constants[name].dims)
            )
        array = read_tensor(self.constants[name], self.folder)
        if array.size <= SMALL:
            self._small[name] = array
        return array

    def size(self, name: str) -> int:
        """Number of elements of a constant."""
        return math.prod(self.constants[name].dims)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The constants that count as parameters: all but the integers that carry shapes and indices."""
        return tuple(n for n, t in self.constants.items() if t.data_type not in NOT_PARAMETERS)


NOT_PARAMETERS = frozenset({TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING, TensorProto.UNDEFINED})


def load(
    model: str | os.PathLike[str] | ModelProto,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    called: str = "",
) -> Graph:
    """Read a model and infer every shape that can be known.

    Sparse tensors become dense, local functions that nodes call are written out, and weights that are computed from
    weights are folded.

    Args:
        model: a path to an `.onnx` file, or a model in memory (it is not changed).
        shapes: input or inner value -> shape, where the model leaves it open.
        called: how messages call it, where its path says nothing to the user.

    Raises:
        ModelError: not a readable ONNX model, or its external data is missing, cut off or outside its folder.
        ShapeError: `shapes` names a value that does not exist or contradicts the model.
    """
    if isinstance(model, Graph):
        raise TypeError("load() takes a path or a ModelProto")
    path = None if isinstance(model, ModelProto) else Path(model)
    stamps = {} if path is None else {path.absolute(): stamp(path)}  # before it is read
    proto = model if isinstance(model, ModelProto) else read_model(Path(model))
    name = called or (str(path) if path else "the model")
    check(proto, path, name)
    folder = path.parent if path else None
    proto, functions = inlined(densified(proto, folder))
    proto, weights = folded(proto, folder)
    constants = {t.name: t for t in proto.graph.initializer}
    constants |= {n.output[0]: t for n in proto.graph.node if (t := _constant_node(n)) is not None}
    filled = _filled(proto, constants)
    constants |= {n: TensorProto(name=n, data_type=v.data_type, dims=dims) for n, (v, dims) in filled.items()}
    nodes = [_node(i, n) for i, n in enumerate(proto.graph.node)]
    shell = shell_of(proto, shapes or {}, name)
    stamps |= {file.absolute(): stamp(file) for file in _data_files(proto, path)}
    return Graph(
        proto=proto,
        shell=shell,
        path=path,
        nodes=nodes,
        constants=constants,
        shapes={**shapes_of(shell), **{n: tuple(t.dims) for n, t in constants.items()}},
        inputs=tuple(i.name for i in proto.graph.input if i.name not in constants),
        outputs=tuple(o.name for o in proto.graph.output),
        inlined=functions,
        called=called,
        folded=weights,
        filled={n: v for n, (v, _) in filled.items()},
        stamps=stamps,
    )


def is_external(graph: Graph) -> bool:
    """Whether weights are in files, the model's own or others, and not in its message."""
    return any(uses_external_data(t) for t in tensors_of(graph.proto))


def is_big(graph: Graph) -> bool:
    """Whether the model is too big for one message: it can only go from file to file, tensor by tensor."""
    return is_external(graph) and file_bytes(graph) > PROTOBUF_LIMIT


def file_bytes(graph: Graph) -> int:
    """Size in bytes of the model with its external data."""
    if graph.path is None:
        return int(graph.proto.ByteSize())
    return sum(p.stat().st_size for p in {graph.path, *data_files(graph)})


def data_files(graph: Graph) -> set[Path]:
    """The files in which a model keeps weights outside its own."""
    return _data_files(graph.proto, graph.path)


def _data_files(proto: ModelProto, path: Path | None) -> set[Path]:
    folder = path.parent if path else Path()
    found = {folder / ExternalDataInfo(t).location for t in tensors_of(proto) if uses_external_data(t)}
    return {file for file in found if file != path}


# Operators whose further inputs are weights.
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})


def _filled(proto: ModelProto, constants: Mapping[str, TensorProto]) -> dict[str, tuple[TensorProto, list[int]]]:
    """Weights that ConstantOfShape makes, as models have them that come without their weights: value and dims."""
    read = {name for n in proto.graph.node if n.op_type in _WEIGHTED for name in n.input[1:]}
    found: dict[str, tuple[TensorProto, list[int]]] = {}
    for node in proto.graph.node:
        if node.op_type != "ConstantOfShape" or node.domain or node.output[0] not in read:
            continue
        shape = constants.get(node.input[0])
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if shape is not None and value is not None and not uses_external_data(shape):
            found[node.output[0]] = (value, [int(d) for d in numpy_helper.to_array(shape)])
    return found


def _constant_node(node: NodeProto) -> TensorProto | None:
    """The tensor that a `Constant` node holds, whichever of its attributes it uses."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor: TensorProto = attribute.t
        return tensor
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if attribute.name not in kinds:
        return None
    value = np.array(helper.get_attribute_value(attribute), dtype=kinds[attribute.name])
    return numpy_helper.from_array(value, node.output[0])


def _node(index: int, proto: NodeProto) -> Node:
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    captures: set[str] = set()
    for attribute in proto.attribute:
        for graph in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
            captures |= _free_names(graph)
    return Node(index, proto, proto.op_type, domain, tuple(proto.input), tuple(proto.output), tuple(sorted(captures)))


def _free_names(graph: GraphProto) -> set[str]:
    """Names that a subgraph reads but does not define."""
    defined = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    defined |= {name for node in graph.node for name in node.output}
    used = {o.name for o in graph.output}
    for node in graph.node:
        used |= set(node.input)
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                used |= _free_names(inner)
    return {name for name in used - defined if name}


def _attribute(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return value.decode(errors="replace") if isinstance(value, bytes) else value
