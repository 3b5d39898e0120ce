"""Shapes that a user gives: what they bind, what they contradict, and what is said where nothing tells a shape."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnxprune import Coupling, Graph, couple, load, prune
from onnxprune.cli import cli
from onnxprune.errors import ShapeError
from onnxprune.feeds import Feed
from onnxprune.shapes import substituted
from onnxprune.testing import Builder, oracle

Sizes = tuple[int | str, ...]


def masked(declared: dict[str, Sizes] | None = None, mask: Sizes = ("N", "S")) -> ModelProto:
    """Two inputs of the same sizes, and a hidden layer whose units can be cut."""
    b = Builder()
    x, m = b.input("x", "N", "S", 6), b.input("m", *mask)
    y = b.op("MatMul", x, b.weight(6, 8, name="w1", fan=6), name="y")
    y = b.op("Mul", y, b.op("Unsqueeze", m, [2]), name="z")
    for name, sizes in (declared or {}).items():
        b.declare(name, *sizes)
    return b.model(b.op("MatMul", b.op("Relu", y), b.weight(8, 4, name="w2", fan=8)))


def named(node: str = "act1") -> ModelProto:
    """A custom operator that nobody knows the shape of, before a pair of convolutions."""
    b = Builder(acme=1)
    y = b.op("acme::MyAct", b.conv(b.input("x", 2, 3, 6, 6), 8, name="w0"), name="act")
    b.graph.node[-1].name = node
    kind = helper.make_tensor_value_info("out", 1, None)
    # `Builder.conv` asks for shapes, which is what there is none of.
    y = b.op("Conv", y, b.weight(8, 8, 3, 3, name="w1"), pads=[1] * 4)
    b.op("Conv", b.op("Relu", y), b.weight(4, 8, 1, 1, name="w2"), name="out")
    b.graph.output.append(kind)
    return helper.make_model(b.graph, opset_imports=b.imports, ir_version=8)


def declared(*shape: int | str) -> ModelProto:
    model = named()
    model.graph.value_info.append(helper.make_tensor_value_info("act", 1, shape))
    return model


def reason(coupling: Coupling, constant: str) -> str:
    return next(e.reason for e in coupling.locked if e.value == constant and e.axis == (constant == "w2"))


def free(graph: Graph) -> set[str]:
    return set(couple(graph).covered)


# What a given size binds


def test_a_size_holds_for_all_inputs_with_its_symbol() -> None:
    graph = load(masked(), {"x": (2, 5, 6)})
    assert graph.shapes["m"] == (2, 5)
    assert graph.shapes["z"] == (2, 5, 8)
    assert graph.shapes[graph.outputs[0]] == (2, 5, 4)


def test_what_is_not_bound_stays_open() -> None:
    graph = load(masked(), {"m": (1, 7)})
    assert graph.shapes["x"] == (1, 7, 6)
    graph = load(masked(mask=("B", "S")), {"x": (2, 5, 6)})
    assert graph.shapes["m"] == ("B", 5)


@pytest.mark.parametrize("given", [{"x": (2, 5, 6)}, {"m": (2, 5)}, {"x": (2, 5, 6), "m": (2, 5)}])
def test_a_given_size_loses_nothing(given: dict[str, tuple[int, ...]]) -> None:
    assert free(load(masked())) <= free(load(masked(), given))


def test_the_cut_is_proved_with_sizes_given() -> None:
    record = prune(masked(), "channels=0.5", align=1, shapes={"x": (2, 5, 6)}).record
    assert record["parity"]["relative"] < 1e-5
    assert record["inputs"]["assumed"] == ["input 'm' float32 [N, S] was fed as [2, 5]"]


def test_one_symbol_has_one_size() -> None:
    with pytest.raises(ShapeError, match=r"x=2x5x6 and m=2x4 give 'S' two sizes, 5 and 4") as error:
        load(masked(), {"x": (2, 5, 6), "m": (2, 4)})
    assert "\n" not in str(error.value)
    b = Builder()
    model = b.model(b.op("Relu", b.input("x", "N", "N")))
    with pytest.raises(ShapeError, match=r"--shape x=2x3 gives 'N' two sizes"):
        load(model, {"x": (2, 3)})


# What the model says of other values


def acme(said: Sizes, **inputs: Sizes) -> ModelProto:
    """A custom operator of which the model says the shape."""
    b = Builder(acme=1)
    y = b.op("acme::MyAct", *(b.input(name, *sizes) for name, sizes in inputs.items()), name="act")
    return b.model(b.op("Relu", b.declare(y, *said), name="y"))


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (("N", 6), (2, 6)),
        (("N*4", 6), (8, 6)),
        (("4*N", "S + 1"), (8, 6)),
        (("N*Q", 6), ("2*Q", 6)),
        (("Q", 6), ("Q", 6)),
        (("floor(S/2 - 1/2) + 1", 6), (3, 6)),
        (("Min(512, S)", "S//2"), (5, 2)),
    ],
)
def test_expressions_follow(said: Sizes, found: Sizes) -> None:
    graph = couple(load(acme(said, x=("N", "S"), q=("Q",)), {"x": (2, 5)})).graph
    assert graph.shapes["act"] == graph.shapes["y"] == found


@pytest.mark.parametrize("text", ["S/2", "N - S", "S**S", "odd(S)", "S // (N - 2)", "N if S else 1", "S +", "'a'*S"])
def test_what_cannot_be_computed_is_left_unsaid(text: str) -> None:
    assert substituted(text, {"S": 5, "N": 2}) is None


@pytest.mark.parametrize("text", ["4", "Q", "Q +", "a b", "Q*R"])
def test_what_is_not_meant_stays(text: str) -> None:
    assert substituted(text, {"S": 5, "N": 2}) == text


def test_names_that_are_no_expressions_are_bound_whole() -> None:
    assert substituted("batch size", {"batch size": 3}) == 3
    assert substituted("x.1", {"x.1": 3}) == 3
    assert substituted("batch size + 1", {"batch size": 3}) is None


def test_what_inference_proves_goes_before_a_wrong_name() -> None:
    """People name the axes of outputs after those of inputs, also where they are not as long."""
    b = Builder()
    model = b.model(b.op("Concat", *[b.input("x", "N", 6)] * 2, axis=0, name="y"))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    assert load(model, {"x": (3, 6)}).shapes["y"] == (6, 6)


def test_a_declared_shape_survives_a_given_one() -> None:
    model = declared(2, 8, 6, 6)
    assert free(load(model, {"x": (2, 3, 6, 6)})) == free(load(model)) >= {"w1", "w2"}


# Inner values


def test_a_model_can_be_cut_behind_a_custom_operator() -> None:
    assert "w1" not in free(load(named()))
    given = load(named(), {"act": (2, 8, 6, 6)})
    assert given.shapes["out"] == (2, 4, 6, 6)
    assert free(given) == free(load(declared(2, 8, 6, 6))) >= {"w1", "w2"}


class MyAct(OpRun):
    """acme::MyAct"""

    op_domain = "acme"

    def _run(self, x: Any) -> tuple[Any]:
        return (np.tanh(x),)


def reference(model: ModelProto, feeds: Sequence[Feed]) -> list[dict[str, Any]]:
    runner = ReferenceEvaluator(model, new_ops=[MyAct])
    return [dict(zip(runner.output_names, runner.run(None, feed), strict=True)) for feed in feeds]


def test_the_cut_behind_it_is_exact() -> None:
    proved = oracle(declared(2, 8, 6, 6), 0.5, evaluate=reference)
    assert proved.can_cut("w1") and not proved.can_cut("w0")
    pruned = prune(named(), "channels=0.5", align=1, shapes={"act": (2, 8, 6, 6)}, validate=False).model
    same = prune(declared(2, 8, 6, 6), "channels=0.5", align=1, validate=False).model
    sizes = [{t.name: list(t.dims) for t in m.graph.initializer} for m in (pruned, same)]
    assert sizes[0] == sizes[1] and sizes[0]["w1"] == [4, 8, 3, 3]


def test_an_inner_name_is_not_fed() -> None:
    """The operator is one that ONNX Runtime runs, so that the result is proved."""
    record = prune(masked(), "channels=0.5", align=1, shapes={"y": (2, 5, 8), "m": (2, 5)}).record
    assert record["parity"]["relative"] < 1e-5


def test_an_inner_shape_binds_symbols() -> None:
    assert load(masked(), {"y": (2, 5, 8)}).shapes["m"] == (2, 5)
    with pytest.raises(ShapeError, match=r"contradicts"):
        load(masked(), {"y": (3, 5, 9)})
    with pytest.raises(ShapeError, match=r"contradicts"):
        load(masked(), {"x": (2, 5, 6), "y": (3, 5, 8)})


def test_an_inner_value_keeps_its_type() -> None:
    b = Builder(acme=1)
    b.op("acme::MyAct", b.input("x", 4, dtype=np.float64), name="act")
    b.op("Relu", "act", name="y")
    b.graph.output.append(onnx.ValueInfoProto(name="y"))
    graph = load(helper.make_model(b.graph, opset_imports=b.imports, ir_version=8), {"act": (4,)})
    assert graph.shapes["y"] == (4,)
    assert {i.type.tensor_type.elem_type for i in graph.shell.graph.output} == {11}


def test_a_scalar_can_be_given() -> None:
    assert load(acme((), x=("N",)), {"act": ()}).shapes["y"] == ()


@pytest.mark.parametrize("name", ["foo", "w1", ""])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ShapeError, match="but no input and no inner value is called so; the inputs are x, m"):
        load(masked(), {name: (1,)})


def test_the_command_takes_inner_names(tmp_path: Any) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(named(), path)
    made = CliRunner().invoke(cli, ["inspect", str(path), "--shape", "act=2x8x6x6"], prog_name="onnxprune")
    assert made.exit_code == 0 and "is not known" not in made.output


# Reasons


def test_the_reason_names_what_has_no_inference() -> None:
    coupling = couple(load(named()))
    told = "the shape of 'act' is not known: nothing tells what acme::MyAct (node 'act1') makes of its input"
    assert [reason(coupling, name) for name in ("w1", "w2")] == [told] * 2


def test_a_node_without_a_name() -> None:
    assert reason(couple(load(named(""))), "w1").endswith("nothing tells what acme::MyAct makes of its input")


def test_shape_is_asked_for_where_an_input_is_open() -> None:
    model = named()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    assert reason(couple(load(model)), "w1").endswith("makes of its input; give --shape")


def test_an_input_of_unknown_rank() -> None:
    b = Builder()
    b.graph.input.append(helper.make_tensor_value_info("x", 1, None))
    b.op("Conv", "x", b.weight(4, 3, 1, 1, name="w"), name="y")
    b.graph.output.append(helper.make_tensor_value_info("y", 1, None))
    graph = load(helper.make_model(b.graph, opset_imports=b.imports, ir_version=8))
    assert reason(couple(graph), "w") == "the shape of 'x' is not known; give --shape"


def test_a_size_is_asked_for_where_an_input_is_open() -> None:
    def model(batch: int | str) -> ModelProto:
        b = Builder(acme=1)
        y = b.declare(b.op("acme::MyAct", b.input("x", batch, 3), name="act"), 2, "C", 4, 4)
        y = b.op("DepthToSpace", y, blocksize=2)
        return b.model(b.op("Conv", y, b.weight(4, 2, 1, 1, name="w")))

    assert _said(model("N")) == "the size of the channels is not known; give --shape"
    assert _said(model(2)) == "the size of the channels is not known"


def _said(model: ModelProto) -> str:
    coupling = couple(load(model))
    return next(c.reason for c in coupling.solution.causes if "the size of" in c.reason)
