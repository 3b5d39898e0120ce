"""Shapes that ONNX's inference does not find by itself, with the help of the traced numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.graph import Graph, Node
from onnxprune.shapeflow import Numbers, ShapeFlow, SizeOf
from onnxprune.shapes import Shape, infer, shapes_of
from onnxprune.symbolic import infer_symbolically


def resolve(graph: Graph) -> tuple[Graph, ShapeFlow]:
    """Infer again with what the traced numbers tell, until nothing new is known.

    ONNX's data propagation stops at divisions and at a Reshape whose target is known in part: a computed but known
    shape input is put in as a constant, a Reshape's output gets the sizes that are known. A chain of chunks needs one
    round each.
    """
    memo: dict[Any, Any] = {}
    flow, done = ShapeFlow(graph, memo), set[tuple[int, int]]()
    shell: ModelProto | None = None
    declared = set[tuple[int, Numbers]]()
    tried = False
    while True:
        fresh = [(n, s, v) for n, s, v in flow.computed() if (n.index, s) not in done and _open(graph, n)]
        partly = [
            (n, v)
            for n in graph.nodes
            if n.op == "Reshape"
            and not n.domain
            and _open(graph, n)
            and (v := flow.numbers(n, 1)) is not None
            and (n.index, v) not in declared
        ]
        if not fresh and not partly and not tried and _needs_symbolic(graph):
            tried = True
            graph = replace(graph, shapes={**shapes_of(infer_symbolically(graph.shell)), **_known_shapes(graph)})
            flow = ShapeFlow(graph, memo)
            continue
        if not fresh and not partly:
            return graph, flow
        if shell is None:
            shell = ModelProto()
            shell.CopyFrom(graph.shell)
        for node, slot, numbers in fresh:
            done.add((node.index, slot))
            name = f"{node.inputs[slot]}/{node.index}:{slot}"
            value = np.array([n.value for n in numbers], dtype=np.int64)
            shell.graph.initializer.append(numpy_helper.from_array(value, name))
            shell.graph.node[node.index].input[slot] = name
        known = {v.name: v for v in (*shell.graph.value_info, *shell.graph.output)}
        for node, numbers in partly:
            declared.add((node.index, numbers))
            _declare(shell, known, graph, node, numbers)
        shell = infer(shell)
        graph = replace(graph, shell=shell, shapes={**graph.shapes, **shapes_of(shell)})
        flow = ShapeFlow(graph, memo)


def _declare(shell: ModelProto, known: dict[str, ValueInfoProto], graph: Graph, node: Node, numbers: Numbers) -> None:
    """Write down what is known of a Reshape's output."""
    source = graph.shapes.get(node.inputs[0]) or ()
    sizes: list[int | str | None] = []
    for axis, number in enumerate(numbers):
        if number.value == 0 and not node.attrs.get("allowzero", 0):
            sizes.append(source[axis] if axis < len(source) else None)
        elif number.value is not None:
            sizes.append(int(number.value) if number.value > 0 else None)
        elif isinstance(number.source, SizeOf):
            sizes.append((graph.shapes.get(number.source.value) or {number.source.axis: None})[number.source.axis])
        else:
            sizes.append(None)
    rest = [axis for axis, number in enumerate(numbers) if number.value == -1]
    if len(rest) == 1:
        sizes[rest[0]] = _rest(source, [s for axis, s in enumerate(sizes) if axis not in rest])
    have = graph.shapes.get(node.outputs[0])
    if have is not None and len(have) == len(sizes):
        sizes = [h if isinstance(h, int) or s is None else s for h, s in zip(have, sizes, strict=True)]
    info = known.get(node.outputs[0])
    if info is None:
        source_info = known.get(node.inputs[0])
        elem = source_info.type.tensor_type.elem_type if source_info else TensorProto.FLOAT
        shell.graph.value_info.append(helper.make_tensor_value_info(node.outputs[0], elem, sizes))
    else:
        info.CopyFrom(helper.make_tensor_value_info(info.name, info.type.tensor_type.elem_type, sizes))


def _rest(source: Sequence[int | str | None], others: Sequence[int | str | None]) -> int | None:
    """What a -1 stands for: all elements over the other sizes, where the open sizes are the same on both sides."""
    if None in (*source, *others):
        return None
    if sorted(s for s in source if isinstance(s, str)) != sorted(s for s in others if isinstance(s, str)):
        return None
    total, part = (math.prod(s for s in sizes if isinstance(s, int)) for sizes in (source, others))
    return total // part if part and total % part == 0 else None


def _needs_symbolic(graph: Graph) -> bool:
    """Whether ONNX Runtime's own operators hide shapes that ONNX's inference cannot know."""
    known = graph.shapes
    return any(n.domain == "com.microsoft" and known.get(o) is None for n in graph.nodes for o in n.outputs if o)


def _known_shapes(graph: Graph) -> dict[str, Shape]:
    return {name: shape for name, shape in graph.shapes.items() if shape is not None and None not in shape}


def _open(graph: Graph, node: Node) -> bool:
    shape = graph.shapes.get(node.outputs[0])
    return shape is None or any(not isinstance(size, int) for size in shape)
