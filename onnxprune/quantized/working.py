"""A copy of a model that ONNX Runtime's tools can take: a file, nodes with names of their own, weights in sight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto

from onnxprune.errors import MESSAGE_LIMIT, ModelError, one_line
from onnxprune.graph import Graph, is_big
from onnxprune.tensors import Store, carry, copied, declare
from onnxprune.writing import stream

PLAIN_SIZE = "1024"  # bytes from which a weight goes into the file beside the model


@dataclass(frozen=True, eq=False)
class Working:
    """A model in a file.

    Attributes:
        path: the file; larger weights are beside it.
        names: the name of a node in it -> the user's name.
    """

    path: Path
    names: Mapping[str, str]


def named(graph: Graph) -> dict[str, str]:
    """For every node, in order, a name that no other has -> the user's name: the tools know nodes by nothing else."""
    often = Counter(node.label for node in graph.nodes)
    return {n.label if often[n.label] == 1 else f"{n.label}@{n.index}": n.proto.name for n in graph.nodes}


def working(graph: Graph, folder: Path) -> Working:
    """Write the copy: constants as initializers, and all types and shapes that inference has found."""
    names = named(graph)

    def make(store: Store) -> ModelProto:
        model = copied(graph.proto, graph.folder, store)
        for node, name in zip(model.graph.node, names, strict=True):
            node.name = name
        rest = [node for node in model.graph.node if not _is_constant(node, graph)]
        for value in (node.output[0] for node in model.graph.node if _is_constant(node, graph)):
            carry(model.graph.initializer.add(), graph.constants[value], value, graph.folder, store)
        del model.graph.node[:]
        model.graph.node.extend(rest)
        declare(model)
        infos = {v.name: v for v in (*graph.shell.graph.value_info, *graph.proto.graph.value_info)}
        del model.graph.value_info[:]
        model.graph.value_info.extend(v for name, v in infos.items() if name not in graph.constants)
        return model

    return Working(stream(folder / "working.onnx", make), names)


def _is_constant(node: NodeProto, graph: Graph) -> bool:
    """Whether a node is a constant whose value is a tensor; as an output of the model it stays a node."""
    return node.op_type == "Constant" and node.output[0] in graph.constants and node.output[0] not in graph.outputs


def raised(work: Working, graph: Graph, opset: int) -> Working:
    """The copy in an operator set that has what is needed.

    Raises:
        ModelError: it cannot be converted.
    """
    if graph.opset >= opset:
        return work
    if is_big(graph):
        raise ModelError(
            f"{graph.name}: quantize needs opset {opset}, this is {graph.opset}; export it again with that"
        )
    try:
        model = onnx.version_converter.convert_version(onnx.load(work.path), opset)
    except Exception as error:  # of C++, without a common base
        reason = one_line(error, MESSAGE_LIMIT)
        raise ModelError(
            f"{graph.name}: quantize needs opset {opset} and ONNX cannot convert this model from {graph.opset} "
            f"({reason}); export it again with that opset"
        ) from error
    path = stream(work.path.with_name("raised.onnx"), lambda store: copied(model, None, store))
    return Working(path, work.names)


def prepared(work: Working, name: str) -> Working:
    """The copy after ONNX Runtime's basic optimisations: constants folded, batch norms part of convolutions.

    A BatchNormalization has no integer kernel, and a weight that is computed is no weight for the tools.

    Raises:
        ModelError: ONNX Runtime does not load the model.
    """
    import onnxruntime

    path = work.path.with_name("prepared.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    for key, value in (("file_name", f"{path.name}.data"), ("min_size_in_bytes", PLAIN_SIZE)):
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
    try:
        onnxruntime.InferenceSession(str(work.path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        text = one_line(str(error).replace(str(work.path), name), MESSAGE_LIMIT)
        raise ModelError(f"{name}: ONNX Runtime cannot load it: {text}") from error
    return Working(path, work.names)
