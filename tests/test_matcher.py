"""Expressions in graphs."""

import pytest

from onnxprune import load
from onnxprune.matcher import find
from onnxprune.testing import Builder


def test_any_order_and_the_same_value() -> None:
    b = Builder()
    x, z = b.input("x", 2, 8), b.input("z", 2, 8)
    gate = b.op("Sigmoid", x)
    graph = load(b.model(b.op("Mul", gate, x, name="own"), b.op("Mul", b.op("Sigmoid", z), x, name="other")))
    pattern = ("Mul", "a", ("Sigmoid", "a"))
    found = find(graph, graph.producer["own"], pattern)
    assert found is not None and found.values == {"a": "x"} and len(found.nodes) == 2
    assert find(graph, graph.producer["other"], pattern) is None
    assert find(graph, graph.producer["other"], ("Mul", "a", ("Sigmoid", "b"))) is not None


@pytest.mark.parametrize(("number", "there"), [(0.5, True), (0.5001, False)])
def test_numbers(number: float, there: bool) -> None:
    b = Builder()
    graph = load(b.model(b.op("Add", 0.5, b.input("x", 2, 8), name="y")))
    assert (find(graph, graph.producer["y"], ("Add", "x", number)) is not None) == there


def test_bounds_and_axes_of_old_opsets_and_defaults() -> None:
    b = Builder(10)
    x = b.op("ReduceMean", b.op("Clip", b.input("x", 2, 8), min=0.0, max=6.0), axes=[-1], name="y")
    graph = load(b.model(x))
    inner = ("Clip", "x", 0.0, 6.0)
    assert find(graph, graph.producer["y"], ("ReduceMean", inner, -1.0, (("keepdims", 1),))) is not None
    assert find(graph, graph.producer["y"], ("ReduceMean", inner, -1.0, (("keepdims", 0),))) is None
