"""Weights that the graph computes from weights: standardised or normalised ones, say, become weights.

A normalisation of a filter mixes its input channels, so that nothing could be cut before it; what it makes can be cut
like any weight. Only what is no larger than what it is made of is folded, and nothing that is quantised.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from onnxprune.runtime import session
from onnxprune.tensors import FLOATS, PLAIN, frame, nodes_of, read_tensor

NEVER = frozenset(
    ["Bernoulli", "Dropout", "DequantizeLinear", "DynamicQuantizeLinear", "Multinomial", "QuantizeLinear"]
) | {f"Random{kind}{like}" for kind in ("Normal", "Uniform") for like in ("", "Like")}
SMALLEST = 64  # elements; less is a shape or a scale


class Made(NamedTuple):
    """What a constant value is made of: nodes, constants, and whether any node is more than a change of place."""

    nodes: frozenset[int]
    constants: frozenset[str]
    computed: bool


def folded(proto: ModelProto, folder: Path | None) -> tuple[ModelProto, tuple[str, ...]]:
    """A model in which computed weights are weights, and their names.

    Args:
        proto: the model; not changed.
        folder: where its external data is.
    """
    if proto.ir_version < 4:  # every initializer is an input there, and can be fed
        return proto, ()
    inputs = {i.name for i in proto.graph.input}
    constants = {t.name: t for t in proto.graph.initializer if t.name not in inputs}
    constants |= {n.output[0]: n.attribute[0].t for n in proto.graph.node if _is_constant(n)}
    made = made_of(proto.graph.node, set(constants))
    if not any(m.computed for m in made.values()):
        return proto, ()
    outputs = {o.name for o in proto.graph.output}
    read = dict.fromkeys(name for node in proto.graph.node if not _inside(node, made) for name in node.input)
    wanted = [n for n in read if n in made and made[n].computed and n not in outputs]
    wanted = [n for n in wanted if _sources(made[n], constants) >= SMALLEST]
    values = evaluate(proto, wanted, made, constants, folder)
    readers = _readers(proto)
    kept = {n: t for n, t in values.items() if _fits(t, made[n], constants, readers)}
    # A node goes as a whole: what it makes besides may stay computed.
    whole = {o for node in proto.graph.node if kept.keys() >= {*filter(None, node.output)} for o in node.output}
    kept = {n: t for n, t in kept.items() if n in whole}
    return (_without(proto, kept), tuple(kept)) if kept else (proto, ())


def _is_constant(node: NodeProto) -> bool:
    return node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value"


def made_of(nodes: Iterable[NodeProto], constants: Set[str]) -> dict[str, Made]:
    """Every value that is computed from constants alone, and never by chance."""
    found: dict[str, Made] = {}
    for index, node in enumerate(nodes):
        names = [n for n in node.input if n]
        if not names or node.op_type in NEVER or any(a.HasField("g") or a.graphs for a in node.attribute):
            continue
        if all(n in constants or n in found for n in names):
            parts = [found[n] for n in names if n in found]
            made = Made(
                frozenset({index}).union(*(p.nodes for p in parts)),
                frozenset(n for n in names if n in constants).union(*(p.constants for p in parts)),
                node.op_type not in PLAIN or any(p.computed for p in parts),
            )
            found |= {out: made for out in node.output if out}
    return found


def _inside(node: NodeProto, made: dict[str, Made]) -> bool:
    return any(out in made for out in node.output)


def evaluate(
    proto: ModelProto,
    names: Sequence[str],
    made: Mapping[str, Made],
    constants: Mapping[str, TensorProto],
    folder: Path | None,
) -> dict[str, TensorProto]:
    """Values as tensors, computed by ONNX Runtime; nothing where they cannot be computed.

    Args:
        proto: the model.
        names: the values.
        made: what they, and those that they are made of, are made of.
        constants: the model's.
        folder: where its external data is.
    """
    if not names:
        return {}
    model = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    model.graph.name = "weights"
    indices = sorted(set[int]().union(*(made[n].nodes for n in names)))
    model.graph.node.extend(proto.graph.node[i] for i in indices)
    for name in sorted(set[str]().union(*(made[n].constants for n in names))):
        tensor = constants[name]
        plain = numpy_helper.from_array(read_tensor(tensor, folder), name) if uses_external_data(tensor) else tensor
        model.graph.initializer.add().CopyFrom(plain)
        model.graph.initializer[-1].name = name
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    try:
        arrays = session(model, threads=1, optimize=False, arena=False).run(names, {})
    except Exception:  # ONNX Runtime's errors have no common base
        return {}
    found = zip(names, arrays, strict=True)
    return {n: numpy_helper.from_array(a, n) for n, a in found if isinstance(a, np.ndarray)}


def _sources(made: Made, constants: Mapping[str, TensorProto]) -> int:
    """Elements of the float constants that a value is made of."""
    return sum(math.prod(constants[n].dims) for n in made.constants if constants[n].data_type in FLOATS)


def _fits(tensor: TensorProto, made: Made, constants: dict[str, TensorProto], readers: dict[str, set[int]]) -> bool:
    """Whether a tensor is no larger than the weights that nobody needs once it is stored."""
    ours = Made(made.nodes, frozenset(n for n in made.constants if readers[n] <= made.nodes), made.computed)
    return tensor.data_type in FLOATS and SMALLEST <= math.prod(tensor.dims) <= _sources(ours, constants)


def _readers(proto: ModelProto) -> dict[str, set[int]]:
    """Value -> the nodes that read it, in their subgraphs too."""
    found: dict[str, set[int]] = defaultdict(set)
    for index, node in enumerate(proto.graph.node):
        for name in (*node.input, *_captured(node)):
            found[name].add(index)
    return found


def _without(proto: ModelProto, weights: dict[str, TensorProto]) -> ModelProto:
    """The model with these weights, and without the nodes and constants that nothing needs any more."""
    needed = {o.name for o in proto.graph.output}
    nodes: list[NodeProto] = []
    for node in reversed(proto.graph.node):
        outputs = [o for o in node.output if o]
        if all(o in weights for o in outputs):
            continue
        if any(o in needed for o in outputs) or not outputs:
            nodes.append(node)
            needed |= {*node.input, *_captured(node)}
    before = {o for node in proto.graph.node for o in node.output}
    model = frame(proto)
    model.graph.ClearField("node")
    model.graph.node.extend(reversed(nodes))
    read_before = {n for node in proto.graph.node for n in (*node.input, *_captured(node))}
    model.graph.initializer.extend(t for t in proto.graph.initializer if t.name in needed or t.name not in read_before)
    model.graph.initializer.extend(weights.values())
    there = {o for node in nodes for o in node.output} | {i.name for i in proto.graph.input}
    infos = [v for v in proto.graph.value_info if v.name not in before or v.name in there]
    model.graph.ClearField("value_info")
    model.graph.value_info.extend(infos)
    return model


def _captured(node: NodeProto) -> set[str]:
    """Names that subgraphs read, their own included: too many does no harm."""
    graphs = [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]
    ends = {o.name for graph in graphs for o in graph.output}
    return ends.union(*(inner.input for graph in graphs for inner in nodes_of(graph)))
