"""Whose time a kernel's time is."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.coupling import couple
from onnxprune.feeds import input_specs, random_feeds
from onnxprune.graph import load
from onnxprune.latency.clock import Events, events
from onnxprune.latency.operators import Operators, made
from onnxprune.rules.base import Dim
from onnxprune.testing import Builder, close


def network() -> ModelProto:
    b = Builder()
    y = b.op("Relu", b.conv(b.input("x", 1, 3, 8, 8), 32, name="one"))
    y = b.op("Add", y, b.conv(b.op("Relu", b.conv(y, 64, name="two")), 32, name="three"))
    return b.model(close(b, b.op("Sigmoid", y), 10, "head"))


@pytest.fixture(scope="module")
def operators() -> Operators:
    return Operators(couple(load(network())))


def ops(operators: Operators) -> list[str]:
    return [node.op for node in operators.coupling.graph.nodes]


def test_a_fused_kernel_is_the_contractions(operators: Operators) -> None:
    nodes = operators.coupling.graph.nodes
    relu, add, sigmoid = (next(n for n in nodes if n.op == op) for op in ("Relu", "Add", "Sigmoid"))
    found = operators.spent(
        Events(
            [None, relu.outputs[0], nodes[2].outputs[0], add.outputs[0], None, sigmoid.outputs[0]],
            ["ReorderInput", "Conv", "Conv", "Conv", "ReorderOutput", "Sigmoid"],
            np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]),
        )
    )
    convs = [n.index for n in nodes if n.op == "Conv"]
    assert found[convs[0]] == [1.0, 2.0]  # with the change of layout before it
    assert found[convs[2]] == [8.0, 16.0]  # and with the one behind it
    assert found[sigmoid.index] == [32.0]


def test_all_time_of_a_run_is_somebodys(operators: Operators) -> None:
    graph = operators.coupling.graph
    feed = random_feeds(input_specs(graph.proto))[0]
    found = events(graph.proto, feed, "cpu", 1, 4, 1.0)
    spent = operators.spent(found)
    assert sum(map(sum, spent.values())) == pytest.approx(found.ms.sum())
    assert {n.index for n, _ in operators.coupling.linears} <= set(spent)


def test_widths_that_an_operator_depends_on(operators: Operators) -> None:
    nodes = operators.coupling.graph.nodes
    number = {n.label: len(operators.classes(n.index)) for n in nodes if n.op in ("Conv", "Add", "Gemm")}
    assert sorted(number.values()) == [1, 1, 1, 2, 2]


def recurrent() -> ModelProto:
    """A layer and two LSTMs of which only the last state is read, as torch exports them."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("LSTM", ["a", "w1", "r1"], ["", "h1"], hidden_size=16),
        helper.make_node("LSTM", ["h1", "w2", "r2"], ["", "h2"], hidden_size=16),
        helper.make_node("MatMul", ["h2", "v"], ["y"]),
    ]
    weights = [weight("w", 12, 24), weight("w1", 1, 64, 24), weight("r1", 1, 64, 16)]
    weights += [weight("w2", 1, 64, 16), weight("r2", 1, 64, 16), weight("v", 16, 4)]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [5, 1, 12]), ("y", [1, 1, 4]))]
    graph = helper.make_graph(nodes, "recurrent", infos[:1], infos[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_recurrent_cell_depends_on_what_it_reads() -> None:
    coupling = couple(load(recurrent()))
    found, class_of = Operators(coupling), coupling.solution.class_of
    first, second = (node for node in coupling.graph.nodes if node.op == "LSTM")
    assert (made(first), made(second)) == ("h1", "h2")
    assert class_of[Dim("a", 2)] in found.classes(first.index)
    assert class_of[Dim("h1", 2)] in found.classes(second.index)
