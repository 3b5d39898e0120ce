"""What of a model's answers is compared: the outputs, or the numbers that they are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from onnxprune.errors import DataError, one_of
from onnxprune.graph import Graph, Node
from onnxprune.picks import in_front, picked

KINDS = ("auto", "logits", "vectors", "boxes", "values")
FEATURES = 3  # of a vector, at least: fewer are measures of their own
SOFT = frozenset({"Softmax", "LogSoftmax"})
CHOICES = frozenset({"ArgMax", "Hardmax"})  # what an answer may have gone through after its logits
BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Clip"})  # what each of its numbers is says something
PLAIN = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"})


@dataclass(frozen=True)
class Target:
    """A value that is compared. `axis`: of the classes, the features or the anchors' features."""

    value: str
    kind: str
    axis: int


def targets(graph: Graph, kind: str = "auto", met: Mapping[str, tuple[int, ...]] | None = None) -> tuple[Target, ...]:
    """The values that are compared: the outputs, or the numbers that they are made from.

    Args:
        graph: the model.
        kind: "auto", or one of `KINDS` for all outputs.
        met: the shapes that values had in a run, for those of which the model tells not even the rank.

    Raises:
        OptionError: there is no such kind.
        DataError: no output is made from numbers that could be compared.
    """
    one_of("--distance", kind, KINDS)
    weighted = _weighted(graph)
    found: dict[str, Target] = {}
    chosen = picked(graph, weighted)
    nearest = [n for output in graph.outputs for n in in_front(graph, output, chosen, weighted)]
    for value in dict.fromkeys(nearest):
        for name, soft in _sources(graph, value):
            if name not in weighted:
                continue
            shape = graph.shapes.get(name) or (met or {}).get(name) or ()
            rank = len(shape)
            if soft is not None and kind in ("auto", "logits"):
                axis = int(soft.attrs.get("axis", -1 if graph.opset >= 13 or soft.op == "ArgMax" else 1))
                axis = 0 if soft.op == "ArgMax" and "axis" not in soft.attrs else axis
                found[name] = Target(name, "logits", axis % max(rank, 1))
            else:
                maker = graph.producer.get(name)
                free = maker is None or maker.op not in BOUNDED
                direction = free and rank == 2 and isinstance(shape[1], int) and shape[1] >= FEATURES
                made = kind if kind != "auto" else "vectors" if direction else "values"
                found[name] = Target(name, made, _features(shape))
    if not found:
        raise DataError(
            f"{graph.name}: no output is made from numbers to compare; prune without: --criterion l2 --recover none"
        )
    return tuple(found.values())


def _features(shape: Sequence[Any]) -> int:
    """The axis of the features: the last, of maps that behind the samples; but not one whose size is open."""
    usual, other = (1, -1) if len(shape) > 3 else (-1, 1)
    open_sizes = [not isinstance(size, int) for size in shape]
    axis = other if len(shape) > 2 and open_sizes[usual] and not open_sizes[other] else usual
    return axis % max(len(shape), 1)


def _sources(graph: Graph, output: str) -> Iterable[tuple[str, Node | None]]:
    """The numbers that an output is made from, each with the Softmax or ArgMax that reads them."""
    name, chooser = output, None
    while (node := graph.producer.get(name)) is not None and not node.domain:
        if node.op in SOFT:
            return [(node.inputs[0], node)]
        if node.op in CHOICES:
            chooser = node if node.op == "ArgMax" else chooser
        elif node.op not in PLAIN:
            break
        name = node.inputs[0]
    if chooser is not None:
        return [(name, chooser)]
    return [(output, None)] if _is_float(graph, output) else [(n, None) for n in _floats_behind(graph, output)]


def _floats_behind(graph: Graph, name: str) -> list[str]:
    """The nearest float values from which an integer value is computed."""
    queue, seen, found = [name], {name}, list[str]()
    for value in queue:
        node = graph.producer.get(value)
        for source in () if node is None else node.inputs:
            if source and source not in seen and source not in graph.fixed:
                seen.add(source)
                (found if _is_float(graph, source) else queue).append(source)
    return found


def _is_float(graph: Graph, name: str) -> bool:
    infos = (*graph.shell.graph.output, *graph.shell.graph.value_info, *graph.shell.graph.input)
    kind = next((i.type.tensor_type.elem_type for i in infos if i.name == name), TensorProto.FLOAT)
    return kind in _FLOAT_TYPES


_FLOAT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})


def _weighted(graph: Graph) -> frozenset[str]:
    """Values that depend on inputs and on weights."""
    found: set[str] = set()
    parameters = set(graph.parameters)
    fixed_by_weights: set[str] = set(parameters)
    for node in graph.nodes:
        if node.op in ("Shape", "Size") and not node.domain:  # weights have no say in it
            continue
        reads = (*node.inputs, *node.captures)
        if any(n in fixed_by_weights for n in reads) or node.captures:
            fixed_by_weights.update(node.outputs)
        if any(n in fixed_by_weights for n in reads):
            found.update(n for n in node.outputs if n not in graph.fixed)
    return frozenset(found)
