"""Ways from layers to values."""

import numpy as np
import pytest

from onnxprune.consumers import consumers
from onnxprune.coupling import couple
from onnxprune.graph import load
from onnxprune.parts import Engine
from onnxprune.routes import Route, results, route
from onnxprune.testing import Builder


def way(b: Builder, y: str) -> Route | None:
    """The way to what is squared."""
    graph = load(b.model(b.op("MatMul", y, b.op("Transpose", b.op("Exp", b.input("k", *b.shape(y))), perm=[0, 2, 1]))))
    coupling = couple(graph)
    return route(
        coupling.graph,
        results(consumers(coupling)),
        y,
        next(n for n in graph.nodes if n.op == "MatMul" and y in n.inputs),
    )


def layer(b: Builder) -> str:
    """[2, 5, 12] with a bias, in which tokens count from 0."""
    y = b.op("MatMul", b.input("x", 2, 5, 3), b.weight(3, 12, name="w"))
    return b.op("Add", y, b.weight(12, name="bias"))


def values(found: Route) -> dict[str, np.ndarray]:
    return {name: np.zeros((2, 5, 12), np.float32) for name in found.asks}


def test_channels_are_where_moves_bring_them() -> None:
    b = Builder()
    y = b.op("Slice", layer(b), np.array([8]), np.array([0]), np.array([2]), np.array([-1]))  # channels 8, 7 ... 1
    y = b.op("Reshape", b.op("Div", y, np.float32(3)), [10, 2, 4])
    found = way(b, b.op("Transpose", y, perm=[0, 2, 1]))
    assert found is not None and found.layer.constant == "w"
    channels = found.channels(values(found), Engine(threads=1))
    assert channels is not None and channels.shape == (10, 4, 2)
    for sample in channels:
        np.testing.assert_array_equal(sample, [[8, 4], [7, 3], [6, 2], [5, 1]])


@pytest.mark.parametrize("twice", [False, True])
def test_channels_that_are_read_beside_the_way(twice: bool) -> None:
    """A part that others read is their own; what both read is not to be changed for one."""
    b = Builder()
    y = layer(b)
    rest = b.op("Slice", y, np.array([3 if twice else 4]), np.array([12]), np.array([2]))
    b.op("Relu", rest)
    found = way(b, b.op("Slice", y, np.array([0]), np.array([4]), np.array([2])))
    assert found is not None
    assert (found.channels(values(found), Engine(threads=1)) is None) == twice


@pytest.mark.parametrize("op", ["Relu", "Mul", "Add", "Concat"])
def test_what_is_no_move(op: str) -> None:
    b = Builder()
    y = layer(b)
    others: dict[str, tuple[list[object], dict[str, int]]] = {
        "Relu": ([], {}),
        "Mul": ([b.weight(12)], {}),
        "Add": ([b.weight(12)], {}),
        "Concat": ([y], {"axis": 2}),
    }
    inputs, attrs = others[op]
    assert way(b, b.op(op, y, *inputs, **attrs)) is None  # type: ignore[arg-type]


def test_what_reads_the_layer_itself() -> None:
    b = Builder()
    y = layer(b)
    b.op("Relu", y)
    assert way(b, b.op("Identity", y)) is None
