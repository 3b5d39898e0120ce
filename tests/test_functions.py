"""Models with local functions are analysed whole: each node that a function hides can be cut."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import FunctionProto, ModelProto, NodeProto, helper, numpy_helper

from onnxprune import inlining, words
from onnxprune.graph import load
from onnxprune.inlining import inlined
from onnxprune.parity import compare, parity
from onnxprune.pipeline import Result
from onnxprune.pruning import prune
from onnxprune.runtime import run, session
from onnxprune.testing import Builder, close, prove
from onnxprune.validate import Checks
from onnxprune.writing import save

QUICK = Checks(seconds=0)
BLOCK = ["x", "w", "scale", "bias", "mean", "var"]


def function(
    name: str, inputs: list[str], nodes: list[NodeProto], opset: int = 17, attributes: tuple[str, ...] = ()
) -> FunctionProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("acme", 1)]
    return helper.make_function("acme", name, inputs, ["y"], nodes, imports, list(attributes))


def call(name: str, inputs: list[str], output: str) -> NodeProto:
    return helper.make_node(name, inputs, [output], domain="acme")


def block(opset: int = 17) -> FunctionProto:
    """Conv, BatchNormalization, Relu, with the weights as inputs and the padding as an attribute."""
    conv = helper.make_node("Conv", ["x", "w"], ["c"])
    conv.attribute.add(name="pads", type=onnx.AttributeProto.INTS, ref_attr_name="pads")
    nodes = [
        conv,
        helper.make_node("BatchNormalization", ["c", *BLOCK[2:]], ["n"]),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    return function("Block", BLOCK, nodes, opset, ("pads",))


def twice() -> FunctionProto:
    """A function that calls another: two blocks and a residual sum."""
    second = [f"{name}2" for name in BLOCK[1:]]
    nodes = [
        helper.make_node("Block", BLOCK, ["a"], domain="acme", pads=[1, 1, 1, 1]),
        helper.make_node("Block", ["a", *second], ["b"], domain="acme", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "a"], ["y"]),
    ]
    return function("Twice", [*BLOCK, *second], nodes)


def layer(b: Builder, name: str, inner: int, out: int) -> list[str]:
    scale, var = b.near_one(out, name=f"{name}.scale"), b.near_one(out, name=f"{name}.var")
    bias, mean = b.weight(out, name=f"{name}.bias"), b.weight(out, name=f"{name}.mean")
    return [b.weight(out, inner, 3, 3, name=name), scale, bias, mean, var]


def network(*functions: FunctionProto, nested: bool = False) -> ModelProto:
    """A stem, two calls with weights of their own, a last layer."""
    b = Builder(acme=1)
    b.functions.extend(functions)
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="stem")
    if nested:
        y = b.op("acme::Twice", y, *layer(b, "w1", 8, 8), *layer(b, "w2", 8, 8))
    else:
        y = b.op("acme::Block", y, *layer(b, "w1", 8, 12), pads=[1, 1, 1, 1])
        y = b.op("acme::Block", y, *layer(b, "w2", 12, 16), pads=[1, 1, 1, 1])
    return b.model(close(b, y, name="last"))


def check(model: ModelProto, result: Result) -> None:
    """The pruned model against the user's own, functions and all, with zeros in the weights that the plan drops."""
    masked = ModelProto()
    masked.CopyFrom(model)
    assert result.plan is not None and result.plan.kept and masked.functions
    for tensor in masked.graph.initializer:
        array = np.array(numpy_helper.to_array(tensor))
        for axis, kept in result.plan.kept.get(tensor.name, {}).items():
            np.moveaxis(array, axis, 0)[np.setdiff1d(np.arange(array.shape[axis]), kept)] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    assert parity(masked, result.model).exact
    assert result.record["parity"]["exact"]
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize("nested", [False, True])
def test_weights_that_are_passed_to_a_function(nested: bool) -> None:
    model = network(block(), twice(), nested=nested)
    before = model.SerializeToString()
    result = prune(model, "channels=0.5", recover="none", align=1, checks=QUICK)
    check(model, result)
    assert model.SerializeToString() == before
    assert {"w1", "w2", "w2.var", "stem", "last"} <= set(result.plan.kept if result.plan else ())
    assert result.record["inlined"] == (["acme::Twice"] if nested else ["acme::Block"])
    assert not result.model.functions
    assert any("acme::" in line for line in words.warnings(result.record))


def test_every_node_of_a_function_is_analysed() -> None:
    model = network(block())
    result = prove(model)
    assert result.choices("w1") == [12] and result.choices("w2") == [16]
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)}
    before, after = (run(session(m), feed) for m in (model, load(model).proto))
    assert compare(before, after).max_abs < 1e-6


def test_weights_inside_a_function_become_a_copy_for_each_call() -> None:
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.standard_normal((8, 8, 1, 1)).astype(np.float32) / 3)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weights),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    b = Builder(acme=1)
    b.functions.append(function("Mix", ["x"], nodes))
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="stem")
    for _ in range(2):
        y = b.op("Relu", b.op("acme::Mix", y))
    result = prove(b.model(close(b, y)))
    copies = [n for n in result.plan.kept if n.startswith("w__")]
    assert len(copies) == 2 and result.choices("stem") == [8]


@pytest.mark.parametrize("opset", [15, 16, 18])
def test_a_function_of_another_operator_set_whose_operators_are_the_same(opset: int) -> None:
    model = network(block(opset), twice(), nested=True)
    check(model, prune(model, "channels=0.5", recover="none", align=1, checks=QUICK))


def test_a_function_whose_operators_have_changed_since_is_converted() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("ReduceMean", ["c"], ["m"], axes=[2, 3], keepdims=1),  # an input since operator set 18
        helper.make_node("Mul", ["c", "m"], ["y"]),
    ]
    b = Builder(opset=18, acme=1)
    b.functions.append(function("Gate", ["x", "w"], nodes, opset=13))
    y = b.op("acme::Gate", b.conv(b.input("x", 2, 3, 6, 6), 8, name="stem"), b.weight(8, 8, 1, 1, name="w1"))
    model = b.model(close(b, b.op("Relu", y)))
    result = prove(model)
    assert result.choices("stem") == result.choices("w1") == [8]
    onnx.checker.check_model(result.model, full_check=True)


def test_operator_sets_that_only_a_function_imports_are_named() -> None:
    b = Builder(acme=1)
    body = function("Soft", ["x"], [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")])
    body.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    b.functions.append(body)
    y = b.op("acme::Soft", b.declare(b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1"), 2, 8, 6, 6))
    result = prove(b.model(close(b, b.declare(y, 2, 8, 6, 6))))
    assert result.choices("w1") == [8]
    assert {o.domain for o in result.model.opset_import} == {"", "acme", "com.microsoft"}


def test_functions_with_a_rule_stay_and_so_does_what_they_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inlining, "registered", lambda package, name: name == "acme::Twice")
    model = network(block(), twice(), nested=True)
    assert inlined(model) == (model, ())
    model.graph.node.append(call("Block", [model.graph.node[-1].output[0], *layer(Builder(), "w3", 4, 4)], "more"))
    made, names = inlined(model)
    assert names == ("acme::Block",)  # which is still called by the one that stays
    assert {f.name for f in made.functions} == {"Block", "Twice"}
    assert [n.op_type for n in made.graph.node] == ["Conv", "Twice", "Conv", "Conv", "BatchNormalization", "Relu"]


def test_functions_that_nobody_calls_stay() -> None:
    model = Builder(acme=1)
    model.functions.append(block())
    y = close(model, model.conv(model.input("x", 2, 3, 6, 6), 8, name="w1"))
    result = prove(model.model(y))
    assert [f.name for f in result.model.functions] == ["Block"]
    assert load(model.model(y)).inlined == ()


def test_a_function_that_calls_itself_is_locked() -> None:
    b = Builder(acme=1)
    b.functions.append(function("Loop", ["x"], [call("Loop", ["x"], "y")]))
    y = b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1")
    b.graph.node.append(call("Loop", [y], "z"))
    b.declare("z", 2, 8, 6, 6)
    graph = load(b.model(b.declare(close(b, "z"), 2, 4, 6, 6)))
    assert graph.inlined == () and [n.op for n in graph.nodes] == ["Conv", "Loop", "Conv"]


def test_calls_inside_a_subgraph() -> None:
    b = Builder(acme=1)
    b.functions.append(function("Twofold", ["x"], [helper.make_node("Add", ["x", "x"], ["y"])]))
    inner = helper.make_graph([call("Twofold", ["c"], "t")], "then", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph(
        [helper.make_node("Relu", ["c"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    b.input("flag", dtype=bool)
    y = b.op("Relu", b.conv(b.input("x", 2, 3, 6, 6), 8, name="w1"))
    y = b.op("Identity", y, name="c")
    y = b.declare(b.op("If", "flag", then_branch=inner, else_branch=other), 2, 8, 6, 6)
    graph = load(b.model(close(b, y)))
    assert graph.inlined == ("acme::Twofold",)
    assert graph.captured == {"c"}


@pytest.mark.parametrize("limit", [2**31, 1000])
def test_external_weights_survive(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.graph.PROTOBUF_LIMIT", limit)
    monkeypatch.setattr("onnxprune.writing.INLINE", 100)
    model = network(block(), twice(), nested=True)
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    save(model, path, external=True)
    result = prune(path, "channels=0.5", recover="none", align=1, out=out, checks=QUICK)
    check(model, result)
    assert (tmp_path / "out.onnx.data").exists()
    assert [n.op_type for n in onnx.load(out).graph.node].count("BatchNormalization") == 2
    again = prune(onnx.load(path), "channels=0.5", recover="none", align=1, checks=QUICK)
    assert again.plan is not None and result.plan is not None
    assert {n: {a: list(i) for a, i in c.items()} for n, c in again.plan.kept.items()} == {
        n: {a: list(i) for a, i in c.items()} for n, c in result.plan.kept.items()
    }
