"""From an axis to its group, or along the ties to what locks it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import couple, inspect, load, prune
from onnxprune.bodies import inner, total
from onnxprune.default import model_path
from onnxprune.errors import OptionError
from onnxprune.explain import explain
from onnxprune.lookup import find
from onnxprune.rules.base import Dim
from onnxprune.testing import Builder, close, sandwich
from onnxprune.web import Web


def axes(model: ModelProto, name: str) -> list[dict[str, Any]]:
    (value,) = explain(couple(load(model)), name)
    found: list[dict[str, Any]] = value["axes"]
    return found


def route(lock: dict[str, Any]) -> list[str]:
    """`w1:0 Conv x:1 ...`"""
    return [f"{step.get('op', '')} {step['value']}:{step['axis']}".strip() for step in lock["path"]]


def normalised() -> ModelProto:
    def middle(b: Builder, y: str) -> str:
        y = b.op("Transpose", b.op("Relu", y, name="r"), perm=[0, 2, 3, 1], name="t")
        y = b.op("LayerNormalization", y, b.near_one(8, name="gamma"), b.weight(8, name="beta"), name="n")
        return b.op("Transpose", y, perm=[0, 3, 1, 2], name="back")

    return sandwich(middle)


def attention() -> ModelProto:
    """Two heads of 4: scores of computed tensors, Reshapes that split."""
    b = Builder()
    x = b.input("x", 2, 6, 5)
    q, k, v = (
        b.op("Transpose", b.op("Reshape", b.op("MatMul", x, b.weight(5, 8, name=n)), [2, 6, 2, 4]), perm=[0, 2, 1, 3])
        for n in "qkv"
    )
    scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])))
    y = b.op("Transpose", b.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = b.op("MatMul", b.op("Reshape", y, [2, 6, 8]), b.weight(8, 5, name="o"))
    return b.model(y)


def concatenated() -> ModelProto:
    b = Builder()
    y = b.conv(b.input("x", 1, 3, 6, 6), 8, name="w1", bias=False)
    return b.model(close(b, b.op("Concat", y, b.input("z", 1, 4, 6, 6), axis=1)))


def shared() -> ModelProto:
    """One bias for a layer whose outputs are cut and for the last."""
    b = Builder()
    bias = b.weight(4, name="bias")
    y = b.op("Relu", b.op("Gemm", b.input("x", 2, 3), b.weight(3, 4, name="w1"), bias))
    return b.model(b.op("Gemm", y, b.weight(4, 4, name="w2"), bias))


def branches() -> ModelProto:
    """A convolution, and an If whose branches add weights under one name."""

    def branch(name: str, sign: float) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.full((4, 1, 1), sign, dtype=np.float32), "w")
        one = helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.ones((4, 1, 1), np.float32)))
        nodes = [one, helper.make_node("Mul", ["w", "one"], ["p"]), helper.make_node("Add", ["c", "p"], [name])]
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 6, 6])
        return helper.make_graph(nodes, name, [], [out], [weight])

    b = Builder()
    b.op("Identity", b.conv(b.input("x", 1, 3, 6, 6), 4, 1, name="w1", bias=False), name="c")
    flag = b.input("flag", 1, dtype=np.bool_)
    bodies = {"then_branch": branch("yes", 1.0), "else_branch": branch("no", -1.0)}
    y = b.op("If", b.op("Squeeze", flag), name="y", **bodies)
    return b.model(b.conv(b.declare(y, 1, 4, 6, 6), 2, name="w2", bias=False))


MODELS = {"norm": normalised, "heads": attention, "concat": concatenated, "shared": shared, "branches": branches}


# The way to a lock


def test_the_way_to_a_normalisation_and_the_option_that_opens_it() -> None:
    lock = axes(normalised(), "w1")[0]["locks"][0]
    assert route(lock) == ["w1:0", "Conv Conv_0_0:1", "Relu r:1", "Transpose t:3"]
    assert (lock["op"], lock["indices"], lock["option"]) == ("LayerNormalization", None, "--allow-inexact")
    (value,) = inspect(normalised(), explain="w1")["explain"]
    then = value["axes"][0]["locks"][0]["then"]
    assert [group["name"] for group in then["groups"]] == ["w1"] and then["locks"] == []


def test_what_an_option_does_not_open() -> None:
    """The outputs of the model are behind the normalisation."""
    b = Builder()
    y = b.op("MatMul", b.input("x", 2, 3), b.weight(3, 8, name="w"))
    model = b.model(b.op("LayerNormalization", y, b.near_one(8), b.weight(8)))
    (value,) = inspect(model, explain="w")["explain"]
    lock = value["axes"][1]["locks"][0]
    assert lock["then"]["locks"][0]["reason"] == "a graph output"
    locked = [entry for entry in inspect(model)["locked"] if "option" in entry]
    assert locked and not any(entry["opened"] for entry in locked)


def test_inputs_and_outputs_of_the_model_are_ends() -> None:
    w2, w1 = axes(normalised(), "w2"), axes(normalised(), "w1")
    assert w2[0]["locks"][0]["reason"] == "a graph output" and len(w2[0]["locks"][0]["path"]) == 2
    assert route(w1[1]["locks"][0]) == ["w1:1", "Conv x:1"]
    assert w1[1]["role"] == "in" and w1[2]["role"] == "window"


@pytest.mark.parametrize("name", [*MODELS, "default"])
def test_every_way_goes_from_node_to_node_and_ends_at_the_blocker(name: str) -> None:
    coupling = couple(load(MODELS[name]() if name in MODELS else model_path()))
    graph, web = coupling.graph, Web(coupling)

    def touched(node: int) -> set[str]:
        return {*coupling.views[node].names, *graph.nodes[node].outputs, *graph.nodes[node].captures}

    walked = 0
    for dim, number in coupling.solution.class_of.items():
        assert bool(web.causes(dim)) == (coupling.solution.locks[number] is not None)
        for cause in web.causes(dim):
            path = web.path(dim, cause)
            assert path[0] == (dim, None)
            for (before, _), (after, link) in pairwise(path):
                assert link is not None and {before.value, after.value} <= touched(link.node)
            assert all(cause in web.causes(place) for place, _ in path)
            node = coupling.solution.causes[cause].node
            assert node is None or path[-1][0].value in touched(node)
            walked += len(path) > 1
    assert walked > 3


def test_indices_that_are_locked_are_told_apart() -> None:
    channels = axes(concatenated(), "w2")[1]
    assert channels["groups"][0]["name"] == "w1" and channels["groups"][0]["units"] == 8
    (lock,) = channels["locks"]
    assert lock["indices"] == [8, 9, 10, 11] and route(lock)[-1] == "Concat z:1"


# Groups and choices


def test_a_group_with_its_members_and_their_widths() -> None:
    model = sandwich(lambda b, y: b.op("Flatten", b.op("Relu", y)), spatial=(2, 3))
    (group,) = axes(model, "w2")[1]["groups"]
    assert (group["name"], group["units"], group["width"]) == ("w1", 8, 6)
    assert {(m["value"], m["axis"], m["role"], m["width"]) for m in group["members"]} == {
        ("w1", 0, "out", 1),
        ("w2", 1, "in", 6),
    }


def test_the_way_that_a_reshape_is_cut() -> None:
    model = attention()
    node = next(n for n in model.graph.node if n.op_type == "Reshape")
    outer, inside = axes(model, node.output[0])[2:]
    assert outer["groups"][0]["units"] == 2
    (choice,) = outer["choices"]
    assert [(way["name"], way["taken"]) for way in choice["ways"]] == [("factor 4", False), ("factor 2", True)]
    assert inside["locks"][0]["option"] == "--head-dims"


def test_ways_that_are_all_blocked_say_by_what() -> None:
    """A Reshape splits the channels in two axes of an output."""
    b = Builder()
    y = b.conv(b.input("x", 1, 3, 6, 6), 8, name="w1")
    model = b.model(b.op("Reshape", y, [1, 2, 4, 36]))
    (choice,) = axes(model, y)[1]["choices"]
    assert [(way["taken"], way["blocked"]) for way in choice["ways"]] == [(False, "a graph output")] * 2
    lock = axes(model, "w1")[0]["locks"][0]
    assert route(lock)[:2] == ["w1:0", f"Conv {y}:1"]


def test_a_shared_vector_has_axes_for_each_reader() -> None:
    first, second = axes(shared(), "bias")
    assert (first["reader"], second["reader"]) == ("Gemm_0", "Gemm_2")
    assert first["groups"] and not second["groups"]
    assert second["locks"][0]["reason"] == "a graph output"


# Names


def test_a_name_is_a_tensor_a_node_or_a_beginning() -> None:
    graph = load(normalised())
    assert find(graph, "w1") == ("w1",)
    assert find(graph, "Conv_0") == ("w1", "Conv_0_0")
    assert find(graph, "gam") == ("gamma",)


@pytest.mark.parametrize(
    ("name", "words"),
    [("gama", "did you mean gamma"), ("w", "w1, w2"), ("", "no tensor"), ("zzzzzz", "no tensor or node")],
)
def test_a_name_that_does_not_fit_is_one_line(name: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        find(load(normalised()), name)


# Bodies


def test_weights_inside_bodies_are_locked_and_count() -> None:
    model = branches()
    graph = load(model)
    assert [part.params for part in inner(graph)] == [4] * 4
    assert len({part.name for part in inner(graph)}) == 4
    assert total(graph) == 4 * 3 + 2 * 4 * 9 + 16
    record = inspect(model)
    assert record["params"] == total(graph)
    locks = [lock for lock in record["locked"] if lock["reason"] == "inside the body of If"]
    assert len(locks) == 4 and {lock["op"] for lock in locks} == {"If"}
    assert "inside the body of If" in record["warnings"][0]
    name = locks[0]["value"]
    (value,) = inspect(model, explain=name)["explain"]
    assert value["axes"][0]["locks"][0]["reason"] == "inside the body of If"
    assert couple(graph).unit_of(Dim(name, 0)) is None


def test_a_target_for_parameters_counts_them() -> None:
    record = prune(branches(), target="params=1", align=1, validate=False).record
    assert record["params"] == {"before": 100, "after": 100}
