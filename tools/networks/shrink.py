"""The smallest graph that still fails: nodes are dropped, bypassed or cut off as long as the failure stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.shapes import shell_of

Fails = Callable[[ModelProto], bool]


def shrink(model: ModelProto, fails: Fails, rounds: int = 8) -> ModelProto:
    """A model that fails, too, and of which no single part can be taken away."""
    for _ in range(rounds):
        before = model
        for ways in (fewer_outputs, earlier_outputs, bypassed, fed, fewer_inputs, plainer):
            model = greedy(model, fails, ways)
        if model is before:
            break
    return model


def greedy(model: ModelProto, fails: Fails, ways: Callable[[ModelProto], Iterator[ModelProto]]) -> ModelProto:
    """Take the first smaller model that fails, and start again from there."""
    found = True
    while found:
        found = False
        for smaller in ways(model):
            swept = sweep(smaller)
            if swept is not None and weight(swept) < weight(model) and fails(swept):
                model, found = swept, True
                break
    return model


def weight(model: ModelProto) -> tuple[int, int, int]:
    """How large a graph is to a reader."""
    graph = model.graph
    slots = sum(bool(name) for node in graph.node for name in node.input)
    return len(graph.node), slots + len(graph.output), sum(len(n.attribute) for n in graph.node) + len(graph.input)


def sweep(model: ModelProto) -> ModelProto | None:
    """Without what no output needs; None where an output is an input."""
    graph, needed, kept = model.graph, {o.name for o in model.graph.output}, []
    if needed & {i.name for i in graph.input} or needed & {t.name for t in graph.initializer}:
        return None
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= {*node.input, *captured(node)}
    made = ModelProto()
    made.CopyFrom(model)
    for field, items in (
        ("node", kept[::-1]),
        ("initializer", [t for t in graph.initializer if t.name in needed]),
        ("input", [i for i in graph.input if i.name in needed]),
        ("value_info", [i for i in graph.value_info if i.name in needed]),
    ):
        made.graph.ClearField(field)
        getattr(made.graph, field).extend(items)
    return made if made.graph.node else None


def captured(node: object) -> Iterator[str]:
    """All names that subgraphs mention."""
    for attribute in node.attribute:  # type: ignore[attr-defined]
        for inner in attribute.g.node:
            yield from inner.input
            yield from captured(inner)


def copied(model: ModelProto) -> ModelProto:
    """A copy to change."""
    made = ModelProto()
    made.CopyFrom(model)
    return made


def infos(model: ModelProto) -> dict[str, ValueInfoProto]:
    """What is known of every value."""
    graph = shell_of(model, {}, "shrunk").graph
    return {i.name: i for i in (*graph.value_info, *graph.input, *graph.output)}


def fewer_outputs(model: ModelProto) -> Iterator[ModelProto]:
    for i in range(len(model.graph.output) if len(model.graph.output) > 1 else 0):
        made = copied(model)
        del made.graph.output[i]
        yield made


def earlier_outputs(model: ModelProto) -> Iterator[ModelProto]:
    """A single output further up."""
    known = infos(model)
    for node in model.graph.node:
        for name in node.output:
            if name in known and known[name].type.tensor_type.elem_type == TensorProto.FLOAT:
                made = copied(model)
                del made.graph.output[:]
                made.graph.output.add().CopyFrom(known[name])
                yield made


def bypassed(model: ModelProto) -> Iterator[ModelProto]:
    """A node's readers read one of its inputs instead, or another value of the same sizes."""
    known = infos(model)
    shapes = {name: (i.type.SerializeToString()) for name, i in known.items()}
    for place, node in enumerate(model.graph.node):
        for out in node.output:
            for name in dict.fromkeys(node.input):
                if out in shapes and shapes.get(name) == shapes[out]:
                    yield renamed(model, place, out, name)


def renamed(model: ModelProto, place: int, old: str, new: str) -> ModelProto:
    """Readers of a value read another."""
    made = copied(model)
    for node in made.graph.node[place:]:
        for slot, name in enumerate(node.input):
            if name == old:
                node.input[slot] = new
    for output in made.graph.output:
        if output.name == old:
            output.name = new
    return made


def fed(model: ModelProto) -> Iterator[ModelProto]:
    """What a node makes is a graph input, or a constant, instead."""
    known = infos(model)
    taken = {o.name for o in model.graph.output}
    for place, node in reversed(list(enumerate(model.graph.node))):
        for out in node.output:
            kind = known[out].type.tensor_type if out in known else None
            if kind is None or not kind.HasField("shape") or kind.elem_type != TensorProto.FLOAT or out in taken:
                continue
            sizes = [d.dim_value for d in kind.shape.dim]
            as_constant = not any(d.dim_param for d in kind.shape.dim) and node.op_type != "Constant"
            new = f"in_{out}"
            made = renamed(model, place + 1, out, new)
            made.graph.input.append(helper.make_value_info(new, known[out].type))
            yield made
            if as_constant:
                made = renamed(model, place + 1, out, new)
                values = np.random.default_rng(len(sizes)).uniform(0.5, 1.5, sizes).astype(np.float32)
                made.graph.initializer.append(numpy_helper.from_array(values, new))
                yield made


def fewer_inputs(model: ModelProto) -> Iterator[ModelProto]:
    """Without an operand that may be left out."""
    for place, node in enumerate(model.graph.node):
        for slot in range(len(node.input) - 1, 0, -1):
            if node.input[slot]:
                made = copied(model)
                if slot == len(node.input) - 1:
                    del made.graph.node[place].input[slot]
                else:
                    made.graph.node[place].input[slot] = ""
                yield made


def plainer(model: ModelProto) -> Iterator[ModelProto]:
    """Without an attribute."""
    for place, node in enumerate(model.graph.node):
        for i in range(len(node.attribute)):
            if node.op_type != "Constant":
                made = copied(model)
                del made.graph.node[place].attribute[i]
                yield made
