"""From the times of whole networks to a cost of widths."""

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune import cost as costs
from onnxprune.coupling import couple
from onnxprune.graph import load
from onnxprune.groups import Coupling
from onnxprune.latency.fit import Reading, by_kind, by_node, latency
from onnxprune.latency.operators import Operators
from onnxprune.testing import Builder, close

BLOCK = 8


def network() -> ModelProto:
    """Three convolutions, 32, 64 and 16 wide, and a layer behind them."""
    b = Builder()
    y = b.input("x", 1, 3, 8, 8)
    for name, width in (("one", 32), ("two", 64), ("three", 16)):
        y = b.op("Relu", b.conv(y, width, name=name))
    return b.model(close(b, y, 10, "head"))


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    return couple(load(network()))


def drawn(coupling: Coupling, count: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    """[count, groups] units gone; of the first network none."""
    rng, units = np.random.default_rng(seed), np.bincount(coupling.group_of)
    gone = np.stack([rng.integers(0, n - 1, count) for n in units], axis=1)
    gone[0] = 0
    return gone


def truth(coupling: Coupling) -> dict[int, list[float]]:
    """Milliseconds of each product of the widths of a node, for nodes with weights."""
    rng, operators = np.random.default_rng(1), Operators(coupling)
    return {n.index: rng.uniform(0.1, 1, 1 << len(operators.classes(n.index))).tolist() for n, _ in coupling.linears}


def test_what_operators_take_is_found_again(coupling: Coupling) -> None:
    parts, gone = truth(coupling), drawn(coupling, 20)
    single = {node: latency(coupling, {node: ms}, BLOCK) for node, ms in parts.items()}
    readings = [Reading(g, 0.0, 1.0, {node: cost(g) for node, cost in single.items()}) for g in gone]
    found, whole = latency(coupling, by_node(coupling, readings, BLOCK), BLOCK), latency(coupling, parts, BLOCK)
    others = drawn(coupling, 50, seed=2)
    np.testing.assert_allclose(found.each(others), whole.each(others), rtol=1e-6)
    assert found.before == pytest.approx(whole.before)


def test_kinds_are_found_from_the_whole(coupling: Coupling) -> None:
    gone, macs = drawn(coupling, 20), costs.macs(coupling)
    readings = [Reading(g, 2.0 + 1e-4 * macs(g), 1.0) for g in gone]
    found = latency(coupling, by_kind(coupling, readings, 1), 1)
    others = drawn(coupling, 50, seed=2)
    np.testing.assert_allclose(found.each(others), [2.0 + 1e-4 * macs(g) for g in others], rtol=1e-6)


def test_a_width_counts_as_the_next_block(coupling: Coupling) -> None:
    cost = latency(coupling, truth(coupling), BLOCK)
    group = next(i for i, g in enumerate(coupling.groups) if g.name == "two")
    gone = np.zeros(len(coupling.groups), dtype=np.intp)
    times = []
    for number in (0, 1, BLOCK - 1, BLOCK):
        gone[group] = number
        times.append(cost(gone))
    assert times[0] == times[1] == times[2] > times[3]


def test_the_longest_operators_are_named(coupling: Coupling) -> None:
    cost = latency(coupling, truth(coupling), BLOCK)
    names = cost.largest(np.zeros(len(coupling.groups), dtype=np.intp), 2)
    assert len(names) == 2
    assert names[0][1] >= names[1][1]
    assert all(name in {n.label for n, _ in coupling.linears} for name, _ in names)


def test_the_pace_of_the_machine_is_taken_out() -> None:
    reading = Reading(np.zeros(1, dtype=np.intp), 6.0, 2.0, {0: 4.0, 1: 0.5}, {0: 1, 1: 2})
    assert reading.at(1.0).ms == {0: 2.0, 1: 0.25}
    assert reading.at(1.0).total == 3.0
    assert reading.without(0.3).ms == {0: 3.7, 1: 0.0}


def test_kinds_know_what_operators_make(coupling: Coupling) -> None:
    """A time that is that of the elements that convolutions write, which depends on the widths of their results."""
    graph, operators = coupling.graph, Operators(coupling)
    convs = [n for n in graph.nodes if n.op == "Conv" and operators.made(n.index)]
    parts = {}
    for conv in convs:
        classes, written = operators.classes(conv.index), operators.made(conv.index)
        rows = [0.0] * (1 << len(classes))
        rows[1 + classes.index(written[0])] = 0.01 * coupling.solution.sizes[written[0]]  # as many as are written
        parts[conv.index] = rows
    exact, gone, others = latency(coupling, parts, 1), drawn(coupling, 20), drawn(coupling, 50, seed=2)
    found = latency(coupling, by_kind(coupling, [Reading(g, 1.0 + exact(g), 1.0) for g in gone], 1), 1)
    np.testing.assert_allclose(found.each(others), [1.0 + exact(g) for g in others], rtol=1e-6)
