"""Which nodes are to have fewer bits, and why others are not."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from onnx import TensorProto

from onnxprune.errors import ModelError, OptionError
from onnxprune.formats import every_node
from onnxprune.graph import Graph, Node
from onnxprune.tensors import tensors_of

QUANTISED = re.compile(r"QLinear|Quantize|QGemm|QAttention|Integer\w*$")
KEPT, LEFT_OUT, UNFIT, SLOW = "kept", "not among ops", "no such kernel", "slow on integers; name it in ops"


@dataclass(frozen=True, eq=False)
class Choice:
    """Nodes of a model with float results, by name.

    Attributes:
        wanted: node -> its operator.
        stays: node -> why it stays as it is.
    """

    wanted: dict[str, str]
    stays: dict[str, str]


def check_float(graph: Graph) -> None:
    """Refuse a model that has fewer bits already.

    Raises:
        ModelError: what it has.
    """
    found = next((n.op_type for n in every_node(graph.proto) if QUANTISED.search(n.op_type)), None)
    if found is not None:
        raise ModelError(f"{graph.name}: is quantized already (it has {found}); quantize the float model")
    kinds = {t.data_type for t in tensors_of(graph.proto)}
    if half := kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        name = TensorProto.DataType.Name(min(half)).lower()
        raise ModelError(f"{graph.name}: has weights in {name} already; quantize the float32 model")


def kept_by(patterns: Sequence[str], graphs: Sequence[Graph]) -> set[str]:
    """Labels of the nodes that a regular expression finds by their own name or by that of what they read or make.

    Args:
        patterns: the regular expressions.
        graphs: one model as it goes from tool to tool.

    Raises:
        OptionError: a pattern that finds none in any.
    """
    found: set[str] = set()
    for pattern in patterns:
        search = re.compile(pattern).search
        hit = {n.label for g in graphs for n in g.nodes if any(map(search, (n.label, *n.inputs, *n.outputs)))}
        if not hit:
            raise OptionError(f"quantize: keep = {pattern!r} matches no node and no tensor; see `onnxprune inspect`")
        found |= hit
    return found


def choose(
    graph: Graph,
    name: str,
    keep: Mapping[str, str],
    ops: Collection[str],
    fit: Collection[str],
    slow: Collection[str] = (),
) -> Choice:
    """Nodes that are to change and nodes that are not.

    Args:
        graph: the model as the tools will see it.
        name: what messages call it.
        keep: label of a node that stays -> why.
        ops: operator types that may change; none: all.
        fit: those that can.
        slow: those that do only where `ops` has them.

    Raises:
        ModelError: nothing is left to change.
    """
    wanted: dict[str, str] = {}
    stays: dict[str, str] = {}
    kinds = {
        v.name: v.type.tensor_type.elem_type
        for v in (*graph.shell.graph.value_info, *graph.shell.graph.output)
        if v.type.HasField("tensor_type")
    }
    for node in graph.nodes:
        if kinds.get(node.outputs[0], TensorProto.FLOAT) != TensorProto.FLOAT:
            continue
        reason = _reason(node, keep, ops, fit, slow)
        if reason is None:
            wanted[node.label] = node.op
        else:
            stays[node.label] = reason
    if not wanted:
        reasons = ", ".join(sorted(set(stays.values()))) or "no node computes with floats"
        raise ModelError(f"{name}: quantize finds nothing to do ({reasons}); change its ops or keep, or leave it out")
    return Choice(wanted, stays)


def _reason(
    node: Node, keep: Mapping[str, str], ops: Collection[str], fit: Collection[str], slow: Collection[str]
) -> str | None:
    if node.label in keep:
        return keep[node.label]
    if node.op not in fit or node.domain not in ("", "com.microsoft"):
        return UNFIT
    if not ops:
        return SLOW if node.op in slow else None
    return None if node.op in ops else LEFT_OUT
