"""Where the channels that a layer makes end up: the way from its result to a value, on which they only move.

Which channel a number of that value is, and so which head and which place in it, takes no rule for each operator: the
way is run on the numbers of the channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from onnxprune.consumers import Consumer
from onnxprune.graph import Graph, Node
from onnxprune.parts import Engine
from onnxprune.runtime import run

Array = NDArray[Any]
Index = NDArray[np.intp]

# Operators whose first input moves, whole or in part; and those that change all numbers of it alike.
MOVES = frozenset({"Expand", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
SCALES = frozenset({"Cast", "Div", "Identity", "Mul"})
SHAPES = frozenset({"Shape", "Size"})  # read no numbers


class Step(NamedTuple):
    """A node on the way, and the input that it moves."""

    node: Node
    moved: str


@dataclass(frozen=True, eq=False)
class Route:
    """The way of a layer's result to a value.

    Attributes:
        layer: where it begins.
        start: the layer's result, with its bias.
        steps: the nodes on the way, and those that lead off it, in the order of the model.
        end: the value.
        strays: values that lie off the way, just beside it; they must have none of its channels.
    """

    layer: Consumer
    start: str
    steps: tuple[Step, ...]
    end: str
    strays: tuple[str, ...]

    @cached_property
    def asks(self) -> tuple[str, ...]:
        """Values of the model without which the way cannot be run: the shape of the start, and sizes on the way."""
        constants = self.layer.coupling.graph.constants
        return (self.start, *(name for name in self._sides() if name not in constants))

    def channels(self, values: Mapping[str, Array], engine: Engine) -> Index | None:
        """The channel of the layer that each number of the value is; None where one of them is also read elsewhere.

        Args:
            values: what `asks` asks for, for a batch.
            engine: where the way is run.
        """
        graph, start = self.layer.coupling.graph, values[self.start]
        shape = [1] * start.ndim
        shape[self.layer.y.axis] = -1
        number = np.arange(start.shape[self.layer.y.axis], dtype=np.float32).reshape(shape)
        feed = {self.start: np.array(np.broadcast_to(number, start.shape))}
        feed |= {n: graph.array(n) if n in graph.constants else values[n] for n in self._sides()}
        made = feed | (run(engine.session(self._model(feed)), feed, [*self._made()]) if self.steps else {})
        found = np.asarray(made[self.end]).astype(np.intp)
        beside = [np.asarray(made[n]).astype(np.intp) for n in self.strays]
        return None if any(np.isin(b, found).any() for b in beside) else found

    def _made(self) -> list[str]:
        """Outputs of the steps."""
        return [name for step in self.steps for name in step.node.outputs if name]

    def _sides(self) -> list[str]:
        """Inputs of the steps that are not moved."""
        others = [n for step in self.steps if step.node.op in MOVES for n in step.node.inputs[1:] if n]
        return list(dict.fromkeys(others))

    def _model(self, feed: Mapping[str, Array]) -> ModelProto:
        """The way alone."""
        given = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feed.items()
        ]
        made = [helper.make_empty_tensor_value_info(n) for n in self._made()]
        proto = self.layer.coupling.graph.proto
        nodes = [_plain(step) for step in self.steps]
        model = helper.make_model(helper.make_graph(nodes, "way", given, made), opset_imports=proto.opset_import)
        model.ir_version = max(4, proto.ir_version)
        return model


def route(graph: Graph, layers: Mapping[str, Consumer], end: str, reader: Node) -> Route | None:
    """The way to a value from the layer that makes its channels; None if something else than moves lies on it.

    Args:
        graph: the model.
        layers: their results -> layers.
        end: the value.
        reader: the one node that may read its numbers.
    """
    on, off, strays = list[Step](), list[Step](), list[str]()
    value, after = end, reader
    while True:
        if value in graph.outputs or value in graph.captured:
            return None
        for user, slot in graph.consumers[value]:
            if user.index == after.index or user.op in SHAPES:
                continue
            if not _moves(graph, user, slot):
                return None
            off.append(Step(user, value))
            strays += filter(None, user.outputs)
        if value in layers:
            steps = {step.node.index: step for step in (*on, *off)}
            return Route(layers[value], value, tuple(steps[i] for i in sorted(steps)), end, tuple(strays))
        maker = graph.producer.get(value)
        moved = [x for s, x in enumerate(maker.inputs[:2]) if _moves(graph, maker, s)] if maker else []
        if maker is None or not moved:
            return None
        strays += [name for name in maker.outputs if name and name != value]
        on.append(Step(maker, moved[0]))
        value, after = moved[0], maker


def results(readers: Iterator[Consumer]) -> dict[str, Consumer]:
    """The value that has all of a layer's result, bias included -> the layer, where both can be set."""
    found = {}
    for layer in readers:
        if layer.groups > 1 or (layer.spec.bias is not None and layer.bias is None):
            continue
        y = layer.node.outputs[0]
        if layer.bias is not None and layer.spec.bias_slot is None:  # a bias that is added after it
            y = layer.coupling.graph.consumers[y][0][0].outputs[0]
        found[y] = layer
    return found


def _moves(graph: Graph, node: Node, slot: int) -> bool:
    """Whether a node only moves the numbers of an input, or changes all alike."""
    if node.domain or slot >= len(node.inputs) or node.inputs[slot] in graph.fixed:
        return False
    if node.op in MOVES or node.op in ("Cast", "Identity"):
        return slot == 0
    if node.op not in SCALES or (node.op == "Div" and slot == 1):
        return False
    other = graph.shapes.get(node.inputs[1 - slot])
    mine = graph.shapes.get(node.inputs[slot])
    return other is not None and mine is not None and len(other) <= len(mine) and _one(other)


def _one(shape: tuple[int | str | None, ...]) -> bool:
    """Whether a shape is that of one number."""
    return all(isinstance(s, int) for s in shape) and prod(s for s in shape if isinstance(s, int)) == 1


def _plain(step: Step) -> NodeProto:
    """The node, without what it does to the size of numbers."""
    if step.node.op in SCALES:
        return helper.make_node("Identity", [step.moved], [step.node.outputs[0]])
    copy = NodeProto()
    copy.CopyFrom(step.node.proto)
    return copy
