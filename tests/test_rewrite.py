"""Nodes taken out, put in and wired anew."""

import numpy as np
from onnx import TensorProto, helper

from onnxprune import load
from onnxprune.rewrite import Fresh, Rewrite, names_of, rewritten, unique
from onnxprune.testing import Builder, arrays


def test_what_becomes_unread_goes_and_what_was_unread_stays() -> None:
    b = Builder()
    x = b.input("x", 2, 8)
    y = b.op("Add", b.op("Mul", x, b.near_one(8, name="scale")), b.weight(8, name="shift"))
    b.const(np.zeros(3, np.float32), "unread")
    graph = load(b.model(y))
    node = helper.make_node("Add", [x, "shift"], [y])
    change = Rewrite({1: [node]}, {"shift": Fresh(TensorProto.FLOAT, lambda: np.ones(8, np.float32))})
    made = rewritten(graph, change)
    assert [n.op_type for n in made.graph.node] == ["Add"]
    assert {name: float(a.sum()) for name, a in arrays(made).items()} == {"shift": 8, "unread": 0}
    assert "unread" not in arrays(rewritten(graph, change, sweep=True))
    assert len(graph.proto.graph.node) == 2  # the model that it was given is as it was


def test_nothing_changes() -> None:
    b = Builder()
    model = b.model(b.op("Relu", b.conv(b.input("x", 2, 3, 6, 6), 8)))
    assert Rewrite().empty and rewritten(load(model), Rewrite()) == model


def test_names() -> None:
    b = Builder()
    y = b.op("Relu", b.op("Identity", b.input("x", 2, 8), name="same"), name="y")
    graph = load(b.model(y))
    made = rewritten(graph, Rewrite({0: []}, {}, {"same": "x"}))
    assert list(made.graph.node[0].input) == ["x"]
    taken = names_of(graph)
    assert [unique("y", taken), unique("y", taken), unique("new", taken)] == ["y_1", "y_2", "new"]
